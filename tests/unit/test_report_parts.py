"""Parts of the report: outlines of masks, embedded pictures, charts and tables."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from pixelthink.evaluation.finished_run import FinishedRun
from pixelthink.evaluation.report import charts, tables
from pixelthink.evaluation.report.gallery import collect
from pixelthink.evaluation.report.outlines import mask_path
from pixelthink.evaluation.report.page import ReportOptions, render
from pixelthink.evaluation.report.pictures import MAX_BYTES, data_uri
from pixelthink.geometry import encode_rle


def filled(path: str, height: int, width: int, scale: int = 8) -> np.ndarray:
    """The area of an even-odd path, drawn by OpenCV on a finer grid; share of each pixel that is covered."""
    canvas = np.zeros((height * scale, width * scale), dtype=np.uint8)
    polygons = []
    for part in path.split("M")[1:]:
        corners = [[float(v) * scale for v in point.split()] for point in part.removesuffix("Z").split("L")]
        polygons.append(np.round(corners).astype(np.int32))
    cv2.fillPoly(canvas, polygons, 1)  # even-odd
    return canvas.reshape(height, scale, width, scale).mean(axis=(1, 3))


@pytest.mark.parametrize("size", [(40, 60), (700, 900), (2500, 1700)])
def test_an_outline_encloses_the_mask(size: tuple[int, int]) -> None:
    height, width = size
    picture = Image.new("1", (width, height))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width * 0.1, height * 0.2, width * 0.7, height * 0.9), fill=1)
    draw.rectangle((width * 0.3, height * 0.4, width * 0.4, height * 0.6), fill=0)  # a hole
    draw.rectangle((width * 0.8, 0, width - 1, height * 0.1), fill=1)  # a second part, at the edge
    mask = np.array(picture)
    drawn = filled(mask_path(mask), height, width, scale=8 if height < 100 else 1) > 0.5
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
    assert not drawn[int(height * 0.5), int(width * 0.35)]


def test_what_has_no_outline() -> None:
    assert mask_path(None) == ""
    assert mask_path(np.zeros((3, 3), dtype=bool)) == ""
    single = np.zeros((3, 3), dtype=bool)
    single[1, 1] = True
    assert 0.6 < filled(mask_path(single), 3, 3, scale=100)[1, 1] <= 1


def test_many_specks_stay_short() -> None:
    specks = np.random.default_rng(0).random((300, 400)) < 0.3
    assert 1000 < len(mask_path(specks)) <= 20_000


def test_pictures_are_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=95)
    Image.fromarray(noise[:40, :50]).save(tmp_path / "small.jpg")
    uri = data_uri(tmp_path / "noise.jpg", 300)
    assert uri is not None
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/webp"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (300, 225)
    assert len(base64.b64decode(data)) <= MAX_BYTES
    as_it_is = data_uri(tmp_path / "small.jpg", 300)
    assert as_it_is is not None
    assert base64.b64decode(as_it_is.partition(",")[2]) == (tmp_path / "small.jpg").read_bytes()
    assert data_uri(tmp_path / "gone.jpg", 300) is None
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.jpg: not a readable image"):
        data_uri(tmp_path / "bad.jpg", 300)


@pytest.mark.parametrize(
    ("high", "expected"), [(1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (58, [0, 20, 40, 60]), (7, [0, 2, 4, 6, 8])]
)
def test_ticks_are_round(high: float, expected: list[float]) -> None:
    assert charts.ticks(high) == expected


def test_the_scatter_puts_dots_where_they_belong() -> None:
    dots = [charts.Dot(0, 0, 0.0, "easy", "a < b"), charts.Dot(1, 40, 1.0, "hard", "")]
    svg = charts.scatter(dots, [charts.Mean("hard", 0, 20, 0.5, (0.25, 0.75))])
    found = re.findall(r'data-sample="(\d)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert [(int(i), float(y)) for i, _, y in found] == [(0, 206.0), (1, 14.0)]
    assert abs(float(found[0][1]) - 54) < 2
    assert abs(float(found[1][1]) - 446) < 2
    assert "a &lt; b" in svg
    assert "M250.0 158.0V62.0" in svg  # the whisker, half-way across, a quarter and three up


def test_bars_hold_every_length() -> None:
    svg = charts.lengths([("easy", [[0, 5, 10]]), ("hard", [[]])])
    assert svg.count('class="bar level-easy"') == 1
    assert "easy: median 5, mean 5.0, longest 10" in svg
    assert "hard: median" not in svg


def run_of(rows: list[dict[str, Any]], metrics: dict[str, Any] | None = None) -> FinishedRun:
    return FinishedRun(Path("/nowhere/run"), rows, {"protocol": "lisa"}, metrics or {})


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"s{number}",
        "question": "where?",
        "level": None,
        "response": "x",
        "failure": None,
        "prediction": encode_rle(np.eye(4, dtype=bool)),
        "target": None,
        "iou": None,
        "reasoning_tokens": number,
        "size": [4, 4],
        "timings": {"decoding_ms": 2.0 * number, "prefill_ms": None},
    } | changes


def test_a_prediction_is_counted_from_its_rows() -> None:
    run = run_of([row(1), row(3, failure="no_json")])
    values = tables.values_of(run)
    assert (values["n"], values["reasoning_tokens"], values["parse_rate"]) == (2, 2.0, 0.5)
    assert [(c.name, c.numbers, c.shares) for c in tables.causes([run], "failures")] == [("no_json", (1,), (0.5,))]
    assert [(s.name, s.milliseconds, s.lengths) for s in tables.stages([run])] == [("decoding", (4.0,), (1.0,))]
    page = render(run)
    assert "IoU against tokens" not in page
    assert "so nothing is scored" in page


def test_the_headline_shows_what_metrics_say() -> None:
    metrics = {
        "n": 2,
        "giou": 0.5,
        "giou_ci95": [0.25, 0.75],
        "reasoning_tokens": 12.34,
        "parse_rate": 1.0,
        "sat": 1.234,
    }
    metrics |= {"n/hard": 1, "giou/hard": 0.2, "reasoning_tokens/hard": 9.0, "reference_rscore": 7.5}
    table = tables.headline(run_of([row(1)], metrics))
    assert table.head == ("level", "N", "gIoU", "reasoning tokens", "parse rate", "SAT", "RScore (reference)")
    assert table.rows[0] == ("all", "2", "0.500 [0.250, 0.750]", "12.3", "1.000", "1.23", "7.50")
    assert table.rows[1] == ("hard", "1", "0.200", "9.0", "–", "–", "–")


def test_a_page_of_counted_objects_says_so() -> None:
    target = encode_rle(np.eye(4, dtype=bool))
    rows = [row(n, iou=n / 4, target=target, level="easy", failure="no_json" if n == 0 else None) for n in range(4)]
    metrics = {"n": 3, "n/easy": 3, "expressions": 4, "expressions/easy": 4, "giou": 0.43, "giou/easy": 0.43}
    metrics |= {"ciou": 0.5, "reasoning_tokens": 2.0, "parse_rate": 0.75, "failures": {"no_json": 1}}
    run = run_of(rows, metrics)
    assert tables.headline(run).head[:4] == ("level", "N", "expressions", "gIoU")
    assert tables.headline(run).rows[0][:4] == ("all", "3", "4", "0.430")
    assert tables.tiles(run)[-1].note == "1 of 4 answers failed"
    assert tables.causes([run], "failures")[0].shares == (0.25,)
    page = render(run)
    assert "counted per object: 3 objects of 4 expressions" in page
    assert "intervals over objects, each the mean of its expressions" in page
    assert "easy: gIoU 0.43" in page  # as the headline has it, not the mean over expressions
    plain = render(run_of(rows, {name: value for name, value in metrics.items() if "expressions" not in name}))
    assert "counted per expression" in plain
    assert "objects" not in plain.split("<main>")[1].split('id="gallery"')[0]


def test_pictures_are_limited_and_spread_over_the_ious(tmp_path: Path) -> None:
    rows = []
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
        rows.append(
            row(number, iou=1 - number / 10, thumbnail=f"{number}.jpg", target=encode_rle(np.eye(4, dtype=bool)))
        )
    run = FinishedRun(tmp_path, rows, {}, {"n": 10})
    gallery = collect([run], [{r["id"]: r["iou"] for r in rows}], max_pictures=4, side=64)
    assert [s["id"] for s in gallery.samples if s["picture"] is not None] == ["s0", "s3", "s6", "s9"]
    assert (len(gallery.pictures), gallery.without_picture) == (4, 6)
    assert all(not s["target"] for s in gallery.samples if s["picture"] is None)
    rows[1] |= {"thumbnail": "0.jpg"}
    shared = collect([run], [{r["id"]: r["iou"] for r in rows}], max_pictures=100, side=64)
    assert (len(shared.pictures), shared.samples[1]["picture"]) == (9, 0)
    rows[2] |= {"thumbnail": None, "failure": "image_unreadable", "failure_detail": "2.jpg: of no known format"}
    damaged = collect([run], [{r["id"]: r["iou"] for r in rows}], max_pictures=100, side=64)
    assert damaged.without_picture == 0, "not left out to keep the page small"
    assert (damaged.samples[2]["picture"], damaged.samples[2]["answers"][0]["detail"]) == (
        *(None, "2.jpg: of no known format"),
    )


def test_text_cannot_break_out_of_the_data() -> None:
    evil = "</script><script>alert(1)</script><!--\u2028&amp;\"'"
    page = render(run_of([row(1, response=evil, question=evil, id=evil)]), options=ReportOptions(title=evil, note=evil))
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data is not None
    [sample] = json.loads(data[1])["samples"]
    assert (sample["id"], sample["question"], sample["answers"][0]["response"]) == (evil, evil, evil)


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="max_pictures must be at least 0"):
        ReportOptions(max_pictures=-1)
