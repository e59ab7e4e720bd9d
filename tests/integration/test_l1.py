"""L1 through the command line: prompts ask for a length, the reward reads it, and rows keep it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixelthink.cli.main import main
from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt, TokenTargets
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.rewards.composite import L1Reward
from pixelthink.rewards.length import L1Max
from pixelthink.types import Completion, RolloutBatch
from tests.support import ROOT, tiny_run

TARGETS = TokenTargets(rule="either", fewest=10, most=60)
LAYER = [f"--config={ROOT}/configs/reward/l1_max.yaml", "--data.prompt.target.rule=either"]
RANGE = ["--data.prompt.target.fewest=10", "--data.prompt.target.most=60"]


def test_a_prompt_carries_what_it_asks_for_to_the_reward_on_any_process() -> None:
    scenes = ShapeScenes(split="train", size=4, seed=1)
    batches = [
        Collate(ShortPrompt(target=TARGETS), (112, 112), "pixels", rank, world)(
            [scenes[i] for i in range(rank, 4, world)]
        )
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    alone, first, second = ([prompt.token_target for prompt in batch.prompts] for batch in batches)
    assert alone == [asked for pair in zip(first, second, strict=True) for asked in pair]
    prompts = batches[0].prompts
    for prompt in prompts:
        asked = prompt.token_target
        assert asked == TARGETS.of(prompt.sample.id)
        words = f"Think for {'maximum ' if asked.at_most else ''}{asked.tokens} tokens."
        assert prompt.messages[-1]["content"][1]["text"].endswith(f". {words}")
    response = Completion((5,) * 30, (0.0,) * 30, "no answer", "stop", reasoning_tokens=7, uncertainty=None)
    scores = L1Reward(length=L1Max(alpha=0.01))(RolloutBatch(prompts, (response,) * 4, 1)).scores
    for score, prompt in zip(scores, prompts, strict=True):
        asked = prompt.token_target
        assert asked is not None
        assert (score.length_used, score.length_budget) == (30, asked.tokens)
        expected = 0.0 if asked.at_most else -0.01 * abs(30 - asked.tokens)  # it is wrong
        assert score.reward == pytest.approx(expected)


@pytest.mark.slow
def test_a_run_trains_with_it_and_rows_keep_it(tmp_path: Path, tiny_policy_path: Path) -> None:
    options = [*tiny_run(tmp_path, tiny_policy_path), *LAYER, *RANGE]
    main(["fit", *options])
    assert (tmp_path / "policy" / "config.json").is_file()
    results = f"[{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/results}}}}]"
    main(["test", *options, f"--trainer.callbacks={results}"])
    rows = [json.loads(line) for line in (tmp_path / "results/samples.jsonl").read_text().splitlines()]
    drawn = [TARGETS.of(row["id"]) for row in rows]
    assert [row["token_target"] for row in rows] == [{"tokens": d.tokens, "at_most": d.at_most} for d in drawn]
    written = f"[{{class_path: PredictionWriter, init_args: {{path: {tmp_path}/answers}}}}]"
    main(["predict", *options, "--data.prompt.target.tokens=12", f"--trainer.callbacks={written}"])
    rows = [json.loads(line) for line in (tmp_path / "answers/predictions.jsonl").read_text().splitlines()]
    assert [row["token_target"]["tokens"] for row in rows] == [12] * 3
