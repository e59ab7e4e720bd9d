"""One command evaluates with a segmenter on both kinds of data, and says where weights are random."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.results import targets_of
from tests.photos import PHOTOS, needs_photos
from tests.sam_models import tiny_hf_sam2
from tests.support import ROOT
from tools import evaluate_segmenters

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@needs_photos
def test_every_pair_leaves_its_results(tmp_path: Path, capsys) -> None:
    checkpoint = tiny_hf_sam2(tmp_path / "sam")
    options = ["--segmenters=[GrabCut,HFSAM2]", f"--hf_sam2={checkpoint}", "--size=3", "--sam_size=2"]
    assert evaluate_segmenters.main([*options, f"--photos={PHOTOS}", f"--output={tmp_path}/out"]) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[:2] for line in lines] == [
        *(["grabcut_shapes", "3"], ["grabcut_photos", "3"], ["hfsam2_shapes", "2"], ["hfsam2_photos", "3"])
    ]
    for line in lines:
        folder = tmp_path / "out" / line.split()[0]
        run = read_run(folder)
        assert f"{run.metrics['giou']:.3f}" == line.split()[2]
        assert (folder / "report.html").is_file()
        assert list((tmp_path / "out/logs" / folder.name).glob("events.*"))
        assert all(targets_of(row) for row in run.rows)


def test_random_weights_are_said_to_be_random(tmp_path: Path) -> None:
    parser = evaluate_segmenters.build_parser()
    options = parser.parse_args(["--segmenters=[GrabCut,SAM2]", "--sam_size=1"])
    grabcut, sam2 = evaluate_segmenters.evaluations(options, tmp_path)
    assert (grabcut.name, grabcut.note) == ("grabcut_shapes", None)
    assert sam2.name == "sam2_random_shapes"
    assert sam2.note is not None
    assert "its IoUs mean nothing" in sam2.note
    assert (tmp_path / "random_weights/SAM2.pt").is_file()
    given = parser.parse_args(["--segmenters=[SAM2]", "--sam2=weights.pt"])
    [named] = evaluate_segmenters.evaluations(given, tmp_path)
    assert (named.name, named.note) == ("sam2_shapes", None)


def test_an_unknown_segmenter_is_named(capsys) -> None:
    assert evaluate_segmenters.main(["--segmenters=[Scissors]"]) == 2
    assert capsys.readouterr().err == "error: --segmenters: unknown Scissors; known: GrabCut, SAM2, HFSAM2\n"
