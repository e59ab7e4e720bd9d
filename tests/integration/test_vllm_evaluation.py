"""`test` and `validate` as a user types them, answered by vLLM in the process and by transformers: the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pixelthink.cli.main import main
from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.results import read_document
from tests.integration.test_evaluation import as_program, untimed
from tests.support import ROOT

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow


def options(folder: Path, *more: str) -> list[str]:
    """16 samples under `configs/tiny.yaml`."""
    sizes = ("--data.test.size=16", "--data.val.size=16", "--data.eval_batch_size=8")
    policy = f"--model.policy.path={ROOT / 'assets/tiny_policy'}"
    writer = ("--trainer.callbacks=ResultsWriter", f"--trainer.callbacks.path={folder}", "--trainer.logger=false")
    return [f"--config={ROOT / 'configs/tiny.yaml'}", policy, *sizes, *writer, *more]


@pytest.mark.parametrize("stage", ["test", "validate"])
def test_vllm_gives_the_rows_of_transformers(stage: str, tmp_path: Path) -> None:
    main([stage, *options(tmp_path / "transformers")])
    done = as_program(stage, *options(tmp_path / "vllm", "--model.rollout=VLLMEngine"))
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (read_run(tmp_path / name).rows for name in ("vllm", "transformers"))
    assert len(ours) == 16
    for one, other in zip(ours, theirs, strict=True):
        assert one["uncertainty"] == pytest.approx(other["uncertainty"], abs=1e-5)
        unequal: dict[str, Any] = {"uncertainty": None, "timings": None}
        assert one | unequal == other | unequal
        assert all(value is not None for value in one["timings"].values())
    metrics = [untimed(read_document(tmp_path / name, "metrics.json")) for name in ("vllm", "transformers")]
    assert metrics[0] == metrics[1]
    said = next(line for line in done.stdout.splitlines() if line.startswith("protocol segzero, N = 16: gIoU "))
    assert f"gIoU {metrics[0]['giou']:.4f} [" in said
    run = read_document(tmp_path / "vllm", "run.json")
    assert (run["stage"], run["engine"]) == (stage, "pixelthink.rollouts.vllm.VLLMEngine")
    assert run["weights"] == read_document(tmp_path / "transformers", "run.json")["weights"]
    assert json.loads((tmp_path / "vllm/metrics.json").read_text())["samples_per_second"] > 0
