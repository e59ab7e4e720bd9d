"""The command line as a user meets it: subcommands, printed configs, help, overrides, what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

from pixelthink.cli.main import DEFAULT_CONFIG, main, with_default_config
from pixelthink.geometry import decode_rle
from tests.support import ROOT, callbacks, tiny_run

Run = tuple[Path, EventAccumulator]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_policy_path: Path) -> Run:
    """Folder and TensorBoard events of two steps of GRPO with one validation."""
    folder = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_run(folder, tiny_policy_path)])
    events = EventAccumulator(str(folder / "logs"), size_guidance={"images": 0})
    events.Reload()
    return folder, events


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `--print_config` prints."""
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which a command ends."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pixelthink: error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_fit_logs_every_number_worth_a_curve(trained: Run) -> None:
    _, events = trained
    scalars = set(events.Tags()["scalars"])
    parts = {f"train/reward_{part}" for part in ("think_format", "answer_format", "box_iou", "point_l1", "box_l1")}
    assert {"train/reward", "train/length_score", "train/reasoning_tokens", "train/uncertainty", *parts} <= scalars
    assert any(name.startswith("train/reasoning_tokens_") for name in scalars)
    assert {"loss/loss", "loss/kl", "loss/entropy", "loss/clip_fraction", "loss/grad_norm"} <= scalars
    assert {"train/flat_groups", "train/tokens_per_second"} <= scalars
    assert {f"seconds/{phase}" for phase in ("generate", "reward", "logprobs", "update", "step")} <= scalars
    assert {"val/giou", "val/ciou", "val/reasoning_tokens", "val/parse_rate"} <= scalars
    assert [event.step for event in events.Scalars("train/reward")] == [0, 1]


@pytest.mark.slow
def test_fit_shows_one_panel_for_each_validated_sample(trained: Run) -> None:
    _, events = trained
    panels = [tag for tag in events.Tags()["images"] if tag.startswith("samples/")]
    assert len(panels) == 4
    image = events.Images(panels[0])[0]
    assert image.width > 600
    assert image.height > 336


@pytest.mark.slow
def test_exported_policy_gives_the_logits_of_the_trained_one(trained: Run) -> None:
    folder, _ = trained
    exported = AutoModelForImageTextToText.from_pretrained(folder / "policy").eval()
    processor = AutoProcessor.from_pretrained(folder / "policy")
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in state if name.startswith("reference_model.")]
    in_memory = AutoModelForImageTextToText.from_config(exported.config).eval()
    in_memory.load_state_dict({name.removeprefix("policy."): value for name, value in state.items()})
    inputs = processor.tokenizer("find the red circle", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(exported(**inputs).logits, in_memory(**inputs).logits)


@pytest.mark.slow
def test_training_changes_the_policy(trained: Run, tiny_policy_path: Path) -> None:
    start = AutoModelForImageTextToText.from_pretrained(tiny_policy_path).state_dict()
    end = AutoModelForImageTextToText.from_pretrained(trained[0] / "policy").state_dict()
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.slow
def test_validate_from_a_checkpoint(trained: Run, tiny_policy_path: Path, tmp_path: Path, capsys) -> None:
    checkpoint = trained[0] / "checkpoints/last.ckpt"
    main(["validate", *tiny_run(tmp_path, tiny_policy_path), f"--ckpt_path={checkpoint}"])
    assert "val/giou" in capsys.readouterr().out


@pytest.mark.slow
def test_test_writes_metrics_and_every_sample(tiny_policy_path: Path, tmp_path: Path) -> None:
    writer = f"--trainer.callbacks=[{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/out}}}}]"
    main(["test", *tiny_run(tmp_path, tiny_policy_path), writer])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"giou", "ciou", "reasoning_tokens", "parse_rate"} <= metrics.keys()
    assert len({row["id"] for row in rows}) == 4
    failed = [row for row in rows if row["failure"] is not None]
    assert metrics["parse_rate"] == pytest.approx(1 - len(failed) / 4)
    assert all(not decode_rle(row["prediction"]).any() for row in failed)


@pytest.mark.slow
def test_predict_answers_each_sample(tiny_policy_path: Path, tmp_path: Path) -> None:
    writer = f"--trainer.callbacks=[{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/out}}}}]"
    main(["predict", *tiny_run(tmp_path, tiny_policy_path), writer])
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["shapes-test-0-0", "shapes-test-0-1", "shapes-test-0-2"]
    assert decode_rle(rows[0]["prediction"]).shape == (112, 112)
    assert np.asarray(decode_rle(rows[0]["target"])).any()


def test_print_config_is_a_config_that_parses_to_the_same(tmp_path: Path, capsys) -> None:
    printed = printed_config(capsys, "fit", f"--config={ROOT / 'configs/tiny.yaml'}")
    again = tmp_path / "again.yaml"
    again.write_text(printed, encoding="utf-8")
    assert printed_config(capsys, "fit", f"--config={again}") == printed
    config = yaml.safe_load(printed)
    assert config["model"]["init_args"]["reward"]["init_args"]["iou"]["init_args"] == {"threshold": 0.5}


def test_overrides_change_one_option_and_keep_the_rest(capsys) -> None:
    options = ("--model.reward.length=NoLengthScore", "--model.reward.length=TokenBudget")
    options += ("--model.reward.iou.threshold=0.7", "--model.reward.length.floor=0.1")
    config = yaml.safe_load(printed_config(capsys, "fit", f"--config={ROOT / 'configs/tiny.yaml'}", *options))
    reward = config["model"]["init_args"]["reward"]["init_args"]
    assert reward["length"]["class_path"] == "pixelthink.rewards.length.TokenBudget"
    assert reward["length"]["init_args"]["floor"] == 0.1
    assert reward["iou"] == {
        "class_path": "pixelthink.rewards.localization.BoxIoU",
        "init_args": {"threshold": 0.7},
    }
    assert reward["box_l1"]["init_args"] == {"threshold": 4.0}


@pytest.mark.parametrize(("variable", "expected"), [(None, "data/val"), ("/elsewhere", "/elsewhere/val")])
def test_environment_variables_in_a_config(variable, expected, tmp_path, capsys, monkeypatch) -> None:
    if variable is None:
        monkeypatch.delenv("PIXELTHINK_DATA", raising=False)
    else:
        monkeypatch.setenv("PIXELTHINK_DATA", variable)
    config = tmp_path / "data.yaml"
    config.write_text(
        "data:\n  val:\n    class_path: ReasonSeg\n    init_args:\n      root: ${oc.env:PIXELTHINK_DATA,data}/val\n",
        encoding="utf-8",
    )
    printed = printed_config(capsys, "validate", f"--config={ROOT / 'configs/tiny.yaml'}", f"--config={config}")
    assert yaml.safe_load(printed)["data"]["val"]["init_args"]["root"] == expected


@pytest.mark.parametrize(
    ("options", "explained"),
    [
        (["--model.help=GRPOModule"], "Completions per prompt."),
        (["--model.help=GRPOModule"], "Model family and weights to start from"),
        (["--help"], "Training prompts per step, over all processes."),
    ],
)
def test_help_explains_options(options: list[str], explained: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *options])
    assert end.value.code == 0
    assert explained in " ".join(capsys.readouterr().out.split())


def test_without_a_config_the_default_one_runs(capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    default = ["--config", str(DEFAULT_CONFIG)]
    assert with_default_config(["fit"]) == ["fit", *default]
    assert capsys.readouterr().err.count("\n") == 1
    assert with_default_config(["test", "--data.test.size=8"]) == ["test", *default, "--data.test.size=8"]
    assert with_default_config(["fit", "--print_config"]) == ["fit", *default, "--print_config"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["fit", "--config=a.yaml"], ["fit", "--config", "a.yaml"], ["fit", "-c", "a.yaml"], ["fit", "-ca.yaml"]),
        *(["fit", "--help"], ["fit", "--model.help=GRPOModule"], ["fit", "--model.help", "GRPOModule"]),
        *(["fit", "--model=SFTModule"], ["--help"], [], ["fitt"]),
    ],
)
def test_arguments_that_need_no_default_config_stay(arguments: list[str]) -> None:
    assert with_default_config(arguments) == arguments


def test_no_config_and_no_default_one_here(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_line(capsys, "fit") == (
        "pixelthink: error: no --config given, and there is no configs/tiny.yaml here to run by default"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.reward.length=TokenBudgt"],
            "--model.reward.length: unknown length score 'TokenBudgt', did you mean 'TokenBudget'? "
            "(known length score components: ",
        ),
        (["--model=GRPOModul"], "--model: unknown module 'GRPOModul', did you mean 'GRPOModule'? "),
        (["--data.train=Shapes"], "--data.train: unknown sample source 'Shapes', did you mean 'ShapeScenes'? "),
        (["--trainer.callbacks+=HFExprt"], "--trainer.callbacks: unknown callback 'HFExprt', did you mean 'HFExport'?"),
        (["--model.policy=no.such.Policy"], "--model.policy: no.such.Policy: No module named 'no'"),
        (
            ["--model.reward.iou.treshold=0.7"],
            "--model.reward.iou.treshold: no such option, did you mean 'threshold'? (known: threshold)",
        ),
        (["--model.reward.iou.threshold=abc"], "--model.reward.iou.threshold: expected float, got 'abc'"),
        (["--data.coordinates=xx"], "--data.coordinates: expected one of 'pixels', 'per_mille', got 'xx'"),
        (["--data.batchsize=3"], "no such option: --data.batchsize=3, did you mean 'batch_size'?"),
        (["--model.grpo.clip=-1"], "grpo: clip must lie in (0, 1); kl_coef and entropy_coef must not be negative"),
        (["--model.sampling.group_size=1"], "model.sampling.group_size is 1: GRPO compares the completions of a group"),
        (
            ["--model.grpo.loss_norm_tokens=512"],
            "model.grpo.loss_norm_tokens is 512, which loss_aggregation token-mean does not read: set that to "
            "seq-mean-token-sum-norm, or leave loss_norm_tokens out",
        ),
        (
            ["--model.grpo.rollout_correction_cap=3"],
            "model.grpo.rollout_correction_cap is 3, but rollout_correction is none: set that, e.g. to token_truncate",
        ),
        (
            [
                *("--model.grpo.loss_norm_tokens=512", "--model.grpo.loss_aggregation=seq-mean-token-sum-norm"),
                *("--model.grpo.rollout_correction_cap=3", "--model.grpo.rollout_correction=token_mask"),
                "--model.policy.path=./nope",
            ],
            "policy.path: no config.json in './nope'",  # the constants are read, so the next fault is named
        ),
        (["--ckpt_path=nope.ckpt"], "--ckpt_path: there is no checkpoint 'nope.ckpt'"),
        (["--model.policy.path=./nope"], "policy.path: no config.json in './nope', so there is no model to load"),
        (["--model.policy.path=no/pe"], "policy.path: cannot load 'no/pe', no such folder, nor a model of the hub"),
        (["--config=nope.yaml"], "--config: there is no file 'nope.yaml'"),
    ],
)
def test_errors_take_one_line_and_name_the_option(options, message, capsys, tmp_path) -> None:
    base = [f"--config={ROOT / 'configs/tiny.yaml'}", "--trainer.logger=false", "--trainer.callbacks=null"]
    base.append(f"--trainer.default_root_dir={tmp_path}")
    line = error_line(capsys, "fit", *base, *options)
    assert line.startswith(f"pixelthink: error: {message}")
    assert len(line) < 400


@pytest.mark.slow
def test_last_without_a_checkpoint(tmp_path: Path, tiny_policy_path: Path, capsys) -> None:
    run = (*tiny_run(tmp_path, tiny_policy_path), "--ckpt_path=last")
    for subcommand in ("test", "validate", "predict"):
        error = error_line(capsys, subcommand, *run)
        assert f"--ckpt_path last: there is no last checkpoint in {tmp_path}/checkpoints; name the file" in error
    main(["fit", *run])
    output = capsys.readouterr()
    notice = f"pixelthink: --ckpt_path last: there is no last checkpoint in {tmp_path}/checkpoints yet, so"
    assert output.out.count(notice) == 1
    assert "no last checkpoint available" not in output.err
    writer = f"{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/out}}}}"
    main(["test", *run, f"--trainer.callbacks={callbacks(tmp_path)[:-1]}, {writer}]"])  # now there is one
    assert "protocol segzero, N = 4" in capsys.readouterr().out
    header = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))
    assert header["checkpoint"] == str(tmp_path / "checkpoints/last.ckpt")


@pytest.mark.slow
def test_the_progress_bar_shows_reward_length_and_giou(tmp_path: Path, tiny_policy_path: Path, capsys) -> None:
    options = ("--trainer.enable_progress_bar=true", "--trainer.callbacks=TQDMProgressBar")
    main(["fit", *tiny_run(tmp_path, tiny_policy_path), *options])
    shown = capsys.readouterr()
    last = (shown.out + shown.err).replace("\n", "\r").split("\r")
    bars = [line for line in last if "reward=" in line and "gIoU=" in line]
    assert bars
    numbers = dict(part.split("=") for part in bars[-1].rstrip("]").split(", ") if "=" in part)
    assert 0 <= float(numbers["reward"]) <= 5
    assert float(numbers["think_tokens"]) >= 0
    assert 0 <= float(numbers["gIoU"]) <= 1


@pytest.mark.parametrize(
    "options",
    [("--model.reward=VisionReasonerReward",), ("--data.prompt=VisionReasonerPrompt",)],
    ids=["reward", "prompt"],
)
def test_a_reward_that_reads_other_answers_than_the_prompt(options, tmp_path, tiny_policy_path, capsys) -> None:
    error = error_line(capsys, "fit", *tiny_run(tmp_path, tiny_policy_path), *options)
    assert "data.prompt asks for answers in style" in error
    assert "every answer would fail" in error
