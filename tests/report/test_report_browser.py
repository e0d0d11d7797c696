"""The page in a real browser: nothing loaded, nothing refused, mouse and keys, both schemes, narrow and wide."""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report.synthetic_file import Setting, write

from rankkit.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="no playwright is installed: pip install playwright"
    ),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms, three seeds and steps, four parts of the matrix, a baseline and attention."""
    folder = tmp_path_factory.mktemp("browser")
    setting = Setting(steps=(0, 50, 100), layers=3, heads=3, baselines=("uniform",), kept=True, spread=0.05)
    return write_report([write(folder / "s.h5", setting)], folder / "page.html").path


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 heads at 50 steps."""
    folder = tmp_path_factory.mktemp("large")
    setting = Setting(
        steps=range(50), layers=12, heads=12, seeds=(0,), sequences=1, size=6, regions=("full",), compared=False
    )
    return write_report([write(folder / "s.h5", setting)], folder / "page.html").path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


class Opened:
    """A page with what it asked for and complained of."""

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def cell(self, row: int, column: int, arm: int = 0) -> Any:
        """A head of one arm's map."""
        return self.page.locator("[role=grid]").nth(arm).locator("tbody tr").nth(row).locator("button").nth(column)

    def readout(self, arm: int = 0) -> str:
        return str(self.page.locator(".readout").nth(arm).inner_text())


@pytest.fixture
def opened(browser: Browser, page_file: Path) -> Iterator[Opened]:
    found = Opened(browser, page_file, viewport={"width": 1200, "height": 900})
    yield found
    found.context.close()


def test_it_loads_without_a_request_or_a_complaint_and_keeps_so_in_use(opened: Opened) -> None:
    for summary in opened.page.locator("summary").all():
        summary.click()
    opened.cell(1, 1).click()
    opened.page.get_by_role("combobox", name="Measure").select_option(index=1)
    assert all(request.startswith(("file:", "data:image/png")) for request in opened.requests)
    assert len([request for request in opened.requests if request.startswith("file:")]) == 1
    assert opened.complaints == []


def test_the_map_takes_the_place_of_what_stands_there_without_scripts(
    opened: Opened, browser: Browser, page_file: Path
) -> None:
    assert opened.page.locator("[role=grid]").count() == 2
    assert not opened.page.locator(".instead").is_visible()
    plain = Opened(browser, page_file, java_script_enabled=False)
    assert plain.page.locator(".instead svg").count() == 2
    assert plain.page.locator(".instead").is_visible()
    assert not plain.page.locator(".heads").is_visible()
    assert plain.page.get_by_text("has the lower effective rank").first.is_visible()
    assert plain.page.locator("figure svg").first.is_visible()
    plain.context.close()


def test_hovering_shows_the_head_and_its_number(opened: Opened) -> None:
    opened.cell(2, 1).hover()
    assert opened.readout().startswith("Layer 2, head 1 (seed 0): effective rank ")
    assert "mean over 3 sequences" in opened.readout()
    assert opened.readout(1) == ""


def test_a_click_shows_spectrum_floors_baseline_and_attention_of_the_head(opened: Opened) -> None:
    opened.cell(0, 2, arm=1).click()
    detail = opened.page.locator(".detail")
    assert detail.locator("h3").inner_text() == "unilm, seed 0: layer 0, head 2, prefix block, step 100"
    label = detail.locator("svg").get_attribute("aria-label") or ""
    assert "arithmetic floor 1e-7.0, model floor 1e-6.0" in label
    assert detail.locator("svg .floor").count() == 2
    assert detail.locator("svg path.curve").count() == 2
    assert "uniform" in detail.inner_text()
    assert detail.locator("canvas").is_visible()
    assert opened.cell(0, 2, arm=1).get_attribute("aria-pressed") == "true"


def test_measure_region_step_and_seed_change_the_map(opened: Opened) -> None:
    def shown() -> str:
        return str(opened.cell(0, 0).get_attribute("aria-label"))

    seen = [shown()]
    opened.page.get_by_role("combobox", name="Measure").select_option(label="stable rank")
    seen.append(shown())
    opened.page.get_by_role("combobox", name="Part of the matrix").select_option(label="whole matrix")
    seen.append(shown())
    slider = opened.page.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == "step 100"
    slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "step 50"
    seen.append(shown())
    opened.page.get_by_label("Seed of gpt").select_option(label="seed 2")
    seen.append(shown())
    assert len(set(seen)) == len(seen)


def test_every_head_is_reached_by_keys_from_one_stop(opened: Opened) -> None:
    opened.cell(0, 0).focus()
    for key, name in (
        ("ArrowRight", "layer 0, head 1"), ("ArrowDown", "layer 1, head 1"), ("End", "layer 1, head 2"),
        ("ArrowRight", "layer 1, head 2"), ("Control+Home", "layer 0, head 0"), ("Control+End", "layer 2, head 2"),
        ("ArrowUp", "layer 1, head 2"), ("Home", "layer 1, head 0"), ("ArrowLeft", "layer 1, head 0"),
    ):  # fmt: skip
        opened.page.keyboard.press(key)
        focused = opened.page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert focused.startswith(f"{name}: "), key
        assert opened.readout().startswith(f"L{name[1:]}")
    stops = opened.page.locator("[role=grid]").first.locator("button[tabindex='0']")
    assert stops.count() == 1
    opened.page.keyboard.press("Enter")
    assert "layer 1, head 0" in opened.page.locator(".detail h3").inner_text()


def test_the_first_key_leads_to_the_answer_and_focus_is_seen(opened: Opened) -> None:
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert opened.page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("document.activeElement.id") == "answer"
    opened.cell(0, 0).focus()
    opened.page.keyboard.press("ArrowRight")
    width = opened.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert width == "3px"


def test_tables_are_downloaded_as_csv_with_all_digits_and_copied(opened: Opened) -> None:
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = opened.page.get_by_role("button", name="Download table as CSV: effective rank, prefix block")
    with opened.page.expect_download() as waiting:
        button.click()
    assert waiting.value.suggested_filename.endswith("-effective-rank-prefix-block.csv")
    rows = list(csv.reader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert rows[0][:7] == ["layer", "gpt", "gpt lower", "gpt upper", "unilm", "unilm lower", "unilm upper"]
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[1:]] == ["0", "1", "2*", "mean"]
    gpt, lower, upper = map(float, rows[1][1:4])
    assert lower < gpt < upper
    opened.page.get_by_role("button", name="Copy table: effective rank, prefix block").click()
    opened.page.get_by_text("Copied").wait_for()
    assert opened.page.evaluate("navigator.clipboard.readText()").startswith("layer\tgpt\tunilm\tgap")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_it_fits_the_width_and_has_no_serious_barrier(
    browser: Browser, page_file: Path, scheme: str, width: int
) -> None:
    opened = Opened(browser, page_file, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert opened.page.evaluate(OVERFLOW) == 0
    opened.cell(1, 1).click()
    for summary in opened.page.locator("summary").all():
        summary.click()
    assert opened.page.evaluate(OVERFLOW) == 0
    if importlib.util.find_spec("axe_playwright_python") is not None:
        assert _barriers(opened.page) == []
    opened.context.close()


def _barriers(page: Page) -> list[str]:
    """What axe-core finds serious or critical. The page's own policy refuses scripts, so it runs from outside."""
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(axe)
    found = page.evaluate("axe.run()")
    return [
        f"{one['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize(("scheme", "ground"), [("light", (255, 255, 255)), ("dark", (21, 24, 28))])
def test_figures_follow_the_scheme(browser: Browser, page_file: Path, scheme: str, ground: tuple[int, ...]) -> None:
    opened = Opened(browser, page_file, color_scheme=scheme)
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == f"rgb{ground}"
    fills = opened.page.evaluate(
        "[...document.querySelectorAll('.drawing text')].map(text => getComputedStyle(text).fill)"
    )
    for fill in set(fills):
        level = sum(int(channel) for channel in fill.removeprefix("rgb(").removesuffix(")").split(",")) / 3
        assert abs(level - sum(ground) / 3) > 90, fill
    opened.context.close()


def test_hostile_texts_stay_texts_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    setting = Setting(
        regions=("full",), seeds=(0,), compared=False, group={"objective": hostile},
        file={"title": hostile, "configuration": hostile, "command": hostile},
    )  # fmt: skip
    path = write_report([write(tmp_path / "<img src=x onerror=alert(1)>.h5", setting)], tmp_path / "page.html").path
    opened = Opened(browser, path)
    opened.cell(0, 0).click()
    assert "broken" not in opened.page.title()
    assert opened.page.locator("img").count() == 0
    assert opened.complaints == []
    opened.context.close()


def test_many_heads_and_steps_are_there_soon(browser: Browser, large_file: Path) -> None:
    opened = Opened(browser, large_file)
    assert opened.page.locator("[role=grid] button").count() == 288
    assert opened.page.get_by_role("slider").get_attribute("max") == "49"
    milliseconds = opened.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert milliseconds < 20_000  # a tenth of this where nothing else runs: experiments/benchmarks/report_page.py
    opened.context.close()


def test_it_prints_on_paper(browser: Browser, page_file: Path) -> None:
    opened = Opened(browser, page_file, color_scheme="dark")
    assert len(opened.page.pdf(format="A4")) > 50_000
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.locator("nav").is_visible()
    opened.context.close()
