"""Segmentation and efficiency metrics as plain functions.

gIoU is the mean of the IoUs of the masks, cIoU is the sum of intersections divided by the sum of unions. Published
evaluators treat ignored pixels and empty masks differently: the same weights differ by up to 7 gIoU between them. So
every number is given with its protocol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pixelthink.answering.acceptance import Acceptance
from pixelthink.errors import UserError

ProtocolName = Literal["lisa", "segzero", "lens"]
Mask = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Protocol:
    """How an evaluator works: which answers it reads, how it makes their masks, and how it counts these.

    Attributes:
        name: The evaluator.
        ignored: Ignored pixels are "removed" from prediction and target, become part of the "target", or become
            "background" of the target.
        both_empty: IoU of a mask whose union is empty; also the cIoU where all unions are, except where `ciou_epsilon`
            makes that 0.
        iou_epsilon: Added to each mask's union.
        ciou_epsilon: Added to the sum of unions.
        acceptance: Which answers are read, see `pixelthink.answering.acceptance`.
        checkpoint_penalty: Whether answers are sampled with the repetition penalty of the checkpoint's
            `generation_config.json`, as Hugging Face `generate` does.
        is_greedy: Whether the most likely token is always taken.
        resize: How images are brought to the model's size; "" where the evaluator does not say.
        autocast: Precision in which the segmenter runs; "" where the evaluator does not say.
    """

    name: ProtocolName
    ignored: Literal["removed", "target", "background"]
    both_empty: float
    iou_epsilon: float = 0.0
    ciou_epsilon: float = 0.0
    acceptance: Acceptance = "pixelthink"
    checkpoint_penalty: bool = False
    is_greedy: bool = False
    resize: str = ""
    autocast: str = ""


PROTOCOLS: dict[str, Protocol] = {
    "lisa": Protocol("lisa", ignored="removed", both_empty=1.0, iou_epsilon=1e-5, ciou_epsilon=1e-10),
    "segzero": Protocol(
        "segzero",
        ignored="target",
        both_empty=0.0,
        acceptance="segzero",
        checkpoint_penalty=True,
        is_greedy=True,
        resize="bilinear",
        autocast="bfloat16",
    ),
    "lens": Protocol("lens", ignored="background", both_empty=1.0),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        UserError: an unknown name; lists the known ones.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}, choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def mask_counts(prediction: Mask, target: Mask, ignore: Mask | None, protocol: Protocol) -> tuple[int, int]:
    """Intersection and union of one mask pair.

    Args:
        prediction: bool (H, W).
        target: bool (H, W).
        ignore: Pixels to ignore, bool (H, W); None means none.
        protocol: What to do with ignored pixels.

    Returns:
        `(intersection, union)` in pixels.

    Raises:
        UserError: shapes that differ.
    """
    found, truth = _as_bool(prediction), _as_bool(target)
    if found.shape != truth.shape:
        raise UserError(f"prediction is {_size(found)} but target is {_size(truth)} (height×width)")
    if ignore is not None:
        void = _as_bool(ignore)
        if void.shape != truth.shape:
            raise UserError(f"ignore is {_size(void)} but target is {_size(truth)} (height×width)")
        truth = truth | void if protocol.ignored == "target" else truth & ~void
        found = found & ~void if protocol.ignored == "removed" else found
    return int(np.count_nonzero(found & truth)), int(np.count_nonzero(found | truth))


def mask_ious(intersections: npt.ArrayLike, unions: npt.ArrayLike, protocol: Protocol) -> npt.NDArray[np.float64]:
    """IoU of each mask.

    Args:
        intersections: Pixels, (N,).
        unions: Pixels, (N,).
        protocol: Gives the IoU of an empty union.

    Returns:
        float64 (N,) in [0, 1].
    """
    shared, joined = np.asarray(intersections, dtype=np.float64), np.asarray(unions, dtype=np.float64)
    empty = joined == 0
    ratio = shared / np.where(empty, 1.0, joined + protocol.iou_epsilon)
    return np.where(empty, protocol.both_empty, ratio)


def exact_mean(values: npt.ArrayLike) -> float:
    """Mean of (N,) numbers, NaN of none. The sum is rounded once, so neither order nor number of processes matters."""
    array = np.asarray(values, dtype=np.float64)
    return math.fsum(array) / array.size if array.size else math.nan


def ciou_of_sums(intersection: float, union: float, protocol: Protocol) -> float:
    """cIoU of pixels summed over at least one mask; where the union is empty as well, see `Protocol.both_empty`."""
    denominator = union + protocol.ciou_epsilon
    return intersection / denominator if denominator > 0 else protocol.both_empty


def efficiency_scores(
    tokens: float, rscore: float, giou: float, model_billions: float, gamma: float = 0.7
) -> tuple[float, float, float]:
    """The efficiency metrics that the PixelThink paper reports on ReasonSeg-Diff.

    The paper gives no formula. This one was fitted to the paper's tables and gives every row of them to the printed
    digit (`tests/goldens/paper_efficiency.json`):
    `RST = 10·rscore / (B·√(N+1))`, `SAT = 100·giou / (B·√(N+1))`, `URSS = γ·SAT + (1−γ)·RST`.

    Args:
        tokens: Mean reasoning tokens N, 0 or more.
        rscore: Judge's rating of the reasoning, 0 to 10.
        giou: In 0 to 1 (the paper prints percent).
        model_billions: Parameters of the model B, in billions.
        gamma: Weight γ of segmentation against reasoning, 0 to 1.

    Returns:
        `(rst, sat, urss)`.

    Raises:
        UserError: an argument out of its range, e.g. a gIoU in percent.
    """
    ranges = {
        "tokens": (tokens, 0.0, math.inf),
        "rscore": (rscore, 0.0, 10.0),
        "giou": (giou, 0.0, 1.0),
        "gamma": (gamma, 0.0, 1.0),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"{name} must be from {low:g} to {high:g}, got {value}")
    if not model_billions > 0:
        raise UserError(f"model_billions must be positive, got {model_billions}")
    cost = model_billions * math.sqrt(tokens + 1.0)
    rst, sat = 10.0 * rscore / cost, 100.0 * giou / cost
    return rst, sat, gamma * sat + (1.0 - gamma) * rst


def _as_bool(mask: Any) -> np.ndarray:
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    return array.astype(bool, copy=False)


def _size(mask: np.ndarray) -> str:
    return "×".join(str(n) for n in mask.shape)
