"""tools/import_checkpoint.py on shards that torch itself wrote in several processes, and on hostile ones."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelthink.files.model_folder import write_model_folder
from tests.sharded_checkpoints import MODEL, bits, launch, tiny
from tests.tiny_models import tiny_model
from tools import import_checkpoint

LAYOUTS = {
    2: ("fsdp2", "fsdp1_dtensor", "fsdp1_sharded", "columns", "plain"),
    3: ("fsdp2", "fsdp1_dtensor", "fsdp1_sharded", "columns", "plain"),
    4: ("hybrid", "twice", "replicated"),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model under `huggingface`, its weights in bfloat16."""
    folder = tmp_path_factory.mktemp("sharded")
    _, model = tiny_model("qwen2.5", tied=False)
    model.to(torch.bfloat16).save_pretrained(folder / MODEL)
    (folder / MODEL / "tokenizer_config.json").write_text("{}")
    return folder


def run(checkpoint: Path, output: Path, *more: str) -> int:
    return import_checkpoint.main([f"--checkpoint={checkpoint}", f"--output={output}", *more])


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_weights_come_back_bit_for_bit(model_folder: Path, tmp_path: Path, world: int) -> None:
    launch(model_folder, world)
    original = tiny(model_folder / MODEL)
    tokens = torch.arange(1, 40)[None]
    logits = original(input_ids=tokens).logits
    expected = original.state_dict()
    for layout in LAYOUTS[world]:
        checkpoint = model_folder / f"{layout}_{world}"
        output = tmp_path / layout
        assert run(checkpoint, output, f"--base={model_folder / MODEL}") == 0, layout
        made = tiny(output)
        assert made.config.dtype == torch.bfloat16
        found = made.state_dict()
        assert found.keys() == expected.keys()
        assert all(bits(found[name]) == bits(expected[name]) for name in expected), layout
        assert bits(made(input_ids=tokens).logits.detach()) == bits(logits.detach())
        assert (output / "tokenizer_config.json").read_text() == "{}"
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def plain_checkpoint(folder: Path, model: Path, **changes: Any) -> Path:
    """Two ranks that hold the whole model, with the config beside; `changes` are rank 1's."""
    folder.mkdir()
    shutil.copytree(model, folder / MODEL)
    state = tiny(model).state_dict()
    for rank, extra in ((0, {}), (1, changes)):
        torch.save({**state, **extra}, folder / f"model_world_size_2_rank_{rank}.pt")
    return folder


def failure(capsys: pytest.CaptureFixture[str], checkpoint: Path, output: Path, *more: str) -> str:
    """The one line with which the tool refuses a checkpoint."""
    capsys.readouterr()
    assert run(checkpoint, output, *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_the_config_beside_and_another_precision(model_folder: Path, tmp_path: Path) -> None:
    checkpoint = plain_checkpoint(tmp_path / "actor", model_folder / MODEL)
    assert run(checkpoint, tmp_path / "out", "--dtype=float32") == 0
    from transformers import Qwen2_5_VLForConditionalGeneration

    made = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert made.dtype == torch.float32
    for name, tensor in tiny(model_folder / MODEL).state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor.float())


def test_names_of_older_versions_of_transformers(model_folder: Path, tmp_path: Path) -> None:
    """verl's checkpoints of transformers 4.49 and before name the decoder `model.…` and the vision tower `visual.…`."""
    original = tiny(model_folder / MODEL).state_dict()
    older = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in original.items()
    }
    assert not older.keys() & (original.keys() - {"lm_head.weight"})
    (tmp_path / "actor").mkdir()
    torch.save(older, tmp_path / "actor/model_world_size_1_rank_0.pt")
    assert run(tmp_path / "actor", tmp_path / "out", f"--base={model_folder / MODEL}") == 0
    found = tiny(tmp_path / "out").state_dict()
    assert all(bits(found[name]) == bits(original[name]) for name in original)


@pytest.mark.parametrize("both", [True, False])
def test_tied_weights_may_be_stored_once_or_twice(tmp_path: Path, both: bool) -> None:
    _, model = tiny_model("qwen2.5", tied=True)
    model.save_pretrained(tmp_path / MODEL)
    state = {name: tensor for name, tensor in model.state_dict().items() if both or name != "lm_head.weight"}
    torch.save(state, tmp_path / "model_world_size_1_rank_0.pt")
    assert run(tmp_path, tmp_path / "out") == 0
    found = type(model).from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


class Harm:
    """Unpickles by a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = (call, arguments)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize(
    ("call", "named"), [(os.system, "system"), (eval, "eval"), (torch.load, "load"), (os.remove, "remove")]
)
def test_a_pickle_that_asks_for_code_is_refused(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], call: Any, named: str
) -> None:
    checkpoint = plain_checkpoint(tmp_path / "actor", model_folder / MODEL)
    witness = tmp_path / "witness"
    witness.write_text("still here")
    argument = {os.system: f"rm {witness}", eval: f"__import__('os').remove({str(witness)!r})"}.get(call, str(witness))
    bad = checkpoint / "model_world_size_2_rank_1.pt"
    state = torch.load(bad)
    torch.save({**state, "x": Harm(call, argument)}, bad)
    error = failure(capsys, checkpoint, tmp_path / "out")
    assert error.startswith(f"error: {bad}: refused: it asks for ")
    assert named in error
    assert witness.read_text() == "still here"
    assert not (tmp_path / "out").exists()


def test_getattr_gives_nothing_away(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ShardedTensor's pickles name `getattr`; what they get by it is inert."""
    checkpoint = plain_checkpoint(tmp_path / "actor", model_folder / MODEL)
    bad = checkpoint / "model_world_size_2_rank_1.pt"

    class Asking:
        def __reduce__(self) -> Any:
            return getattr, (torch.Size([1]), "__class__")

    torch.save({"x": Asking()}, bad)
    assert "no state dict of tensors" in failure(capsys, checkpoint, tmp_path / "out")


def test_a_program_in_place_of_weights_is_refused(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = plain_checkpoint(tmp_path / "actor", model_folder / MODEL)
    bad = checkpoint / "model_world_size_2_rank_0.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(bad))
    assert "refused: it asks for a TorchScript program" in failure(capsys, checkpoint, tmp_path / "out")
    bad.write_bytes(pickle.dumps({"x": Harm(os.system, "true")}))  # as torch wrote before it used zip files
    assert "damaged, or not written by torch.save" in failure(capsys, checkpoint, tmp_path / "out")


def test_what_does_not_fit_is_one_line(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "lm_head.weight"
    weight = tiny(model_folder / MODEL).state_dict()[name]
    model = model_folder / MODEL
    for number, (changes, message) in enumerate(
        (
            ({name: weight + 1}, f"{name}: replicas differ"),
            ({name: weight[:3]}, f"{name}: replicas differ"),
            ({"new": weight}, "ranks 0 and 1 hold different weights: 'new'"),
        )
    ):
        checkpoint = plain_checkpoint(tmp_path / str(number), model, **changes)
        assert message in failure(capsys, checkpoint, tmp_path / "out")
    checkpoint = plain_checkpoint(tmp_path / "actor", model)
    assert "/nowhere: there is no config.json" in failure(capsys, checkpoint, tmp_path / "out", "--base=/nowhere")
    assert "holds no model, so it is not replaced" in failure(capsys, checkpoint, checkpoint)
    second = checkpoint / "model_world_size_2_rank_1.pt"
    for stray, message in (
        ("rank_2", "model_world_size_2_rank_2.pt is beyond the last rank of 2"),
        ("rank_01", "is a second file of its rank"),
    ):
        shutil.copyfile(second, checkpoint / f"model_world_size_2_{stray}.pt")
        assert message in failure(capsys, checkpoint, tmp_path / "out")
        (checkpoint / f"model_world_size_2_{stray}.pt").unlink()
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert f"{second}: damaged" in failure(capsys, checkpoint, tmp_path / "out")
    second.unlink()
    assert "the files of ranks 1 of 2 are missing" in failure(capsys, checkpoint, tmp_path / "out")
    assert "expected model_world_size_N_rank_R.pt of one world size, found none" in failure(
        capsys, model, tmp_path / "out", f"--base={model}"
    )
    (checkpoint / "model_world_size_2_rank_0.pt").unlink()
    state = tiny(model).state_dict()
    for changed, message in (
        ({n: t for n, t in state.items() if n != name}, "it lacks 1 weights, lm_head.weight first"),
        (state | {"more": weight}, "it has too many: 1 weights, more first"),
        (state | {name: weight[:3]}, "it has of other shapes 1 weights"),
    ):
        torch.save(changed, checkpoint / "model_world_size_1_rank_0.pt")
        error = failure(capsys, checkpoint, tmp_path / "out")
        assert "the checkpoint is not of a Qwen2_5_VLForConditionalGeneration" in error
        assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    name = "lm_head.weight"
    state = tiny(model_folder / MODEL).state_dict()
    state[name][1, 2] = value
    (tmp_path / "actor").mkdir()
    torch.save(state, tmp_path / "actor/model_world_size_1_rank_0.pt")
    error = failure(capsys, tmp_path / "actor", tmp_path / "out", f"--base={model_folder / MODEL}")
    assert f"{name}: 1 of {state[name].numel()} values are not finite" in error
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_the_precision_are_refused(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tiny(model_folder / MODEL).state_dict()
    state["lm_head.weight"][0, 0] = 70000.0  # float16 ends at 65504
    (tmp_path / "actor").mkdir()
    torch.save(state, tmp_path / "actor/model_world_size_1_rank_0.pt")
    base = f"--base={model_folder / MODEL}"
    error = failure(capsys, tmp_path / "actor", tmp_path / "out", base, "--dtype=float16")
    assert "--dtype: 1 values of lm_head.weight are too large for float16" in error
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "actor", tmp_path / "out", base, "--dtype=float32") == 0


def test_8_bit_weights_are_looked_through() -> None:
    from pixelthink.files.fsdp_shards import count_not_finite

    good = torch.tensor([0.5, -448.0])
    assert count_not_finite(good.to(torch.float8_e4m3fn)) == 0
    assert count_not_finite(torch.tensor([0.5, float("nan")]).to(torch.float8_e4m3fn)) == 1
    assert count_not_finite(torch.tensor([1, 2])) == 0


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([((0, 0), (4, 3)), ((4, 0), (3, 3))], None),
        ([((0, 0), (2, 3)), ((2, 0), (5, 2)), ((2, 2), (5, 1))], None),
        ([((0, 0), (4, 3)), ((2, 0), (3, 3))], r"the shard of \(3, 3\) at \(2, 0\) overlaps another"),
        ([((0, 0), (4, 3)), ((5, 0), (2, 3))], r"the shards do not cover the shape \(7, 3\)"),
        ([((0, 0), (4, 3)), ((4, 0), (3, 3)), ((6, 1), (1, 1))], "overlaps another"),
    ],
)
def test_shards_by_offsets_cover_every_value_once(places: Any, message: str | None) -> None:
    """The third has as many values as the whole, so that only the places tell."""
    from pixelthink.files.fsdp_shards import _fill, _record_class

    whole = torch.arange(21.0).reshape(7, 3)

    def made(kind: str, **attributes: Any) -> Any:
        record = _record_class(kind)()
        record.__setstate__(attributes)
        return record

    shards = [
        made(
            "Shard",
            metadata=made("ShardMetadata", shard_offsets=list(start), shard_sizes=list(sizes)),
            tensor=whole[start[0] : start[0] + sizes[0], start[1] : start[1] + sizes[1]],
        )
        for start, sizes in places
    ]
    parts = [made("ShardedTensor") for _ in shards]
    for part, shard in zip(parts, shards, strict=True):
        part.state = ([shard], made("ShardedTensorMetadata", size=whole.shape))
    if message is None:
        assert torch.equal(_fill(parts), whole)
    else:
        with pytest.raises(ValueError, match=message):
            _fill(parts)


def test_an_unknown_placement_and_padding(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards made by hand in the stored form: padded ones are trimmed, a partial sum is refused."""
    from pixelthink.files.fsdp_shards import Record, ShardedCheckpoint, _record_class

    def made(kind: str, *arguments: Any, **attributes: Any) -> Record:
        record = _record_class(kind)(*arguments)
        record.__setstate__(attributes)
        return record

    whole = torch.arange(35.0).reshape(7, 5)
    padded = torch.cat([whole, torch.full((2, 5), -1.0)]).chunk(3)  # 3 + 3 + 1 rows, the last padded to 3

    def part(rank: int, placement: Record, local: torch.Tensor) -> Record:
        meta = made("TensorMeta", whole.shape, (5, 1), whole.dtype)
        mesh = made("DeviceMesh", mesh=torch.arange(3))
        spec = made("DTensorSpec", mesh=mesh, placements=(placement,), tensor_meta=meta)
        return made("DTensor", whole.shape, _local_tensor=local, _spec=spec)

    shards = ShardedCheckpoint.__new__(ShardedCheckpoint)
    shards.folder = tmp_path
    shards._states = [{"w": part(rank, made("Shard", dim=0), padded[rank])} for rank in range(3)]
    assert torch.equal(dict(shards.tensors())["w"], whole)
    for placement, local, message in (
        (
            made("Partial", reduce_op="sum"),
            padded[1],
            "w: placement Partial is not supported",
        ),
        (made("Shard", dim=0), padded[1][:2], r"w: a shard has shape \(2, 5\), its place has \(3, 5\)"),
        (made("Shard", dim=0), padded[1].half(), "w: ranks disagree about its precision"),
        (made("Shard", dim=1), padded[1], "w: ranks disagree about its placements"),
    ):
        shards._states[1] = {"w": part(1, placement, local)}
        with pytest.raises(ValueError, match=message):
            dict(shards.tensors())


def test_large_models_are_written_in_several_files(model_folder: Path, tmp_path: Path) -> None:
    original = tiny(model_folder / MODEL).state_dict()
    largest = max(t.numel() * t.element_size() for t in original.values())
    count = write_model_folder(tmp_path / "out", model_folder / MODEL, original.items(), file_bytes=2 * largest)
    assert count == len(original)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    found = tiny(tmp_path / "out").state_dict()
    assert all(bits(found[name]) == bits(original[name]) for name in original)
    assert not zipfile.is_zipfile(tmp_path / "out" / "config.json")
