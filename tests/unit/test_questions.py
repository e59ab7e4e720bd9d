"""Questions about anyone's images: which are asked, under which ids, and what is said where something is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image

from pixelthink.data.sources.questions import ImageFolder, OneImage, QuestionSource, QuestionTable
from tests.photos import PHOTOS, needs_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in a folder, two of them with one stem, one more below, and a file that is no image."""
    (tmp_path / "deep").mkdir()
    for name, color in [("b.png", "red"), ("a.JPG", "blue"), ("a.webp", "green"), ("deep/c.png", "white")]:
        Image.new("RGB", (6, 4), color).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    return tmp_path


def opened(source: QuestionSource) -> list[tuple[str, str, str]]:
    """(id, name of the image file, question) of each sample, read through the source."""
    source.setup()
    samples = [source[index] for index in range(len(source))]
    assert [sample.id for sample in samples] == source.ids()
    return [(sample.id, Path(sample.meta["file"]).name, sample.question) for sample in samples]


def error_of(source: QuestionSource) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        source.setup()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_image(folder: Path) -> None:
    source = OneImage(str(folder / "b.png"), "what is it?")
    assert opened(source) == [("b", "b.png", "what is it?")]
    sample = source[0]
    assert sample.image.size == (6, 4)
    assert sample.image.getpixel((0, 0)) == (255, 0, 0)
    assert (sample.mask, sample.targets, sample.difficulty) == (None, (), None)


@pytest.mark.parametrize(
    ("image", "question", "message"),
    [
        ("nope.png", "what?", "there is no such image"),
        ("deep", "what?", "there is no such image"),
        ("x" * 5000, "what?", "there is no such image"),
        ("b.png", "  ", "the question is empty"),
    ],
)
def test_one_image_that_cannot_be_asked(image: str, question: str, message: str, folder: Path) -> None:
    assert error_of(OneImage(str(folder / image), question)).endswith(message)


def test_an_image_that_is_none(folder: Path) -> None:
    source = OneImage(str(folder / "notes.txt"), "what?")
    source.setup()
    with pytest.raises(ValueError, match=r"notes\.txt: not a readable image"):
        source[0]


def test_a_folder_in_the_order_of_its_names(folder: Path) -> None:
    assert opened(ImageFolder(str(folder), "the dog")) == [
        ("a.JPG", "a.JPG", "the dog"),
        ("a.webp", "a.webp", "the dog"),
        ("b", "b.png", "the dog"),
    ]
    assert ("deep/c", "c.png", "the dog") in opened(ImageFolder(str(folder), "the dog", recursive=True))


def test_a_folder_that_cannot_be_asked(folder: Path, tmp_path: Path) -> None:
    assert error_of(ImageFolder(str(folder / "none"), "x")) == f"{folder / 'none'}: there is no such folder"
    (tmp_path / "empty").mkdir()
    assert error_of(ImageFolder(str(tmp_path / "empty"), "x")).startswith(f"{tmp_path / 'empty'}: no image in this")
    assert error_of(ImageFolder(str(folder), "")) == "the question is empty"


def test_a_csv_resolves_paths_from_its_own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    table = folder / "deep/table.csv"
    rows = [
        "question,image,id,note",
        '"red, or blue?",../b.png,,x',
        f'"two\nlines",{folder / "a.JPG"},mine,',
        'é?,c.png,7,"',
    ]
    table.write_text("\r\n".join(rows) + '"', encoding="utf-8-sig", newline="")
    assert opened(QuestionTable(str(table))) == [
        ("b-2", "b.png", "red, or blue?"),
        ("mine", "a.JPG", "two\nlines"),
        ("7", "c.png", "é?"),
    ]


def test_jsonl_with_and_without_compression(folder: Path) -> None:
    rows = [{"image": "b.png", "question": "red?"}, {"image": "a.JPG", "question": "blue?", "id": 3, "more": [1]}]
    text = json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1])
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    expected = [("b-1", "b.png", "red?"), ("3", "a.JPG", "blue?")]
    assert opened(QuestionTable(str(folder / "rows.jsonl"))) == expected
    assert opened(QuestionTable(str(folder / "rows.jsonl.gz"))) == expected


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("image,question\nb.png,red?\nnope.png,blue?\n", ":3: {folder}/nope.png: there is no such image"),
        ("image,question\nb.png,\n", ":2: no question"),
        ("image,question\n,red?\n", ":2: no image"),
        ("image,question\nb.png\n", ":2: the row does not have 2 fields"),
        ("image,question\nb.png,red?,more\n", ":2: the row does not have 2 fields"),
        ('image,question\nb.png,"red?\n', ":2: not CSV: unexpected end of data"),
        ("image,question,id\nb.png,a,1\nb.png,b,1\n", ":3: id '1' occurs already in row 2"),
        ("file,question\nb.png,red?\n", ":1: no column image in the first line (there: file, question)"),
        ("", ":1: no column image or question in the first line (there: none)"),
        ("image,question\n", ": no rows"),
    ],
)
def test_a_csv_error_names_file_and_row(text: str, where: str, folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text(text, encoding="utf-8")
    assert error_of(QuestionTable(str(table))) == f"{table}{where.format(folder=folder)}"


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ('{"image": "b.png"}', ":1: no question"),
        ('{"image": "b.png", "question": 4}', ":1: question must be text, not 4"),
        ('{"image": "b.png", "question": "x", "id": [1]}', ":1: id must be text or a whole number, not [1]"),
        ('{"image": "\\u0000", "question": "x"}', ":1: {folder}/\0: there is no such image"),
        ("[1]", ":1: expected a JSON object, found list"),
        ("{", ":1: not JSON: Expecting property name enclosed in double quotes at column 2"),
    ],
)
def test_a_jsonl_error_names_file_and_row(row: str, where: str, folder: Path) -> None:
    table = folder / "t.jsonl"
    table.write_text(row, encoding="utf-8")
    assert error_of(QuestionTable(str(table))) == f"{table}{where.format(folder=folder)}"


def test_a_table_of_another_kind(folder: Path) -> None:
    assert "a table of questions ends in .csv" in error_of(QuestionTable(str(folder / "notes.txt")))
    assert error_of(QuestionTable(str(folder / "no.csv"))).endswith("no.csv: there is no such file")
    (folder / "latin.csv").write_bytes("image,question\nb.png,é\n".encode("latin-1"))
    assert error_of(QuestionTable(str(folder / "latin.csv"))) == f"{folder / 'latin.csv'}:2: not UTF-8 text"


@needs_photos
def test_photos_are_read_upright_at_their_own_size() -> None:
    source = ImageFolder(str(PHOTOS), "what could the man drink from?")
    source.setup()
    assert source.ids() == ["2011_000003", "2011_000006"]
    assert source[1].image.size == (500, 375)
