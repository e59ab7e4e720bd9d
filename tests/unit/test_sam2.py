"""SAM 2 by the sam2 package: the masks of a direct call, whatever the working directory and Hydra's state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelthink.segmenters import sam2 as adapter
from pixelthink.segmenters.base import SegmentationRequest
from pixelthink.segmenters.sam2 import SAM2
from tests.sam_models import noise, random_sam2_checkpoint, target

CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
IMAGE = noise(150, 100)
OBJECTS = (target(10, 15, 60.5, 80), target(70, 20, 140, 90), target(5, 5, 40, 40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_sam2_checkpoint(tmp_path_factory.mktemp("sam2") / "any_name.pt")


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Any:
    """The library's own predictor on the same weights, built the library's own way."""
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    return SAM2ImagePredictor(build_sam2(CONFIG, str(checkpoint), device="cpu"))


def direct(predictor: Any, objects: Any, points: int = 2, multimask: bool = True, largest: bool = False) -> np.ndarray:
    """Union of the masks that single calls to the library give, as the released evaluation calls it."""
    union = np.zeros(IMAGE.size[::-1], dtype=bool)
    for found in objects:
        coordinates = np.array(found.points_xy[:points])
        masks, scores, low = predictor.predict(
            point_coords=coordinates,
            point_labels=np.ones(points, dtype=int),
            box=np.array(found.box_xyxy),
            multimask_output=multimask,
        )
        chosen = (low > 0).sum(axis=(1, 2)).argmax() if largest else scores.argmax()
        union |= masks[chosen].astype(bool)
    assert 0.02 < union.mean() < 0.999, "a mask that could differ"
    return union


@pytest.mark.slow
def test_the_masks_of_a_direct_call_under_every_option(checkpoint: Path, predictor: Any) -> None:
    predictor.set_image(IMAGE)
    segmenter = SAM2(str(checkpoint))
    segmenter.setup()
    segmenter.segment([SegmentationRequest(noise(64, 200, 1), OBJECTS[2:]), SegmentationRequest(IMAGE, OBJECTS[:1])])
    assert segmenter.embedded_images == 2, "both in one call"
    one, several = SegmentationRequest(IMAGE, OBJECTS[:1]), SegmentationRequest(IMAGE, OBJECTS)
    one_point = SegmentationRequest(IMAGE, OBJECTS, points_per_object=1)
    for multimask, pick in ((True, "score"), (True, "largest"), (False, "score")):
        segmenter.multimask, segmenter.pick = multimask, pick  # type: ignore[assignment]
        largest = pick == "largest"
        found = [segmenter.segment([request])[0] for request in (one, several, one_point)]
        assert (found[0] == direct(predictor, OBJECTS[:1], 2, multimask, largest)).all()
        assert (found[1] == direct(predictor, OBJECTS, 2, multimask, largest)).all()
        assert (found[2] == direct(predictor, OBJECTS, 1, multimask, largest)).all()
    assert segmenter.embedded_images == 2, "the options do not concern the embedding"


@pytest.mark.slow
def test_autocast_is_the_librarys_under_autocast(checkpoint: Path, predictor: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.set_image(IMAGE)
        expected = direct(predictor, OBJECTS[:1])
    segmenter = SAM2(str(checkpoint), autocast="bfloat16")
    segmenter.setup()
    assert (segmenter.segment([SegmentationRequest(IMAGE, OBJECTS[:1])])[0] == expected).all()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
@pytest.mark.parametrize("letter", ["t", "s", "b+", "l"])
def test_every_architecture_is_read_off_its_weights(version: str, letter: str) -> None:
    from sam2.build_sam import build_sam2

    model = build_sam2(f"configs/{version}/{version}_hiera_{letter}.yaml", device="cpu")
    built = adapter._build(model.state_dict(), Path("weights.pt"))
    assert str(built) == str(model)
    assert built.state_dict().keys() == model.state_dict().keys()
    settings = ("dynamic_multimask_via_stability", "dynamic_multimask_stability_thresh", "use_high_res_features")
    for name in settings:
        assert getattr(built.sam_mask_decoder, name) == getattr(model.sam_mask_decoder, name)  # type: ignore[union-attr]


def test_neither_working_directory_nor_hydras_state_matter(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sam2  # noqa: F401  (sets Hydra up for itself when it is first imported)
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)
    held = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().clear()
        SAM2(str(checkpoint)).setup()
        assert not GlobalHydra.instance().is_initialized()
        initialize_config_dir(str(tmp_path), version_base="1.2")
        others = GlobalHydra.instance().hydra
        SAM2(str(checkpoint)).setup()
        assert GlobalHydra.instance().hydra is others
    finally:
        GlobalHydra.instance().hydra = held


def test_setup_draws_nothing_from_the_runs_random_numbers(checkpoint: Path) -> None:
    before = torch.random.get_rng_state()
    SAM2(str(checkpoint)).setup()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sam2_missing_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sam2.sam2_image_predictor", None)
    with pytest.raises(ImportError, match="SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2") as caught:
        SAM2().setup()
    assert "\n" not in str(caught.value)


def broken(kind: str, checkpoint: Path, folder: Path) -> Path:
    """A file that is no usable checkpoint."""
    path = folder / f"{kind}.pt"
    if kind == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:100_000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404</html>", encoding="utf-8")
    elif kind == "other_model":
        torch.save({"model": {"weight": torch.zeros(2)}}, path)
    elif kind == "no_model":
        torch.save({"state_dict": {}}, path)
    else:
        weights = torch.load(checkpoint, weights_only=True, mmap=True)["model"]
        if kind == "lacking":
            weights.pop("no_mem_embed")
        else:
            weights = {name: w for name, w in weights.items() if "blocks.11" not in name}
        torch.save({"model": weights}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "damaged or no checkpoint"),
        ("empty", "damaged or no checkpoint"),
        ("text", "damaged or no checkpoint"),
        ("no_model", "damaged or no checkpoint"),
        ("other_model", "no weights of a SAM 2 model"),
        ("lacking", "does not fit sam2.1_hiera_t"),
        ("unknown_size", "unknown size: 96 channels, 11 blocks"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(kind: str, reason: str, checkpoint: Path, tmp_path: Path) -> None:
    path = broken(kind, checkpoint, tmp_path)
    with pytest.raises(OSError, match=reason) as caught:
        SAM2(str(path)).setup()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_there_is_one_line() -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'weights/sam2.pt', nor is it one of .*sam2.1-hiera-large"):
        SAM2("weights/sam2.pt").setup()
    with pytest.raises(FileNotFoundError, match=r"cannot fetch sam2_hiera_large\.pt of facebook") as hub:
        SAM2(local_files_only=True).setup()
    assert "\n" not in str(hub.value)


def test_a_segmenter_that_was_not_set_up_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"SAM2.setup\(\)"):
        SAM2().segment([SegmentationRequest(Image.new("RGB", (4, 4)), OBJECTS)])
