"""What the page costs: under 10 s and a megabyte for 12 layers x 12 heads x 20 steps, and soon there with 50 steps.

Writing is timed from the command's function on, three seeds, four parts of the matrix, three measures, matrices of 64. The
browser's time is from the start of the navigation until every head can be chosen; without chromium it is left out.

    PYTHONPATH=tests python -P experiments/benchmarks/report_page.py
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from time import perf_counter

from report.synthetic_file import Setting, write

from rankkit.report import write_report

SECONDS, BYTES, BROWSER_SECONDS = 10.0, 1_000_000, 2.0


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_report([write(folder / "warm.h5", Setting(regions=("full",), compared=False))])  # imports and fonts
        twenty = Setting(layers=12, heads=12, steps=range(0, 1000, 50), sequences=2, size=64)
        report("12 x 12 heads x 20 steps", write(folder / "twenty.h5", twenty))
        fifty = Setting(layers=12, heads=12, steps=range(50), seeds=(0,), sequences=1, size=16, compared=False)
        page = report("144 heads x 50 steps", write(folder / "fifty.h5", fifty))
        if (seconds := browser_seconds(page)) is not None:
            print(f"in the browser: {seconds:.2f} s, {seconds / BROWSER_SECONDS:.0%} of {BROWSER_SECONDS:.0f} s")


def report(what: str, path: Path) -> Path:
    started = perf_counter()
    written = write_report([path])
    seconds = perf_counter() - started
    print(
        f"{what}: {seconds:.1f} s, {seconds / SECONDS:.0%} of {SECONDS:.0f} s; {written.size:,} bytes, "
        f"{written.size / BYTES:.0%} of {BYTES:,}"
    )
    return written.path


def browser_seconds(page: Path) -> float | None:
    """Until the last head is there."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        opened = browser.new_page()
        opened.goto(page.as_uri())
        assert opened.locator("[role=grid] button").count() == 2 * 144
        milliseconds = float(opened.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        browser.close()
    return milliseconds / 1000


if __name__ == "__main__":
    main()
