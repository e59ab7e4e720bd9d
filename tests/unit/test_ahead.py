"""Sampling the next rollout during a step: batches that know their successor, and what a checkpoint keeps."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from torch import nn

from pixelthink.cli.main import main
from pixelthink.data.collate import Collate
from pixelthink.data.loader import EpochSampler, ResumableLoader
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.ahead import RolloutAhead
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.types import Completion, PromptBatch, RolloutBatch, Timings
from tests.support import tiny_run

SAMPLING = SamplingConfig(group_size=2)
COLLATE = Collate(ShortPrompt(), (112, 112), "pixels")


class Gated(RolloutEngine):
    """Answers with its seed once the gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = 0

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        """Nothing."""

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        self.asked += 1
        assert self.gate.wait(10)
        if seed < 0:
            raise OSError("the server is gone")
        completion = Completion((seed, 1), (-0.5, -1.25), str(seed), "stop", 0, 0.25, timings=Timings(decoding_ms=2.0))
        return RolloutBatch(batch.prompts, (completion,) * (2 * len(batch)), 2, policy_version=7)


def batch(first: int) -> PromptBatch:
    source = ShapeScenes(size=8)
    return COLLATE([source[first], source[first + 1]])


def test_batches_know_their_successor_and_the_position_stays_that_of_what_was_handed_out() -> None:
    def loader() -> ResumableLoader:
        return ResumableLoader(ShapeScenes(size=6), EpochSampler(6, 2), look_ahead=True, collate_fn=COLLATE)

    def ids(of: PromptBatch | None) -> list[str] | None:
        return None if of is None else [prompt.sample.id for prompt in of.prompts]

    whole = list(loader())
    assert [ids(b.upcoming) for b in whole] == [ids(whole[1]), ids(whole[2]), None]
    broken = loader()
    next(iter(broken))
    assert broken.state_dict() == {"epoch": 0, "batches": 1}
    resumed = loader()
    resumed.load_state_dict(broken.state_dict())
    assert [ids(b) for b in resumed] == [ids(b) for b in whole[1:]]
    assert list(ResumableLoader(ShapeScenes(size=4), EpochSampler(4, 4), look_ahead=True, collate_fn=COLLATE))


def test_a_rollout_is_sampled_meanwhile_and_taken_for_its_own_batch_and_seed_alone() -> None:
    engine, ahead = Gated(), RolloutAhead()
    assert ahead.take(batch(0), 5) is None
    ahead.begin(engine, batch(0), SAMPLING, 5)  # returns although the gate is shut
    engine.gate.set()
    rollout = ahead.take(batch(0), 5)
    assert rollout is not None
    assert [c.text for c in rollout.completions] == ["5"] * 4
    assert ahead.take(batch(0), 5) is None
    for other, seed in ((batch(2), 5), (batch(0), 6)):
        ahead.begin(engine, batch(0), SAMPLING, 5)
        assert ahead.take(other, seed) is None
    assert engine.asked == 3


def test_a_checkpoint_keeps_what_was_begun() -> None:
    engine, ahead = Gated(), RolloutAhead()
    engine.gate.set()
    assert ahead.state_dict() is None
    ahead.begin(engine, batch(0), SAMPLING, 5)
    state = json.loads(json.dumps(ahead.state_dict()))  # plain values
    sampled = ahead.take(batch(0), 5)
    resumed = RolloutAhead()
    resumed.load_state_dict(state)
    kept = resumed.take(batch(0), 5)
    assert kept is not None
    assert sampled is not None
    assert kept.completions == sampled.completions
    assert (kept.group_size, kept.policy_version) == (2, 7)
    resumed.load_state_dict(state)
    assert resumed.take(batch(2), 5) is None


def test_what_went_wrong_is_said_by_the_next_step_or_checkpoint() -> None:
    engine, ahead = Gated(), RolloutAhead()
    engine.gate.set()
    ahead.begin(engine, batch(0), SAMPLING, -1)
    ahead.wait()
    with pytest.raises(OSError, match="the server is gone"):
        ahead.state_dict()  # nothing is saved that could not be resumed identically
    with pytest.raises(OSError, match="the server is gone"):
        ahead.take(batch(0), -1)


SERVER = (
    "--model.rollout=VLLMServerEngine",
    "--model.rollout.servers=[http://127.0.0.1:9]",
    "--model.rollout.weights_folder=.",
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.grpo.rollout_correction=token_truncate",), "sample_ahead: HFEngine samples in this process"),
        (SERVER, "sample_ahead is off-policy: set grpo.rollout_correction"),
    ],
)
def test_where_it_cannot_work_it_is_refused(
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    tiny_policy_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *tiny_run(tmp_path, tiny_policy_path), "--model.sample_ahead=true", *options])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
