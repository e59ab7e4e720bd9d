"""The benchmark of evaluation compares equal work."""

from __future__ import annotations

import pytest

from benchmarks.evaluate import Scenes, main


@pytest.mark.slow
def test_evaluator_and_plain_loop_answer_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--segmenters", "GrabCut", "--images", "3", "--questions", "2", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert "equal work: 6 of 6 texts and 6 masks are the same" in printed
    assert "ratio" in printed
    assert "MaskIoU on a step of 8 × 8 completions" in printed


def test_questions_share_images() -> None:
    source = Scenes(2, 3)
    samples = [source[i] for i in range(len(source))]
    assert len({sample.image.tobytes() for sample in samples}) == 2
    assert len({sample.id for sample in samples}) == 6
    assert len({(sample.image.tobytes(), sample.question) for sample in samples}) > 2
