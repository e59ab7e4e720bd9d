"""Predictions in, metrics and result files out. Needs no Trainer.

evaluator.begin()
for batch in batches:
    evaluator.step(answerer, batch)
evaluation = evaluator.finish()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, cast

from pixelthink.answering.answerer import Answerer
from pixelthink.answering.segmenting import missing_image_prediction
from pixelthink.data.validation import ObjectTargets
from pixelthink.errors import UserError
from pixelthink.evaluation.config import EvaluationConfig, giou_within_budget
from pixelthink.evaluation.missing_images import MissingImages
from pixelthink.evaluation.result_folder import ResultFolder
from pixelthink.evaluation.results import recorded_prediction
from pixelthink.failures import was_asked
from pixelthink.judges.base import Judge, JudgedSample, Verdict
from pixelthink.metrics.functional import get_protocol
from pixelthink.metrics.measured import Measured, measure
from pixelthink.metrics.segmentation import SegmentationMetrics, metrics_document
from pixelthink.parallel.collectives import all_gather_object
from pixelthink.types import Prediction, Prompt, PromptBatch

OCCURRENCES = ("failures/", "flaws/", "judge_failures/")
CURVES_BY_LEVEL = ("n", "giou", "ciou", "reasoning_tokens", "parse_rate")
"""What loggers are told of each difficulty level; `metrics.json` has everything of each."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        metrics: Every metric by name; `NAME/LEVEL` is of the samples of a difficulty level.
        curves: Those that are worth a curve in a logger.
        headline: The result on one line.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, float]
    headline: str


class Evaluator:
    """Measures predictions, has their reasoning judged, and writes result files.

    Several processes may each add their own samples; the metrics are of all of them.

    Args:
        config: How answers are measured.
        judge: Rates the reasoning; None asks nobody.
    """

    def __init__(self, config: EvaluationConfig = EvaluationConfig(), judge: Judge | None = None) -> None:
        self.config = config
        self.judge = judge
        self._occurred: set[str] = set()  # failures and flaws of earlier evaluations, whose curves go back to 0
        self.begin(judging=False)

    def begin(
        self,
        results: ResultFolder | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        judging: bool = True,
        device: str = "cpu",
    ) -> None:
        """Starts an evaluation; what an earlier one has added is forgotten.

        Args:
            results: Folder for the result files; None writes none. Rows of an interrupted run are taken up from there.
            settings: Everything that answers and their numbers depend on; rows of other settings are refused.
            judging: Whether the judge is asked.
            device: Where the metrics' sums are kept.

        Raises:
            UserError: the folder holds an unfinished evaluation under other settings.
            FileError: the folder cannot be written.
        """
        self._measured: dict[str, Measured] = {}
        self._verdicts: dict[str, Future[Verdict]] = {}
        self._targets = ObjectTargets()
        self._missing_images = MissingImages()
        self._results = results
        self._device = device
        self._asked_judge = self.judge if judging else None
        if self._asked_judge is not None:
            self._asked_judge.setup()
        if results is not None:
            results.open(settings or {})

    def step(self, answerer: Answerer, batch: PromptBatch, *, measuring: bool = True) -> list[Prediction]:
        """Has a batch answered, unless an interrupted run has answered all of it, and adds the predictions.

        A batch is asked as a whole or not at all: so an interrupted run gives the numbers of one that was not
        interrupted, also where an image that it had not found can be read now.

        Args:
            answerer: Has been started.
            batch: P prompts.
            measuring: As for `add`; without it, whatever can be read of an answer is segmented.

        Returns:
            P predictions.
        """
        predictions = [self._recorded(prompt) for prompt in batch.prompts]
        if None in predictions:
            sampling = self.config.sampling_of(answerer.backbone)
            rule = self.config.accepts if measuring else "pixelthink"  # a prediction is measured by no protocol
            answered = answerer.answer(batch, sampling, acceptance=rule)
            pairs = zip(batch.prompts, predictions, answered, strict=True)
            predictions = [known if prompt.sample.missing is not None else answer for prompt, known, answer in pairs]
        complete = cast("list[Prediction]", predictions)
        self.add(complete, measuring=measuring)
        return complete

    def _recorded(self, prompt: Prompt) -> Prediction | None:
        """The stored answer, or a missing-image prediction; None where the prompt has still to be asked."""
        row = self._results.known.get(prompt.sample.id) if self._results is not None else None
        if row is not None and was_asked(row["failure"]):
            return recorded_prediction(prompt, row)
        return None if prompt.sample.missing is None else missing_image_prediction(prompt)

    def add(self, predictions: Sequence[Prediction], *, measuring: bool = True) -> None:
        """Takes the predictions of a batch; their rows are on the disk when this returns.

        Args:
            predictions: Of this process.
            measuring: Compare masks with the truth; without it (`predict`) only rows are written.

        Raises:
            UserError: two samples have one id, or a sample has no true mask; names it.
            FileError: the rows cannot be written.
        """
        self._missing_images.add(predictions)
        if measuring:
            for prediction in predictions:
                self._measure(prediction)
            self._submit(predictions)
        if self._results is not None:
            self._results.add(predictions, self._measured)

    def _measure(self, prediction: Prediction) -> None:
        measured = measure(prediction, get_protocol(self.config.protocol))
        if measured.id in self._measured:
            raise UserError(f"two samples have the id {measured.id!r}, so their results could not be told apart")
        self._measured[measured.id] = measured
        if self.config.count == "object":
            self._targets.add(prediction.prompt.sample)

    def _submit(self, predictions: Sequence[Prediction]) -> None:
        """Asks the judge, who works while the next batch is answered."""
        if self._asked_judge is not None:
            futures = self._asked_judge.submit([judged_sample(prediction) for prediction in predictions])
            self._verdicts |= {p.prompt.sample.id: f for p, f in zip(predictions, futures, strict=True)}

    def finish(self, header: Mapping[str, Any] | None = None) -> Evaluation:
        """Computes the metrics of all processes' samples and writes the result files. All processes call it together.

        Args:
            header: What `run.json` says beside the settings.

        Raises:
            UserError: not one image could be read; or two questions about one object have different targets.
            FileError: the files cannot be written.
        """
        self._collect_verdicts()
        self._missing_images.check()
        if self.config.count == "object":
            for targets in all_gather_object(self._targets.known):
                self._targets.merge(targets)
        segmentation = self._new_metrics()
        segmentation.update(list(self._measured.values()))
        metrics = segmentation.compute()
        evaluation = Evaluation(metrics, self._curves(metrics), headline(self.config, metrics, self._asked_judge))
        if self._results is not None:
            self._results.finish(self._measured, header or {}, self._document(metrics))
        return evaluation

    def finish_predictions(self, header: Mapping[str, Any] | None = None) -> None:
        """Writes the result files of predictions without known truth. All processes call it together.

        Raises:
            UserError: not one image could be read.
            FileError: the files cannot be written.
        """
        self._missing_images.check()
        if self._results is not None:
            self._results.finish({}, header or {}, None)

    def abandon(self) -> None:
        """Cancels ratings that have not begun, so that a failed run can end."""
        if self._asked_judge is not None:
            self._asked_judge.close()

    def _collect_verdicts(self) -> None:
        """Waits for the judge; a sample that it did not rate keeps the reason."""
        for name, future in self._verdicts.items():
            verdict = future.result()
            self._measured[name] = replace(
                self._measured[name],
                rscore=verdict.score,
                judge_failure=verdict.failure,
                judge_detail=verdict.detail,
            )
        self.abandon()

    def _new_metrics(self) -> SegmentationMetrics:
        config, judge = self.config, self._asked_judge
        metrics = SegmentationMetrics(
            config.protocol,
            config.bootstrap_samples,
            config.bootstrap_seed,
            config.model_billions,
            judge.metric_prefix if judge is not None else None,
            config.count,
        )
        return metrics.to(self._device)

    def _curves(self, metrics: Mapping[str, float]) -> dict[str, float]:
        curves = {name: value for name, value in metrics.items() if _is_curve(name)}
        self._occurred |= {name for name in curves if name.startswith(OCCURRENCES)}
        curves = dict.fromkeys(sorted(self._occurred), 0.0) | curves
        if (budget := self.config.token_budget) is not None:
            curves["giou_within_budget"] = giou_within_budget(metrics["giou"], metrics["reasoning_tokens"], budget)
        return curves

    def _document(self, metrics: dict[str, float]) -> dict[str, Any]:
        """The contents of `metrics.json`."""
        judge = self._asked_judge
        judged = {} if judge is None else {"judge": {"name": type(judge).__name__, "note": judge.note}}
        return {
            "protocol": self.config.protocol,
            "count": self.config.count,
            **judged,
            **metrics_document(metrics),
        }


def judged_sample(prediction: Prediction) -> JudgedSample:
    """What a judge is shown of a prediction."""
    sample = prediction.prompt.sample
    image = sample.image if sample.missing is None else None
    return JudgedSample(sample.id, sample.question, prediction.answer.reasoning, sample.reasoning, image)


def _is_curve(name: str) -> bool:
    """Whether a metric is worth a curve: overall any is, of a level only the headlines."""
    key, _, rest = name.partition("/")
    return not rest or key in CURVES_BY_LEVEL or (name.startswith(OCCURRENCES) and "/" not in rest)


def headline(config: EvaluationConfig, values: Mapping[str, float], judge: Judge | None = None) -> str:
    """The result on one line: protocol, how many were counted, both scores with their intervals, failures by cause."""
    scores = [
        f"{label} {values[name]:.4f} [{values[f'{name}_ci95_low']:.4f}, {values[f'{name}_ci95_high']:.4f}]"
        for label, name in (("gIoU", "giou"), ("cIoU", "ciou"))
    ]
    causes = {name.partition("/")[2]: int(n) for name, n in values.items() if name.startswith("failures/")}
    failures = ", ".join(f"{cause} {n}" for cause, n in causes.items() if "/" not in cause) or "none"
    seed = f"95 % bootstrap, seed {config.bootstrap_seed}"
    key = f"{judge.metric_prefix if judge is not None else ''}rscore"
    rscore = f"{key} {values[key]:.2f} of {values[key.replace('rscore', 'rated')]:.0f} rated; " if key in values else ""
    objects = f" objects of {values['expressions']:.0f} expressions" if "expressions" in values else ""
    return (
        f"protocol {config.protocol}, N = {values['n']:.0f}{objects}: {', '.join(scores)} ({seed}); "
        f"reasoning tokens {values['reasoning_tokens']:.1f}; {rscore}failures: {failures}"
    )
