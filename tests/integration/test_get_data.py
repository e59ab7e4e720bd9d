"""tools/get_data.py against a stand-in for the hub: downloads, breaks, damage, and what lies in a folder."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelthink.data.images import encode_png
from pixelthink.data.sources.checked import Checked
from pixelthink.data.sources.training_rows import RefCOCOg840
from tests import published
from tests.hub_server import COMMIT, Hub, digest
from tests.support import ROOT
from tools import get_data

REPO = "Ricky06662/refCOCOg_9k_840"
TABLE = "data/train-00000-of-00001.parquet"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with four training rows, images of noise, so that the table is larger than a chunk of the client."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 1024, 1024, 3), dtype=np.uint8)
    rows = [
        {
            "id": f"r{i}",
            "problem": "the left box",
            "solution": published.BOX_840,
            "image": {"bytes": encode_png(Image.fromarray(pixels)), "path": "a.png"},
        }
        for i, pixels in enumerate(noise)
    ]
    file = published.write_parquet(tmp_path / "made.parquet", rows)
    server = Hub(REPO, {TABLE: Path(file).read_bytes(), "README.md": b"# refCOCOg\n", ".gitattributes": b"x\n"})
    yield server
    server.close()


def get(hub: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the tool did."""
    with start(hub, root, *arguments) as process:
        out, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, errors)


def start(hub: str, root: Path, *arguments: str) -> subprocess.Popen[str]:
    """The tool in a process of its own, for the client reads HF_ENDPOINT when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(root / "hf_home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "tools/get_data.py"), *arguments, f"--root={root}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_set_of_the_hub_is_downloaded_and_converted(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "data"
    hub.breaks[TABLE] = 11_000_000
    done = get(hub.url, root, "refCOCOg_9k_840")
    assert done.returncode == 0, done.stderr
    assert f"{REPO} at {COMMIT}, 3 files" in done.stdout
    ranges = [wanted for method, name, wanted in hub.asked if (method, name) == ("GET", TABLE)]
    assert ranges == [None, f"bytes={10 << 20}-"]  # taken up in mid-file, behind the last whole chunk
    assert (root / "refCOCOg_9k_840" / TABLE).read_bytes() == hub.files[TABLE]
    record = json.loads((root / "refCOCOg_9k_840/downloaded_from.json").read_text())
    assert (record["repo"], record["commit"]) == (REPO, COMMIT)
    assert sorted(path.name for path in root.iterdir()) == ["checked", "hf_home", "refCOCOg_9k_840"]
    made = Checked(str(root / "checked/refCOCOg_9k_840"))
    made.setup()
    assert made.ids() == ["r0", "r1", "r2", "r3"]
    assert made[0].meta["source"] == f"refCOCOg_9k_840@{COMMIT[:12]}"
    raw = RefCOCOg840(str(root / "refCOCOg_9k_840"))  # where configs/pixelthink_7b.yaml looks for it
    raw.setup()
    assert raw[3].targets == made[3].targets

    asked = len(hub.asked)
    again = get(hub.url, root, "refCOCOg_9k_840")
    assert again.returncode == 0, again.stderr
    assert len(hub.asked) == asked
    assert "3 files" in again.stdout
    assert "digests agree" in again.stdout
    other = get(hub.url, root, "refCOCOg_9k_840", "--revision=fedcba")
    assert other.returncode == 2
    assert f"holds {REPO} at {COMMIT}" in other.stderr


@pytest.mark.slow
def test_a_damaged_file_is_refused_and_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "data"
    good = hub.files[TABLE]
    hub.served[TABLE] = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    failed = get(hub.url, root, "refCOCOg_9k_840")
    assert failed.returncode == 2
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert f"{TABLE} is damaged" in line
    assert not (root / "refCOCOg_9k_840").exists()
    assert not (root / "checked").exists()
    hub.served.clear()
    hub.asked.clear()
    done = get(hub.url, root, "refCOCOg_9k_840", "--convert=false")
    assert done.returncode == 0, done.stderr
    assert [name for method, name, _ in hub.asked if method == "GET"] == [TABLE]  # the good files stayed
    assert (root / "refCOCOg_9k_840" / TABLE).read_bytes() == good


@pytest.mark.slow
def test_a_killed_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    root = tmp_path / "data"
    hub.stalls.add(TABLE)
    with start(hub.url, root, "refCOCOg_9k_840") as process:
        assert hub.stalled.wait(120)
        while not (root / ".refCOCOg_9k_840.download/README.md").is_file():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not (root / "refCOCOg_9k_840").exists()  # half a table would be read as a whole one
    hub.stalls.clear()
    hub.asked.clear()
    done = get(hub.url, root, "refCOCOg_9k_840", "--convert=false")
    assert done.returncode == 0, done.stderr
    assert (root / "refCOCOg_9k_840" / TABLE).read_bytes() == hub.files[TABLE]
    assert "README.md" not in [name for method, name, _ in hub.asked if method == "GET"]


@pytest.mark.slow
def test_a_hub_that_has_no_such_set_or_is_not_there(hub: Hub, tmp_path: Path) -> None:
    for address, name in ((hub.url, "ReasonSeg_val"), ("http://127.0.0.1:9", "refCOCOg_9k_840")):
        failed = get(address, tmp_path / "data", name)
        assert failed.returncode == 2
        (line,) = failed.stderr.strip().splitlines()[-1:]
        assert line.startswith(f"error: hub: Ricky06662/{name} at 'main' cannot be downloaded: ")
        assert not (tmp_path / "data" / name).exists()


SET = "ReasonSeg_val"
LARGE, SMALL = "data/test-0.parquet", "README.md"


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A folder with a large and a small file, as a download leaves it."""
    folder = tmp_path / SET
    files = {LARGE: b"rows", SMALL: b"# val\n"}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    record = {
        "repo": f"Ricky06662/{SET}",
        "commit": COMMIT,
        "files": {name: digest(name, data) for name, data in files.items()},
        "sizes": {name: len(data) for name, data in files.items()},
    }
    (folder / "downloaded_from.json").write_text(json.dumps(record))
    return folder


def test_an_unchanged_folder_is_taken_without_a_hub(downloaded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_data.main([SET, "--convert=false", f"--root={downloaded.parent}"]) == 0
    assert "2 files, 0.0 MB, digests agree" in capsys.readouterr().out


@pytest.mark.parametrize("name", [LARGE, SMALL])
@pytest.mark.parametrize("harm", ["missing", "resized", "changed"])
def test_a_folder_that_has_changed_is_refused(
    downloaded: Path, capsys: pytest.CaptureFixture[str], name: str, harm: str
) -> None:
    good = (downloaded / name).read_bytes()
    (downloaded / name).unlink()
    if harm != "missing":
        (downloaded / name).write_bytes(good + b"x" if harm == "resized" else b"x" + good[1:])
    said = {
        "missing": "is missing",
        "resized": f"has {len(good) + 1} bytes, the hub says {len(good)}",
        "changed": "digest",
    }
    assert get_data.main([SET, f"--root={downloaded.parent}"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith(f"error: {downloaded / name} is ")
    assert said[harm] in line
    assert f"move {downloaded} away and give the same command again" in line
    assert captured.out == ""
    assert not (downloaded.parent / "checked").exists()


@pytest.mark.parametrize("record", ["[]", '{"repo": "x"}', '{"repo": "x", "commit": "c", "files": {}, "sizes": {}}'])
def test_a_record_that_is_none_is_refused(downloaded: Path, capsys: pytest.CaptureFixture[str], record: str) -> None:
    (downloaded / "downloaded_from.json").write_text(record)
    assert get_data.main([SET, f"--root={downloaded.parent}"]) == 2
    assert f"not the record of a download; move {downloaded} away" in capsys.readouterr().err


def test_the_list_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_data.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in (
        *("Ricky06662/refCOCOg_2k_840", REPO, "Ricky06662/VisionReasoner_multi_object_1k_840"),
        *("Ricky06662/VisionReasoner_multi_object_7k_840", "Ricky06662/ReasonSeg_val", "Ricky06662/ReasonSeg_test"),
        *("ReasonSeg_train", "ReasonSeg-Diff_test", "refcoco", "refcoco+", "refcocog", "difficulty"),
    ):
        assert name in text


def test_what_lies_in_a_folder_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, split = tmp_path / "data", "test"
    refcocog = tmp_path / "refcocog"
    published.instances(refcocog)
    references = [published.reference(5, 1, "right dog") | {"split": split}]
    (refcocog / "refs(umd).p").write_bytes(pickle.dumps(references, protocol=0))
    scenes = published.reasonseg_folder(tmp_path / "scenes")
    notes = published.reasonseg_diff_notes(tmp_path / "notes.json")
    rows = published.visionreasoner_rows(tmp_path / "rows")
    table = published.reasonseg_rows(tmp_path / "table")
    for arguments, output, ids in (
        (["refcocog", f"--from={refcocog}", f"--images={refcocog}", "--split=test"], "refcocog_test", ["5#0"]),
        (["ReasonSeg_train", f"--from={scenes}"], "ReasonSeg_train", ["one"]),
        (["ReasonSeg_test", f"--from={table}"], "ReasonSeg_test", ["img#1"]),
        (["ReasonSeg-Diff_val", f"--from={notes}", f"--images={scenes}"], "ReasonSeg-Diff_val", ["one"]),
        (["VisionReasoner_multi_object_7k_840", f"--from={rows}"], "VisionReasoner_multi_object_7k_840", ["r0", "r1"]),
    ):
        assert get_data.main([*arguments, f"--root={root}"]) == 0, capsys.readouterr().err
        made = Checked(str(root / "checked" / output))
        made.setup()
        assert made.ids() == ids
    assert made.read(1, lambda *_: Image.new("RGB", published.SIZE)).targets == ()
    diff = Checked(str(root / "checked/ReasonSeg-Diff_val"))
    diff.setup()
    assert (diff[0].difficulty, diff[0].reasoning["short"]) == (4.0, "left.")


def test_the_released_ratings_are_put_where_the_configs_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratings = [{"image_id": str(i), "difficulty_score_model": value} for i, value in enumerate((3, None, 4.5))]
    text = json.dumps(ratings)
    (tmp_path / "refcoco_train_labeled_merged.json").write_text(text)
    assert get_data.main(["difficulty", f"--from={tmp_path}", f"--root={tmp_path / 'data'}"]) == 0
    assert (tmp_path / "data/refcoco_train_labeled_merged.json").read_text() == text
    out = capsys.readouterr().out
    assert "2 usable ratings" in out
    assert "1 null: '1'" in out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "the list is empty"),
        ('[{"foo": 1}]', "1 without image_id and difficulty_score_model: item 0"),
        ('[{"image_id": "a", "difficulty_score_model": null}]', "1 null: 'a'"),
    ],
)
def test_ratings_of_which_none_is_usable_replace_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    root, given = tmp_path / "data", tmp_path / "given.json"
    root.mkdir()
    (root / "refcoco_train_labeled_merged.json").write_text("good")
    given.write_text(text)
    assert get_data.main(["difficulty", f"--from={given}", f"--root={root}"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {given}: no usable rating, so nothing was copied: {reason}\n"
    assert captured.out == ""
    assert (root / "refcoco_train_labeled_merged.json").read_text() == "good"


IDLE = [
    ("ReasonSeg_val --from=X --convert=false", "convert"),
    ("ReasonSeg_val --from=X --revision=main", "revision"),
    ("ReasonSeg_train --from=X --revision=v1", "revision"),
    ("ReasonSeg_val --from=X --split=val", "split"),
    ("ReasonSeg_val --from=X --split_by=umd", "split_by"),
    ("refCOCOg_9k_840 --images=X", "images"),
    ("VisionReasoner_multi_object_1k_840 --images=X", "images"),
    ("ReasonSeg-Diff_val --from=X --images=X --split_by=umd", "split_by"),
    ("ReasonSeg-Diff_val --from=X --images=X --split=val", "split"),
    ("ReasonSeg_val --convert=false --split=val", "split"),
    ("ReasonSeg_val --convert=false --workers=2", "workers"),
    ("refcoco --convert=false --split=val", "split"),
    *((f"list --{option}=1", option) for option in ("from", "images", "split", "split_by", "root", "revision")),
    *((f"list --{option}", option.split("=")[0]) for option in ("convert=true", "workers=1")),
    *((f"difficulty --from=X --{option}=1", option) for option in ("images", "split", "split_by", "revision")),
    *((f"difficulty --from=X --{option}", option.split("=")[0]) for option in ("convert=true", "workers=1")),
]


@pytest.mark.parametrize(("command", "option"), IDLE)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    monkeypatch.setenv("PIXELTHINK_DATA", str(tmp_path))
    assert get_data.main(command.replace("X", str(tmp_path)).split()) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith(f"error: --{option} would do nothing, ")
    assert captured.out == ""


def test_every_option_that_would_do_nothing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_data.main(["ReasonSeg_val", "--split=a", "--images=b", "--split_by=c"]) == 2
    error = capsys.readouterr().err
    assert all(
        f"--{option} would do nothing, ReasonSeg_val has no " in error for option in ("images", "split", "split_by")
    )


def test_what_cannot_be_done_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "refCOCOg_9k_840").mkdir()
    for arguments, message in (
        (["refcocog"], "refcocog has no hub location (by hand: the archived copies"),
        (["difficulty"], "difficulty has no hub location"),
        (["refcocog", f"--from={tmp_path}"], "--images is missing: the folder of COCO's train2014"),
        (["refcoco", "--from=/nowhere"], "/nowhere: there is no such file or folder"),
        (["ReasonSeg_val", f"--from={tmp_path}", "--split=val"], "has no splits to choose from"),
        (["refCOCO"], "there is no set 'refCOCO'; there are refCOCOg_2k_840, "),
        (["refCOCOg_9k_840"], "exists already and was not downloaded by this program"),
    ):
        assert get_data.main([*arguments, f"--root={tmp_path}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
