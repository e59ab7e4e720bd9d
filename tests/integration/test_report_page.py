"""The report in a browser: it loads in silence, asks nothing of the network, sorts, filters, and fits a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pixelthink.geometry import encode_rle
from tests.support import ROOT
from tools.report import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
EVIL = '</script><script>document.title="broken"</script><img src=x onerror="document.title=1">\'"&lt;'
LEVELS = ("easy", "medium", "hard")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as tools:
        arguments = [f"--{switch}" for switch in f"{SWITCHES} disable-sync".split()]
        started = tools.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield started
        started.close()


def write_run(folder: Path, ious: list[float], tokens: list[int], *, scored: bool = True) -> Path:
    """A run whose samples have these IoUs (in tenths) and lengths; the last one failed, and its texts are hostile."""
    (folder / "thumbnails").mkdir(parents=True)
    Image.new("RGB", (120, 60), "gray").save(folder / "thumbnails/one.jpg")
    target = np.zeros((60, 120), dtype=bool)
    target[10:50, 10:110] = True
    rows = []
    for number, (iou, length) in enumerate(zip(ious, tokens, strict=True)):
        last = number == len(ious) - 1
        found = target.copy()
        found[:, 10 + round(iou * 100) :] = False
        rows.append(
            {
                "id": EVIL if last else f"sample-{number}",
                "question": EVIL if last else f"question {number}",
                "difficulty": 3.0 + number % 3,
                "level": LEVELS[number % 3],
                "size": [120, 60],
                "thumbnail": "thumbnails/one.jpg",
                "response": EVIL if last else f"<think>thought {number}</think>",
                "reasoning": "" if last else f"thought {number}",
                "failure": "no_json" if last else None,
                "flaws": ["points_off_box"] if number == 1 else [],
                "prediction": encode_rle(found),
                "target": encode_rle(target) if scored else None,
                "iou": (0.0 if last else iou) if scored else None,
                "reasoning_tokens": length,
                "response_tokens": length + 9,
                "objects": [{"box": [10, 10, 109, 49], "points": [[20, 20], [30, 30]]}],
            }
        )
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    header = {"protocol": "segzero", "policy": EVIL, "config": {"x": EVIL}}
    (folder / "run.json").write_text(json.dumps(header), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a run of 40 samples, of a comparison, and of a prediction."""
    folder = tmp_path_factory.mktemp("report")
    ious = [((7 * n) % 10) / 10 for n in range(40)]
    a = write_run(folder / "a", ious, [10 + (3 * n) % 50 for n in range(40)])
    b = write_run(folder / "b", [max(0.0, iou - 0.2 * (n % 2)) for n, iou in enumerate(ious)], [5] * 40)
    predicted = write_run(folder / "p", [0.5, 1.0], [5, 6], scored=False)
    made = {"one": [str(a)], "two": [str(a), str(b)], "prediction": [str(predicted)]}
    for name, runs in made.items():
        assert main([*runs, f"--output={folder / name}.html", f"--note={EVIL}"]) == 0
    return {name: folder / f"{name}.html" for name in made}


class Opened:
    """A page in the browser, with all that it said and asked for."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, scheme: Any = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page: Page = context.new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def ids(self) -> list[str]:
        """Of the cards that are drawn, in order."""
        return [card.get_attribute("data-id") or "" for card in self.page.locator(".card").all()]

    def ious(self) -> list[float]:
        texts = self.page.locator(".card .iou").all_inner_texts()
        return [float(text.removeprefix("IoU ")) for text in texts]

    def card(self, name: str) -> Locator:
        return self.page.locator(f".card[data-id='{name}']")


@pytest.mark.parametrize("name", ["one", "two", "prediction"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_it_loads_in_silence_and_fits(name, width, scheme, browser, pages) -> None:
    opened = Opened(browser, pages[name], width, scheme)
    opened.page.locator(".view").first.click()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator("#place").inner_text().startswith("2 of ")
    opened.page.keyboard.press("Escape")
    assert not opened.page.locator("dialog").is_visible()
    assert opened.said == []
    assert [url for url in opened.requests if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        opened.page.locator(".card img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 120
    )
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(246, 247, 249)") == (scheme == "light")


def test_hostile_text_stays_text(browser, pages) -> None:
    opened = Opened(browser, pages["one"])
    assert opened.page.title() == "a · pixelthink"
    opened.page.select_option("#outcome", "failure:no_json")
    assert opened.ids() == [EVIL]
    assert opened.page.locator(".card h3").inner_text() == EVIL
    opened.page.locator(".card .view").click()
    assert opened.page.locator("#shown pre").inner_text() == EVIL
    assert opened.page.locator("header .note").inner_text() == EVIL
    assert opened.page.evaluate("document.scripts.length") == 2
    assert opened.page.locator("img[src='x']").count() == 0
    opened.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = 1'}))"
    )
    assert opened.page.title() == "a · pixelthink"  # the policy of the page runs no other script


def test_sorting_reorders(browser, pages) -> None:
    opened = Opened(browser, pages["one"])
    assert opened.page.locator(".card").count() == 24
    opened.page.click("#more")
    assert opened.page.locator(".card").count() == 40
    assert not opened.page.locator("#more").is_visible()
    assert opened.ious() == sorted(opened.ious())
    lowest = opened.ids()
    opened.page.select_option("#sort", "iou-down")
    assert opened.ious() == sorted(opened.ious(), reverse=True)
    assert opened.ids()[0] != lowest[0]
    opened.page.select_option("#sort", "tokens-down")
    first = opened.page.locator(".card").first
    assert "59 tokens" in first.inner_text()
    opened.page.select_option("#sort", "difficulty-down")
    assert [int(name.split("-")[1]) % 3 for name in opened.ids()[:13]] == [2] * 13
    opened.page.select_option("#sort", "order-up")
    assert opened.ids()[:3] == ["sample-0", "sample-1", "sample-2"]


def test_filtering_leaves_what_was_asked_for(browser, pages) -> None:
    opened = Opened(browser, pages["one"])
    opened.page.select_option("#level", "hard")
    assert opened.page.locator("#count").inner_text() == "13 of 40 samples"
    assert {int(name.split("-")[1]) % 3 for name in opened.ids()} == {2}
    opened.page.select_option("#level", "")
    opened.page.select_option("#outcome", "flaw:points_off_box")
    assert opened.ids() == ["sample-1"]
    opened.page.select_option("#outcome", "failed")
    assert opened.ids() == [EVIL]
    opened.page.select_option("#outcome", "used")
    opened.page.fill("#text", "Thought 17")
    assert opened.ids() == ["sample-17"]
    opened.page.fill("#text", "nowhere to be found")
    assert opened.page.locator("#count").inner_text() == "0 of 40 samples"
    assert opened.said == []


def test_layers_and_themes_switch(browser, pages) -> None:
    opened = Opened(browser, pages["one"])
    mask = opened.page.locator(".card .answer-mask").last
    assert mask.is_visible()
    opened.page.uncheck("[data-layer=answer]")
    assert not mask.is_visible()
    assert opened.page.locator(".card .target-mask").first.is_visible()
    opened.page.click("#theme")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 23)"


def test_a_dot_opens_its_sample(browser, pages) -> None:
    opened = Opened(browser, pages["one"])
    opened.page.select_option("#level", "easy")
    opened.page.locator("[data-sample='4']").dispatch_event("click")
    assert opened.page.locator("#shown h3").first.inner_text() == "question 4"


def test_the_overlay_lies_on_the_picture(browser, pages) -> None:
    opened = Opened(browser, pages["one"])
    opened.page.select_option("#sort", "order-up")
    frame, layer = (opened.card("sample-1").locator(f".frame{part}").bounding_box() for part in ("", " svg"))
    assert frame is not None
    assert frame == pytest.approx(layer)
    assert frame["width"] / frame["height"] == pytest.approx(2, rel=0.02)
    measure = "path => { const {x, y, width, height} = path.getBBox(); return [x, y, width, height]; }"
    target = opened.card("sample-1").locator(".target-mask").last.evaluate(measure)
    assert target == pytest.approx([10, 10, 100, 40], abs=0.5)  # in pixels of the image
    assert opened.card("sample-1").locator(".frame svg").get_attribute("viewBox") == "0 0 120 60"


def test_a_comparison_shows_both_and_sorts_by_loss(browser, pages) -> None:
    opened = Opened(browser, pages["two"])
    assert opened.page.locator(".card").first.locator("img").count() == 2
    assert opened.page.locator(".card").first.locator(".loss").inner_text() == "−0.20 IoU"
    opened.page.select_option("#sort", "gain-down")
    assert opened.page.locator(".card").first.locator(".loss").count() == 0
    table = opened.page.locator("table").inner_text()
    assert "B − A, 95 % interval" in table
    assert "reasoning tokens" in table


def test_everything_can_be_reached_and_is_named(browser, pages) -> None:
    opened = Opened(browser, pages["two"])
    unnamed = """() => [...document.querySelectorAll('button, select, input, img, svg[role=img], a, dialog')]
        .filter((part) => !(part.getAttribute('aria-label') || part.alt || part.textContent.trim()
            || part.closest('label')?.textContent.trim())).map((part) => part.outerHTML)"""
    assert opened.page.evaluate(unnamed) == []
    opened.page.focus("#sort")
    for wanted in ("level", "outcome", "text"):
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate("document.activeElement.id") == wanted
    opened.page.locator(".view").first.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("dialog").is_visible()


def test_the_tool_says_what_is_wrong(tmp_path: Path, pages, capsys) -> None:
    runs = str(pages["one"].parent / "a")
    for arguments, message in [
        ([str(tmp_path / "no")], "there is no such folder"),
        ([runs, runs, runs], "a page shows one run or compares two, got 3"),
        ([runs, "--subset=common"], "--protocol and --subset are for comparisons"),
        ([runs, "--count=object"], "as --count is, that is for two runs"),
        ([runs, "--max_pictures=-1"], "max_pictures must be at least 0"),
    ]:
        assert main([*arguments, f"--output={tmp_path}/x.html"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_writes_its_report(tmp_path: Path, tiny_policy_path: Path, browser) -> None:
    from pixelthink.cli.main import main as run
    from tests.support import tiny_run

    writer = f"--trainer.callbacks=[{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/out}}}}]"
    run(["test", *tiny_run(tmp_path, tiny_policy_path), writer])
    opened = Opened(browser, tmp_path / "out/report.html")
    assert opened.page.locator("#count").inner_text() == "4 of 4 samples"
    assert opened.page.locator(".chip.strong").inner_text() == "protocol segzero"
    assert opened.said == []


def test_templates_are_package_data() -> None:
    assert {path.name for path in (ROOT / "pixelthink/evaluation/report").glob("page.*")} >= {
        "page.html",
        "page.css",
        "page.js",
    }
