"""GrabCut on drawn shapes, on photos, and on boxes that make no sense."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelthink.data.sources.reasonseg import ReasonSeg
from pixelthink.data.sources.shape_scenes import draw_scene, sample_scene
from pixelthink.geometry import Box, Target, target_from_mask
from pixelthink.segmenters.base import SegmentationRequest
from pixelthink.segmenters.grabcut import GrabCut
from tests.support import ROOT

PHOTOS = Path(os.environ.get("PIXELTHINK_SHARED", ROOT.parent / "shared")) / "photos"


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def disc(size: int = 64, centers: tuple[tuple[int, int], ...] = ((20, 30),)) -> tuple[Image.Image, list[np.ndarray]]:
    """Red discs of radius 9 on blue."""
    ys, xs = np.mgrid[:size, :size]
    masks = [(xs - x) ** 2 + (ys - y) ** 2 <= 81 for x, y in centers]
    pixels = np.full((size, size, 3), (20, 30, 200), dtype=np.uint8)
    pixels[np.any(masks, axis=0)] = (220, 40, 30)
    return Image.fromarray(pixels), masks


def cut(image: Image.Image, box: Box, **options: float) -> np.ndarray:
    center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return GrabCut(**options).segment([SegmentationRequest(image, (Target(box, (center, center)),))])[0]  # type: ignore[arg-type]


def test_shapes_from_true_boxes() -> None:
    rng = np.random.default_rng(1)
    segmenter = GrabCut()
    segmenter.setup()
    ious = []
    for _ in range(25):
        scene = sample_scene(rng)
        image = Image.fromarray(draw_scene(scene))
        truths = [item.mask() for item in scene]
        requests = [SegmentationRequest(image, (target_from_mask(truth),)) for truth in truths]
        ious += [iou(mask, truth) for mask, truth in zip(segmenter.segment(requests), truths, strict=True)]
    assert np.mean(ious) > 0.95


def test_slack_repairs_a_box_that_is_too_small() -> None:
    image, (truth,) = disc()
    small = (13.0, 23.0, 27.0, 37.0)  # two pixels short on each side
    assert iou(cut(image, small, slack=0.2), truth) > 0.95


def test_union_over_objects_and_determinism() -> None:
    image, truths = disc(centers=((16, 16), (45, 40)))
    request = SegmentationRequest(image, tuple(target_from_mask(truth) for truth in truths))
    first, again, nothing = GrabCut().segment([request, request, SegmentationRequest(image, ())])
    assert iou(first, truths[0] | truths[1]) > 0.95
    assert (first == again).all()
    assert nothing.shape == (64, 64)
    assert nothing.dtype == np.bool_
    assert not nothing.any()


@pytest.mark.parametrize("box", [(70.0, 5.0, 90.0, 20.0), (-20.0, 5.0, -1.0, 20.0), (30.0, 30.0, 20.0, 40.0)])
def test_no_pixel_in_the_image_gives_an_empty_mask(box: Box) -> None:
    assert not cut(disc()[0], box).any()


def test_a_box_without_background_gives_itself() -> None:
    assert cut(disc()[0], (0.0, 0.0, 63.0, 63.0)).all()
    assert cut(disc()[0], (-50.0, -50.0, 500.0, float("inf"))).all()


def test_a_box_of_one_pixel_gives_itself() -> None:
    mask = cut(disc()[0], (20.0, 30.0, 20.0, 30.0), slack=0.0)
    assert np.argwhere(mask).tolist() == [[30, 20]]


def test_boxes_beyond_the_border_are_clipped() -> None:
    image, (truth,) = disc(centers=((5, 30),))
    assert iou(cut(image, (-40.0, 21.0, 14.0, 39.0)), truth) > 0.95


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_images(size: int) -> None:
    assert cut(Image.new("RGB", (size, size)), (0.0, 0.0, 0.0, 0.0)).shape == (size, size)


def test_an_image_of_one_colour_and_one_of_grey() -> None:
    assert cut(Image.new("RGB", (40, 30), (9, 9, 9)), (5.0, 5.0, 20.0, 20.0)).shape == (30, 40)
    assert cut(disc()[0].convert("L"), (11.0, 21.0, 29.0, 39.0)).any()


def test_large_crops_are_cut_on_a_smaller_copy() -> None:
    image, (truth,) = disc()
    large = image.resize((1024, 1024), Image.Resampling.NEAREST)
    mask = cut(large, (176.0, 336.0, 479.0, 639.0), max_side=128)
    assert mask.shape == (1024, 1024)
    assert iou(mask, np.kron(truth, np.ones((16, 16), dtype=bool))) > 0.9


@pytest.mark.parametrize("options", [{"iterations": 0}, {"margin": -1.0}, {"margin": float("nan")}, {"slack": 2.0}])
def test_arguments_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="GrabCut needs"):
        GrabCut(**options)  # type: ignore[arg-type]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}; set PIXELTHINK_SHARED")
@pytest.mark.parametrize(("index", "low", "high"), [(0, 0.83, 0.93), (1, 0.15, 0.35)])
def test_photos_from_true_boxes(index: int, low: float, high: float) -> None:
    source = ReasonSeg(str(PHOTOS))
    source.setup()
    sample = source[index]
    assert sample.mask is not None
    assert low < iou(GrabCut().segment([SegmentationRequest(sample.image, sample.targets)])[0], sample.mask) < high
