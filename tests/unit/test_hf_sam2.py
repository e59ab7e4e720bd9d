"""SAM 2 and 3 by transformers, and what all promptable segmenters share: the cache, unions, odd images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelthink.geometry import Target
from pixelthink.segmenters.base import SegmentationRequest
from pixelthink.segmenters.hf_sam2 import HFSAM2, HFSAM3
from pixelthink.segmenters.promptable import PromptableSegmenter, content_key
from tests.sam_models import noise, target, tiny_hf_sam2, tiny_hf_sam3

OBJECTS = (target(10, 15, 60.5, 80), target(70, 20, 130, 85), target(5, 5, 40, 40))
IMAGE = noise(150, 100)
FAMILIES: dict[str, tuple[type[HFSAM2], Callable[[Path], Path]]] = {
    "sam2": (HFSAM2, tiny_hf_sam2),
    "sam3": (HFSAM3, tiny_hf_sam3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, (_, make) in FAMILIES.items()}


def loaded(folders: dict[str, Path], family: str = "sam2", **options: Any) -> HFSAM2:
    segmenter = FAMILIES[family][0](str(folders[family]), local_files_only=True, **options)
    segmenter.setup()
    return segmenter


def direct(folder: Path, image: Image.Image, objects: Any, points: int, multimask: bool, largest: bool) -> np.ndarray:
    """Union of the masks that single calls of transformers' model and processor give."""
    from transformers import AutoModelForMaskGeneration, AutoProcessor

    model = AutoModelForMaskGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    union = np.zeros(image.size[::-1], dtype=bool)
    for found in objects:
        inputs = processor(
            images=image,
            input_points=[[[list(point) for point in found.points_xy[:points]]]],
            input_labels=[[[1] * points]],
            input_boxes=[[list(found.box_xyxy)]],
            return_tensors="pt",
        )
        with torch.no_grad():
            output = model(**inputs, multimask_output=multimask)
        masks = processor.post_process_masks(output.pred_masks, inputs["original_sizes"])[0][0].numpy()
        proposals = output.pred_masks[0, 0]
        chosen = (proposals > 0).sum(dim=(1, 2)).argmax() if largest else output.iou_scores[0, 0].argmax()
        union |= masks[int(chosen)]
    assert 0.02 < union.mean() < 0.999, "a mask that could differ"
    return union


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("multimask", "pick"), [(True, "score"), (True, "largest"), (False, "score")])
@pytest.mark.parametrize("points", [1, 2])
def test_the_masks_of_a_direct_call(folders: Any, family: str, multimask: bool, pick: Any, points: Any) -> None:
    segmenter = loaded(folders, family, multimask=multimask, pick=pick)
    for objects in (OBJECTS[:1], OBJECTS):
        (found,) = segmenter.segment([SegmentationRequest(IMAGE, objects, points)])
        expected = direct(folders[family], IMAGE, objects, points, multimask, pick == "largest")
        assert found.dtype == np.bool_
        assert (found == expected).all()


def test_picks_differ_so_that_the_test_above_means_something(folders: Any) -> None:
    request = SegmentationRequest(IMAGE, OBJECTS[:1])
    masks = [
        loaded(folders, multimask=multimask, pick=pick).segment([request])[0].tobytes()
        for multimask, pick in ((True, "score"), (True, "largest"), (False, "score"))
    ]
    assert len(set(masks)) == 3


def test_a_point_given_twice_is_not_a_point(folders: Any) -> None:
    twice = tuple(Target(found.box_xyxy, (found.points_xy[0],) * 2) for found in OBJECTS[:1])
    segmenter = loaded(folders)
    as_one, as_two, single = segmenter.probabilities(
        [
            SegmentationRequest(IMAGE, twice, points_per_object=1),
            SegmentationRequest(IMAGE, twice),
            SegmentationRequest(IMAGE, OBJECTS[:1], points_per_object=1),
        ]
    )
    assert (as_one == single).all()
    assert not (as_one == as_two).all()


def test_probabilities_exceed_a_half_where_the_mask_is(folders: Any) -> None:
    segmenter = loaded(folders)
    request = SegmentationRequest(IMAGE, OBJECTS)
    (mask,), (likely,) = segmenter.segment([request]), segmenter.probabilities([request])
    assert likely.dtype == np.float32
    assert likely[mask].min() >= 0.5 >= likely[~mask].max()
    assert 0 <= likely.min() < likely.max() <= 1


def test_equal_pixels_are_embedded_once_whatever_object_holds_them(folders: Any) -> None:
    segmenter = loaded(folders)
    copies = [IMAGE, IMAGE.copy(), Image.fromarray(np.asarray(IMAGE)), Image.fromarray(np.asarray(IMAGE).copy())]
    masks = segmenter.segment([SegmentationRequest(copy, OBJECTS[:1]) for copy in copies])
    assert segmenter.embedded_images == 1
    assert all((mask == masks[0]).all() for mask in masks)
    segmenter.segment([SegmentationRequest(IMAGE.copy(), OBJECTS[1:])])
    assert segmenter.embedded_images == 1, "the next call finds it too"
    changed = np.array(IMAGE)
    changed[99, 149, 2] ^= 1
    segmenter.segment([SegmentationRequest(Image.fromarray(changed), OBJECTS[:1])])
    assert segmenter.embedded_images == 2


@pytest.mark.parametrize(("capacity", "embedded"), [(0, 5), (1, 5), (2, 4), (3, 3)])
def test_the_cache_keeps_what_was_used_last(folders: Any, capacity: int, embedded: int) -> None:
    segmenter = loaded(folders, cached_images=capacity, batch_images=1)
    for seed in (1, 2, 1, 3, 2):
        segmenter.segment([SegmentationRequest(noise(40, 30, seed), (target(2, 2, 20, 20),))])
    assert segmenter.embedded_images == embedded
    assert len(segmenter.cache) == min(capacity, 3)


def test_what_the_cache_holds_does_not_change_masks(folders: Any) -> None:
    requests = [SegmentationRequest(noise(60 + 7 * i, 50, i % 3), OBJECTS[: 1 + i % 3]) for i in range(7)]
    plain = loaded(folders, cached_images=0, batch_images=1, batch_objects=1).segment(requests)
    batched = loaded(folders, cached_images=2, batch_images=3, batch_objects=2)
    for masks in (batched.segment(requests), batched.segment(requests)):
        for mask, expected in zip(masks, plain, strict=True):
            assert (mask == expected).mean() > 0.999


def test_requests_keep_their_order_and_empty_ones_cost_nothing(folders: Any) -> None:
    segmenter = loaded(folders)
    requests = [
        SegmentationRequest(IMAGE, OBJECTS[:1]),
        SegmentationRequest(noise(31, 17, 5), ()),
        SegmentationRequest(IMAGE, OBJECTS[1:2], points_per_object=1),
        SegmentationRequest(IMAGE, OBJECTS[2:]),
    ]
    masks = segmenter.segment(requests)
    assert masks[1].shape == (17, 31)
    assert not masks[1].any()
    assert segmenter.embedded_images == 1
    for request, mask in zip(requests, masks, strict=True):
        assert (segmenter.segment([request])[0] == mask).mean() > 0.9999
    assert segmenter.segment([]) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 3), (5, 400), (1200, 900)])
def test_images_of_any_size(folders: Any, size: tuple[int, int]) -> None:
    image = noise(*size)
    found = Target((0, 0, size[0] - 1, size[1] - 1), ((0, 0), (size[0] / 2, size[1] / 2)))
    (mask,) = loaded(folders).segment([SegmentationRequest(image, (found,))])
    assert mask.shape == size[::-1]
    assert (mask == direct(folders["sam2"], image, (found,), 2, True, False)).all() if size[0] > 100 else True


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_are_their_rgb(folders: Any, mode: str) -> None:
    image = IMAGE.convert(mode)
    segmenter = loaded(folders)
    requests = [SegmentationRequest(one, OBJECTS[:1]) for one in (image, image.convert("RGB"))]
    first, second = segmenter.segment(requests)
    assert segmenter.embedded_images == 1
    assert (first == second).all()


def test_a_trainers_precision_stays_outside(folders: Any) -> None:
    request = SegmentationRequest(IMAGE, OBJECTS)
    (expected,) = loaded(folders).probabilities([request])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = loaded(folders).probabilities([request])
    (low,) = loaded(folders, autocast="bfloat16").probabilities([request])
    assert (inside == expected).all()
    assert not (low == expected).all()
    assert np.abs(low - expected).max() < 0.05


def test_no_gradient_is_kept(folders: Any) -> None:
    segmenter = loaded(folders)
    logits = [value for _, value in segmenter._logits([SegmentationRequest(IMAGE, OBJECTS)])]
    assert len(logits) == 3
    assert not any(value.requires_grad for value in logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coordinates_that_are_no_numbers(folders: Any, value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        loaded(folders).segment([SegmentationRequest(IMAGE, (Target((0, 0, value, 9), ((1, 1), (2, 2))),))])


@pytest.mark.parametrize("options", [{"batch_images": 0}, {"batch_objects": 0}, {"cached_images": -1}])
def test_numbers_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="HFSAM2: batch_images and batch_objects must be at least 1"):
        HFSAM2(**options)  # type: ignore[arg-type]


def test_a_checkpoint_that_cannot_be_loaded_is_one_line(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folders["sam2"] / "config.json").read_text())
    for segmenter in (HFSAM2(str(tmp_path)), HFSAM2("no/such"), HFSAM2(local_files_only=True), HFSAM3("nowhere")):
        with pytest.raises(OSError, match=r"segmenter\.checkpoint: cannot load") as caught:
            segmenter.setup()
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_all_there_are_refused(folders: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folders["sam2"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("no_memory_embedding")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="lacks 1 weights of a Sam2Model, 'no_memory_embedding' first"):
        HFSAM2(str(tmp_path)).setup()


def test_content_keys() -> None:
    flat = np.zeros((2, 6, 3), dtype=np.uint8)
    assert content_key(flat) == content_key(np.zeros((2, 12, 3), dtype=np.uint8)[:, ::2])
    assert content_key(flat) != content_key(flat.reshape(6, 2, 3))


def test_defaults_are_the_released_evaluations() -> None:
    segmenter: PromptableSegmenter = HFSAM2()
    assert (segmenter.checkpoint, segmenter.multimask, segmenter.pick) == ("facebook/sam2-hiera-large", True, "score")
    assert HFSAM3().checkpoint == "facebook/sam3"
