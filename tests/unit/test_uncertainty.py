"""Top-2 uncertainty: by hand, against the released function, and the tensor version against the scalar one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelthink.rollouts.uncertainty import top2_uncertainty, top2_uncertainty_per_token
from tests.support import golden_rows

LOGPROBS = st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)).map(lambda p: sorted(p, reverse=True)), min_size=1)


def test_by_hand() -> None:
    sure, torn = [math.log(0.9), math.log(0.1)], [math.log(0.5), math.log(0.5), -9.0]
    assert top2_uncertainty([sure]) == pytest.approx(0.2, abs=1e-12)
    assert top2_uncertainty([sure, torn]) == pytest.approx(0.6, abs=1e-12)
    assert top2_uncertainty([sure, [-0.1], [], torn]) == pytest.approx(0.6, abs=1e-12)
    assert top2_uncertainty([[0.0, -math.inf]]) == 0.0


def test_golden() -> None:
    """The released code exponentiates in single precision, whose last bit depends on the machine: hence 1e-7."""
    for row in golden_rows("uncertainty.jsonl.gz"):
        if row["expected"] is None:
            with pytest.raises(ValueError, match="no token has two"):
                top2_uncertainty(row["topk_logprobs"])
        else:
            assert top2_uncertainty(row["topk_logprobs"]) == pytest.approx(row["expected"], abs=1e-7), row["id"]


def test_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="NaN"):
        top2_uncertainty([[-0.1, math.nan]])


@given(LOGPROBS)
def test_tensor_version_agrees(tokens: list[list[float]]) -> None:
    per_token = top2_uncertainty_per_token(torch.tensor(tokens, dtype=torch.float64))
    assert per_token.shape == (len(tokens),)
    assert bool(((per_token >= 0) & (per_token <= 1)).all())
    assert per_token.mean().item() == pytest.approx(top2_uncertainty(tokens), abs=1e-12)


def test_tensor_version_keeps_leading_dimensions() -> None:
    assert top2_uncertainty_per_token(torch.zeros(3, 5, 2)).shape == (3, 5)
    with pytest.raises(ValueError, match=r"\(…, 2\), got \(2, 3\)"):
        top2_uncertainty_per_token(torch.zeros(2, 3))
