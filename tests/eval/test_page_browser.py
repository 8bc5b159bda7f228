"""The report's page in Chromium: it works, and fits screens of 400, 1000 and 1600 pixels."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest

from dcls_jax.eval import gallery
from dcls_jax.eval.report.collection import collect
from dcls_jax.eval.report.files import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs the browser extra: pip install '.[browser]'")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium in the PATH: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all parts: two architectures, two methods, curves, a gallery."""
    folder = tmp_path_factory.mktemp("report")
    for method in ("grad_cam", "threshold_grad_cam"):
        for name in ("an_architecture_with_a_long_name_224", "small"):
            pages.pair(folder / "in" / method, name, method=method, constant=[3])
    rng = np.random.default_rng(0)
    for name in ("small", "small_dcls"):
        curve = np.sort(rng.uniform(0, 1, (40, 29)), 1)[:, ::-1]
        values = {"deletion": curve.mean(1), "deletion_curve": curve}
        presets = {"rise": values, "group_cam_2021": values}
        pages.write(folder / "in" / f"f_{name}", name, presets, evaluation="faithfulness", label="preset")

    def sample(record: int) -> gallery.PictureSample:
        return gallery.PictureSample(rng.integers(0, 255, (64, 64, 3), np.uint8), rng.random((8, 8)), [[8, 8, 30, 30]])

    stored = collect([folder / "in"]).folders
    gallery.write(folder / "in" / "gallery", stored, sample, lambda *_: rng.random((7, 7)))
    return write_report([folder / "in"], folder / "report.html", command="dcls-jax report in", resamples=200)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """The page; nothing may be said on the console, or fetched."""
    said: list[str] = []
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda it: said.append(it.url) if not it.url.startswith(("file:", "data:")) else None)
    page.goto(report.as_uri())
    yield page
    context.close()
    assert not said


@pytest.mark.parametrize("width", [400, 1000, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_reaches_beyond_the_screen(opened: Any, width: int, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 900})
    opened.evaluate("document.querySelectorAll('details').forEach((it) => { it.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) > 384) == (scheme == "light")


def test_tables_are_sorted_by_any_column(opened: Any) -> None:
    head = opened.locator("#table-0 + .wide th", has_text="alignment")

    def values() -> list[float]:
        cells = opened.locator("#table-0 + .wide tbody tr td:nth-child(3)")
        return [float(it) for it in cells.evaluate_all("cells => cells.map((cell) => cell.dataset.v)")]

    before = values()
    head.get_by_role("button").click()
    assert values() == sorted(before) != before
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert values() == sorted(before, reverse=True)
    opened.locator("#table-0 + .wide th", has_text="model").get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert sorted(values()) == sorted(before)


def test_rows_are_filtered(opened: Any) -> None:
    rows = opened.locator("#table-0 + .wide tbody tr")
    assert rows.count() == 8
    opened.get_by_label("Show rows with").fill("SMALL threshold")
    assert rows.locator("visible=true").count() == 2
    assert opened.locator("#shown").inner_text().startswith("2 of ")
    opened.get_by_label("Show rows with").fill("")
    assert rows.locator("visible=true").count() == 8


def test_a_value_leads_to_its_records(opened: Any) -> None:
    link = opened.locator("#table-0 + .wide tbody a").first
    rows = opened.locator(link.get_attribute("href") or "")
    assert not rows.is_visible()
    link.click()
    assert rows.is_visible()
    assert "39 of 40 records count." in rows.inner_text()
    assert rows.locator("tbody tr").count() == 40


def test_maps_are_switched_and_faded(opened: Any) -> None:
    first = opened.locator(".layers").first

    def shown() -> list[str]:
        return first.locator("img.over").evaluate_all(
            "maps => maps.filter((map) => getComputedStyle(map).visibility === 'visible').map((map) => map.alt)"
        )

    assert shown() == ["map of an_architecture_with_a_long_name_224_dcls by grad_cam"]
    opened.get_by_label("standard", exact=True).check()
    assert shown() == ["map of an_architecture_with_a_long_name_224 by grad_cam"]
    opened.get_by_label("people", exact=True).check()
    assert shown() == ["human map"]
    opened.get_by_label("none", exact=True).check()
    assert shown() == []
    opened.get_by_label("opacity of the maps").fill("20")
    assert first.locator("img.over").first.evaluate("map => getComputedStyle(map).opacity") == "0.2"


def test_the_page_is_whole_without_scripts(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#forest .forest tbody tr").first.is_visible()
    assert page.locator("#table-0 + .wide tbody tr").count() == 8
    assert page.locator(".controls").first.is_hidden()
    page.get_by_label("people", exact=True).check()
    assert page.locator(".layers img.people").first.is_visible()
    context.close()
