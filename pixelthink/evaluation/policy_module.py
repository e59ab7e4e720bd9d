"""What every module of the package can do: load a policy, answer prompts, turn answers into masks, measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from pixelthink.answering.segmenting import missing_image_prediction, segment_answers
from pixelthink.components import resolved
from pixelthink.data.objects import ObjectTargets
from pixelthink.evaluation.missing_images import MissingImages
from pixelthink.evaluation.results import Row, recorded_prediction
from pixelthink.failures import was_asked
from pixelthink.judges.base import JUDGE_FAILURES, Judge, JudgedSample, Verdict
from pixelthink.metrics.counting import Count
from pixelthink.metrics.functional import ProtocolName, get_protocol
from pixelthink.metrics.measured import Measured, measure
from pixelthink.metrics.report import JudgedBy, SegmentationReport
from pixelthink.parallel.collectives import all_gather_object, full_tensor
from pixelthink.parallel.processes import Processes, gradient_norm
from pixelthink.parallel.sharding import run_as_forward
from pixelthink.parallel.strategy import shard_for
from pixelthink.parsing import parse_completion
from pixelthink.policies.base import EncodedPrompt, PolicyBackbone, TokenScores
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.weight_sync import SyncConfig, WeightSync
from pixelthink.segmenters.base import Segmenter
from pixelthink.training.step_guard import StepGuard
from pixelthink.types import Prediction, Prompt, PromptBatch, RolloutBatch

OCCURRENCES = ("failures/", "flaws/", "judge_failures/")
CURVES_BY_LEVEL = ("n", "giou", "ciou", "reasoning_tokens", "parse_rate")
"""What loggers are told of each difficulty level; `metrics.json` has everything of each."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How answers are measured.

    Attributes:
        protocol: Whose rules for ignored pixels and empty masks apply, see `pixelthink.metrics`.
        count: What counts once in N, gIoU and cIoU. "expression": each question. "object": each object, whose questions
            are averaged first (RefCOCO's sentences about one annotation, the texts of a ReasonSeg image); intervals
            draw objects then. Tokens, times, ratings and failures are of every answer either way.
        sampling: How answers are sampled; greedily by default, as in the released evaluation.
        bootstrap_samples: Resamples of what is counted behind the 95 % intervals.
        bootstrap_seed: Seed of the resamples.
        model_billions: Parameters of the model in billions, as the efficiency metrics shall take it (the papers say 7
            for Qwen2.5-VL-7B); without it there are none.
        token_budget: Mean reasoning tokens that answers may take; with it `giou_within_budget` is logged, for early
            stopping and the best checkpoint, see the function of that name.
        judge: Who rates the reasoning when testing and validating, but not in the validations of a training; None asks
            nobody.
    """

    protocol: ProtocolName = "segzero"
    count: Count = "expression"
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(group_size=1, temperature=0.0))
    bootstrap_samples: int = 2000
    bootstrap_seed: int = 0
    model_billions: float | None = None
    token_budget: float | None = None
    judge: Judge | None = None

    def __post_init__(self) -> None:
        if self.bootstrap_samples < 1:
            raise ValueError("evaluation.bootstrap_samples must be at least 1")
        if self.model_billions is not None and self.model_billions <= 0:
            raise ValueError(f"evaluation.model_billions must be positive, got {self.model_billions}")
        if self.token_budget is not None and self.token_budget <= 0:
            raise ValueError(f"evaluation.token_budget must be positive, got {self.token_budget}")
        if self.sampling.group_size != 1:
            raise ValueError("evaluation.sampling.group_size must be 1: every prompt is answered once")


class PolicyModule(L.LightningModule):
    """A policy under evaluation; the base of the modules that train one.

    Args:
        policy: Model family and weights.
        rollout: Engine that samples responses.
        segmenter: Turns answers into masks.
        evaluation: How answers are measured.
        max_skipped_steps: Training steps without a finite loss or gradient that a run leaves out; one more ends it.
    """

    def __init__(
        self,
        policy: PolicyBackbone,
        rollout: RolloutEngine,
        segmenter: Segmenter,
        evaluation: EvaluationConfig,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint is strict about that
        self.backbone = resolved(policy)
        self.rollout = resolved(rollout)
        self.segmenter = resolved(segmenter)
        self.evaluation = evaluation
        self.policy: nn.Module | None = None
        self.sync_config = SyncConfig()  # the callback RolloutWeightSync replaces it
        self.weight_sync: WeightSync | None = None
        self.step_guard = StepGuard(max_skipped_steps)
        self._serving = ExitStack()
        self.report = self._new_report()
        self.run_config: Mapping[str, Any] | None = None  # of the command line, for the header of results
        self.recorded: Mapping[str, Row] = {}  # rows of an interrupted run, which are not answered again
        self.measured: dict[str, Measured] = {}
        self.targets = ObjectTargets()  # of the objects, where they are counted
        self.missing_images = MissingImages()
        self.metrics: dict[str, float] = {}
        self._verdicts: dict[str, Future[Verdict]] = {}
        self._occurred: set[str] = set()

    def _new_report(self, judge: Judge | None = None) -> SegmentationReport:
        how = self.evaluation
        judged_by = JudgedBy(JUDGE_FAILURES, judge.metric_prefix) if judge is not None else None
        return SegmentationReport(
            how.protocol, how.bootstrap_samples, how.bootstrap_seed, how.model_billions, judged_by, how.count
        )

    @property
    def judge(self) -> Judge | None:
        """Who rates the reasoning in what is running now."""
        running = self._trainer is not None and self.trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING)
        return self.evaluation.judge if running else None

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.evaluation.judge is None else [_StopsJudging(self.evaluation.judge)]

    def configure_model(self) -> None:
        """Loads the models and shards them where the strategy does; Lightning may call this more than once."""
        if self.policy is not None:
            return
        self.load_models()
        if self._trainer is not None:
            shard_for(self.trainer.strategy, list(self.children()))

    def load_models(self) -> None:
        """Loads the policy. Whatever else is made of it has to be made here, before it is sharded."""
        self.backbone.setup()
        self.policy = self.backbone.load_model()
        if self.is_fitting and not any(True for _ in self.trainable_parameters()):
            raise ValueError("model.policy: no weight would be trained; a quantised policy needs model.policy.adapter")

    @property
    def processes(self) -> Processes:
        """The processes of this run."""
        return Processes(self.trainer.strategy)

    @property
    def is_fitting(self) -> bool:
        """Whether the weights are for training, be it by a trainer or by hand."""
        return self._trainer is None or self.trainer.state.fn == TrainerFn.FITTING

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        coordinates = getattr(data, "coordinates", self.backbone.convention)
        if coordinates != self.backbone.convention:
            raise ValueError(
                f"data.coordinates is {coordinates!r} but {type(self.backbone).__name__} answers in "
                f"{self.backbone.convention!r}"
            )
        self._check_last_checkpoint(stage)

    def _check_last_checkpoint(self, stage: str) -> None:
        """Where `--ckpt_path last` finds no checkpoint, a training says that it begins, anything else is refused."""
        if (self.run_config or {}).get("ckpt_path") != "last":
            return
        folders = [str(f) for saver in self.trainer.checkpoint_callbacks if (f := getattr(saver, "dirpath", None))]
        if any("://" in folder or any(Path(folder).glob("last*.ckpt")) for folder in folders):
            return
        missing = (
            f"--ckpt_path last: there is no last checkpoint in {' or '.join(folders) or 'the folder of any callback'}"
        )
        if stage != "fit":
            raise FileNotFoundError(f"{missing}; name the file, or leave the option out to take the policy as it is")
        self.print(f"pixelthink: {missing} yet, so this training begins at its beginning")

    def on_fit_start(self) -> None:
        self._start_components()

    def on_validation_start(self) -> None:
        self._start_evaluation()

    def on_test_start(self) -> None:
        self._start_evaluation()

    def on_predict_start(self) -> None:
        self._start_evaluation()

    _started = False

    def _start_components(self) -> None:
        """Starts engine and segmenter once the weights are where they belong, checkpoint included."""
        if not self._started:
            assert self.policy is not None
            self.rollout.setup(self.backbone, self.policy)
            self.weight_sync = WeightSync(self.rollout.sampler, self.backbone, self.policy, self.sync_config)
            self.segmenter.setup(str(self.device))
            if self.judge is not None:
                self.judge.setup()
                self.report = self._new_report(self.judge).to(self.device)
            self._started = True

    def _start_evaluation(self) -> None:
        """Processes may have different numbers of batches, so the engine serves all of them in one session."""
        self._start_components()
        self._serving.enter_context(self.rollout.serving())

    def sample(
        self, batch: PromptBatch, sampling: SamplingConfig, seed: int, *, evaluating: bool = False
    ) -> RolloutBatch:
        """Samples completions; an engine with weights of its own gets the policy's first, where they are due.

        Raises:
            WeightSyncError: such an engine does not sample from the policy's weights.
        """
        self.bring_up_to_date(batch, evaluating=evaluating)
        return self.rollout.generate(batch, sampling, seed)

    def bring_up_to_date(self, batch: PromptBatch, *, evaluating: bool = False) -> None:
        """Hands an engine with weights of its own the policy's, where they are due; see `WeightSync`."""
        assert self.weight_sync is not None
        self.weight_sync.bring_up_to_date(self.global_step, batch, evaluating=evaluating)

    @property
    def answer_style(self) -> str:
        """Style of the answers that the run's prompts ask for, see `pixelthink.parsing.parse_completion`."""
        prompt = getattr(getattr(self.trainer, "datamodule", None), "prompt", None)
        return prompt.answer_style if prompt is not None else "single"

    def answer(self, batch: PromptBatch) -> list[Prediction]:
        """One prediction for each prompt: answered and segmented, lost with its image, or known from before.

        A batch is answered as a whole, unless every answer is known: so a run that was interrupted gives the numbers of
        one that was not, also where an image that it had lost can be read now.
        """
        known = [self._known(prompt) for prompt in batch.prompts]
        if None in known:
            there = [i for i, prompt in enumerate(batch.prompts) if prompt.sample.missing is None]
            asked = PromptBatch(tuple(batch.prompts[i] for i in there), tuple(batch.places[i] for i in there))
            for i, prediction in zip(there, self._answer_prompts(asked), strict=True):
                known[i] = prediction
        predictions = cast("list[Prediction]", known)
        self.missing_images.add(predictions)
        return predictions

    def _known(self, prompt: Prompt) -> Prediction | None:
        """What needs no asking: an interrupted run's answer or, without an image, that there is none."""
        row = self.recorded.get(prompt.sample.id)
        if row is not None and was_asked(row["failure"]):
            return recorded_prediction(prompt, row, self.answer_style)
        return None if prompt.sample.missing is None else missing_image_prediction(prompt)

    def _answer_prompts(self, batch: PromptBatch) -> list[Prediction]:
        rollout = self.sample(batch, self.evaluation.sampling, seed=0, evaluating=True)
        answers = [parse_completion(c.text, self.answer_style) for c in rollout.completions]
        return segment_answers(batch.prompts, rollout.completions, answers, self.segmenter)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        return self._measure(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        return self._measure(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        return self.answer(batch)

    def on_validation_epoch_start(self) -> None:
        self._begin_measuring()

    def on_test_epoch_start(self) -> None:
        self._begin_measuring()

    def on_predict_epoch_start(self) -> None:
        self._begin_measuring()

    def _begin_measuring(self) -> None:
        self.measured, self._verdicts, self.targets, self.missing_images = {}, {}, ObjectTargets(), MissingImages()

    def _measure(self, batch: PromptBatch) -> list[Prediction]:
        predictions = self.answer(batch)
        for prediction in predictions:
            measured = measure(prediction, get_protocol(self.evaluation.protocol))
            if measured.id in self.measured:
                raise ValueError(f"two samples have the id {measured.id!r}, so their results could not be told apart")
            self.measured[measured.id] = measured
            if self.evaluation.count == "object":
                self.targets.add(prediction.prompt.sample)
        if self.judge is not None:
            futures = self.judge.submit([judged_sample(prediction) for prediction in predictions])
            ids = [prediction.prompt.sample.id for prediction in predictions]
            self._verdicts |= dict(zip(ids, futures, strict=True))
        return predictions

    def _collect_verdicts(self) -> None:
        """Waits for the judge; a sample that it did not rate keeps the reason."""
        for name, future in self._verdicts.items():
            verdict = future.result()
            self.measured[name] = replace(
                self.measured[name],
                rscore=verdict.score,
                judge_failure=verdict.failure,
                judge_detail=verdict.detail,
            )
        if self._verdicts and self.judge is not None:
            self.judge.close()
        self._verdicts = {}

    def on_validation_end(self) -> None:
        self.rollout.sleep()

    def on_test_end(self) -> None:
        self.rollout.sleep()

    def on_predict_end(self) -> None:
        self.rollout.sleep()

    def on_validation_epoch_end(self) -> None:
        self._serving.close()
        self._log_report("val")

    def on_test_epoch_end(self) -> None:
        self._serving.close()
        self._log_report("test")

    def on_predict_epoch_end(self) -> None:
        self._serving.close()
        self.missing_images.check(self.processes)

    def _log_report(self, prefix: str) -> None:
        """Computes the metrics of all processes' samples, and sends them to logger and progress bar."""
        self._collect_verdicts()
        self.missing_images.check(self.processes)
        if self.evaluation.count == "object":
            for targets in all_gather_object(self.targets.known):
                self.targets.merge(targets)
        self.report.update(list(self.measured.values()))
        self.metrics = self.report.compute()
        self.report.reset()
        curves = {name: value for name, value in self.metrics.items() if _is_curve(name)}
        self._occurred |= {name for name in curves if name.startswith(OCCURRENCES)}
        values = dict.fromkeys(self._occurred, 0.0) | curves  # what has occurred once goes back to 0
        if (budget := self.evaluation.token_budget) is not None:
            scores = self.metrics["giou"], self.metrics["reasoning_tokens"]
            values["giou_within_budget"] = giou_within_budget(*scores, budget)
        self.log_dict({f"{prefix}/{name}": value for name, value in values.items()})  # equal on all processes
        self.log("gIoU", self.metrics["giou"], prog_bar=True, logger=False)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.print(headline(self.evaluation, self.metrics))

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that an optimizer may change."""
        assert self.policy is not None
        return (p for p in self.policy.parameters() if p.requires_grad)

    def score(
        self,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Tensor],
        prompt_index: Sequence[int],
        with_entropy: bool = False,
    ) -> TokenScores:
        """Scores completions under the policy as `PolicyBackbone.score` does, with gradient; all processes together."""
        policy = self.policy
        assert policy is not None

        def forward() -> tuple[Tensor, Tensor | None]:
            scores = self.backbone.score(policy, prompts, completions, prompt_index, with_entropy)
            return scores.logprobs, scores.entropy

        return TokenScores(*run_as_forward(policy, forward))

    def step_optimizer(self, loss: Tensor, max_grad_norm: float) -> Tensor:
        """One step of the optimizer and its schedule, with the gradients of all processes, clipped; clears them.

        A step whose loss or gradient is not finite is left out, on all processes alike.

        Args:
            loss: Of the step, over all processes; a scalar.
            max_grad_norm: Gradients are scaled down to this norm.

        Returns:
            The norm that the gradients had, a scalar.

        Raises:
            TrainingDiverged: if more steps were left out than `max_skipped_steps`.
        """
        optimizer, schedule = cast("LightningOptimizer", self.optimizers()), self.lr_schedulers()
        parameters = list(self.trainable_parameters())
        self.processes.add_up_gradients(parameters)
        norm = gradient_norm(parameters)
        whole_norm = full_tensor(norm)
        if self.step_guard.allows(self.global_step, float(loss), float(whole_norm)):
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()  # type: ignore[union-attr]
        optimizer.zero_grad()
        self.log("train/skipped_steps", float(self.step_guard.skipped))
        return whole_norm

    def checkpointed(self) -> set[str]:
        """Names of what a checkpoint holds: everything but those of the policy's weights that nobody trains."""
        assert self.policy is not None
        policy = {f"policy.{name}" for name in self.backbone.checkpointed(self.policy)}
        return {name for name in self.state_dict() if name in policy or not name.startswith("policy.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what can be loaded from elsewhere, such as the weights below an adapter."""
        checkpoint["skipped_steps"] = self.step_guard.skipped
        kept = self.checkpointed()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another policy, which loading without the weights left out would let pass.

        Raises:
            ValueError: weights of the policy are missing, or there are others; one line that names the first.
        """
        self.step_guard.skipped = checkpoint.get("skipped_steps", 0)
        if "state_dict" not in checkpoint:  # a sharded checkpoint, which its strategy has loaded
            return
        own, found = self.checkpointed(), set(checkpoint["state_dict"])
        for names, what in ((own - found, "lacks"), (found - own, "has, besides the policy's,")):
            if names:
                raise ValueError(
                    f"the checkpoint is another policy's: it {what} {len(names)} weights, {min(names)!r} first"
                )


class _StopsJudging(Callback):
    """Leaves a judge's waiting samples alone when a run fails, so that it can end."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.judge.close()


def judged_sample(prediction: Prediction) -> JudgedSample:
    """What a judge is shown of a prediction."""
    sample = prediction.prompt.sample
    image = sample.image if sample.missing is None else None
    return JudgedSample(sample.id, sample.question, prediction.answer.reasoning, sample.reasoning, image)


def _is_curve(name: str) -> bool:
    """Whether a metric is worth a curve: overall any is, of a level only the headlines."""
    key, _, rest = name.partition("/")
    return not rest or key in CURVES_BY_LEVEL or (name.startswith(OCCURRENCES) and "/" not in rest)


def giou_within_budget(giou: float, tokens: float, budget: float) -> float:
    """One number by which the best checkpoint within a budget of reasoning tokens can be chosen; higher is better.

    Within the budget it is gIoU. Above it is 1 − tokens / budget, which is negative: so whatever keeps the budget is
    better than all that does not, of which the shortest is best.

    Args:
        giou: In 0 to 1.
        tokens: Mean reasoning tokens.
        budget: What they may be.
    """
    return giou if tokens <= budget else 1 - tokens / budget


def headline(evaluation: EvaluationConfig, values: Mapping[str, float]) -> str:
    """The result on one line: protocol, how many were counted, both scores with their intervals, failures by cause."""
    scores = [
        f"{label} {values[name]:.4f} [{values[f'{name}_ci95_low']:.4f}, {values[f'{name}_ci95_high']:.4f}]"
        for label, name in (("gIoU", "giou"), ("cIoU", "ciou"))
    ]
    causes = {name.partition("/")[2]: int(n) for name, n in values.items() if name.startswith("failures/")}
    failures = ", ".join(f"{cause} {n}" for cause, n in causes.items() if "/" not in cause) or "none"
    seed = f"95 % bootstrap, seed {evaluation.bootstrap_seed}"
    judge = evaluation.judge
    key = f"{judge.metric_prefix if judge is not None else ''}rscore"
    rscore = f"{key} {values[key]:.2f} of {values[key.replace('rscore', 'rated')]:.0f} rated; " if key in values else ""
    objects = f" objects of {values['expressions']:.0f} expressions" if "expressions" in values else ""
    return (
        f"protocol {evaluation.protocol}, N = {values['n']:.0f}{objects}: {', '.join(scores)} ({seed}); "
        f"reasoning tokens {values['reasoning_tokens']:.1f}; {rscore}failures: {failures}"
    )
