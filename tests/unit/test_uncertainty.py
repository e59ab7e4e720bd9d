"""Top-2 uncertainty: by hand and against the released function."""

import math

import pytest

from pixelthink.rollouts.uncertainty import top2_uncertainty
from tests.support import golden_rows


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
