"""A judge that needs no model: how close the reasoning is to a reference."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor

from pixelthink.judges.base import Judge, JudgedSample, Verdict, reference_of


class ReferenceJudge(Judge):
    """Ten times the chrF of the reasoning against its reference reasoning (Popović, 2015; by torchmetrics).

    For work without a server: it tells reasoning that says the same in similar words from one that does not. It is no
    RScore: a right reasoning in other words scores low. So its metrics have names of their own, `reference_rscore`,
    `reference_rst` and `reference_urss`.

    Args:
        reference: Style of the reference reasoning, a key of the sample's `reasoning`.
        metric: "chrf" compares character n-grams up to 6; "chrf++" words and pairs of words too.
    """

    metric_prefix = "reference_"

    def __init__(self, reference: str = "short", metric: Literal["chrf", "chrf++"] = "chrf++") -> None:
        self.reference = reference
        self.metric = metric
        self.note = (
            f"ten times the {metric} against the {reference!r} reference reasoning: NOT comparable with the paper's "
            "RScore, RST and URSS"
        )

    def rate(self, sample: JudgedSample) -> Verdict:
        from torchmetrics.functional.text import chrf_score

        reference = reference_of(sample, self.reference, "ReferenceJudge")
        if not sample.reasoning.strip():
            return Verdict(0.0)
        words = 2 if self.metric == "chrf++" else 0
        similarity = cast("Tensor", chrf_score([sample.reasoning], [[reference]], n_word_order=words))
        return Verdict(10.0 * similarity.item())
