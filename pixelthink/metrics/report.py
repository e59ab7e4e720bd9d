"""The metrics of one evaluation, from predictions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pixelthink.metrics.functional import ProtocolName
from pixelthink.metrics.levels import ByLevel
from pixelthink.metrics.reasoning import ParseRate, ReasoningTokens
from pixelthink.metrics.segmentation import CIoU, GIoU
from pixelthink.types import Prediction


class SegmentationReport(nn.Module):
    """gIoU, cIoU, reasoning tokens and parse rate with causes; each overall and by difficulty level.

    Args:
        protocol: Whose rules for ignored pixels and empty masks apply.
    """

    def __init__(self, protocol: ProtocolName) -> None:
        super().__init__()
        self.giou = ByLevel(GIoU(protocol), "giou")
        self.ciou = ByLevel(CIoU(protocol), "ciou")
        self.tokens = ByLevel(ReasoningTokens(), "reasoning_tokens")
        self.parsed = ByLevel(ParseRate())

    def update(self, predictions: Sequence[Prediction]) -> None:
        """Adds predictions, failed ones included.

        Raises:
            ValueError: if a sample's true mask is unknown; names it.
        """
        samples = [prediction.prompt.sample for prediction in predictions]
        for sample in samples:
            if sample.mask is None:
                raise ValueError(f"sample {sample.id!r} has no mask, so its answer cannot be measured; use predict")
        difficulties = [sample.difficulty for sample in samples]
        masks = [prediction.mask for prediction in predictions]
        truths = [sample.mask for sample in samples]
        ignores = [sample.ignore for sample in samples]
        self.giou.update(difficulties, masks, truths, ignores)
        self.ciou.update(difficulties, masks, truths, ignores)
        self.tokens.update(difficulties, [prediction.completion.reasoning_tokens for prediction in predictions])
        self.parsed.update(difficulties, [prediction.failure for prediction in predictions])

    def compute(self) -> dict[str, Tensor]:
        """Name → value, `NAME` overall and `NAME/LEVEL` for each level that occurred; synced over processes."""
        values: dict[str, Tensor] = {}
        for metric in (self.giou, self.ciou, self.tokens, self.parsed):
            values.update(metric.compute())
        return {name: value.float() for name, value in values.items()}

    def reset(self) -> None:
        """Forgets all predictions."""
        for metric in (self.giou, self.ciou, self.tokens, self.parsed):
            metric.reset()
