"""The published book in a real browser, as its readers use it. No page may ask any other machine for anything."""

import functools
import hashlib
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import open_page
from test_notebooks import NOTEBOOKS, PAGES

from fashionlib import runtime

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}
CHAPTERS = [f"notebooks/{path.stem}" for path in NOTEBOOKS]
CUT_OFF = """[...document.querySelectorAll("main :is(h1, h2, h3, p, li, a, img, svg)")].filter(one => {
    for (let box = one; box.tagName !== "MAIN"; box = box.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return false
    return one.getBoundingClientRect().right > innerWidth
}).map(one => one.textContent || one.outerHTML)"""  # what lies beyond the right edge, and cannot be scrolled to
each_page = pytest.mark.parametrize("page_name", ["index", *PAGES])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def address(site) -> str:
    """The book on a port of this machine: a search needs a server, as readers have one."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def settled(page, address: str) -> None:
    """Open a page and wait until its formulas are set."""
    page.goto(address)
    page.wait_for_function(
        "() => !window.MathJax || (window.MathJax.startup && window.MathJax.startup.promise)"
    )
    page.evaluate(
        "() => window.MathJax && window.MathJax.startup.promise.then(() => true)"
    )


@each_page
def test_a_page_is_whole_on_a_desktop_and_on_a_phone(browser, address, page_name):
    for viewport, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        with open_page(browser, viewport=viewport, color_scheme=scheme) as (
            page,
            outside,
            errors,
        ):
            settled(page, f"{address}/{page_name}.html")
            broken = page.evaluate(
                "() => Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode().then("
                "() => null, () => i.src) })).then(found => found.filter(Boolean))"
            )
            assert broken == []
            assert (
                page.evaluate("document.documentElement.scrollWidth")
                <= viewport["width"]
            )
            assert page.evaluate(CUT_OFF) == []
            assert (
                page.locator("main mjx-container").count()
                == page.locator("main .math").count()
            )
            assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
        assert outside == []
        assert errors == []


@each_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation_in_the_article(
    browser, address, page_name, scheme
):
    with open_page(
        browser, viewport=DESKTOP, color_scheme=scheme, reduced_motion="reduce"
    ) as (page, *_):
        settled(page, f"{address}/{page_name}.html")
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        page.evaluate(
            "document.querySelectorAll('main details').forEach(one => one.open = true)"
        )
        page.wait_for_timeout(
            500
        )  # the theme fades in what unfolds: its colours are not the final ones yet
        found = Axe().run(page, context="main").response["violations"]
    serious = [
        (one["id"], one["nodes"][0]["html"])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_search_finds_a_term(browser, address):
    with open_page(browser, viewport=DESKTOP) as (page, outside, errors):
        page.goto(f"{address}/search.html?q=springenberg")
        page.wait_for_selector("#search-results li a")
        found = page.locator("#search-results li a").evaluate_all(
            "links => links.map(link => link.href)"
        )
    assert any("03_guided_backprop" in link for link in found)
    assert outside == errors == []


def test_next_and_previous_walk_the_book_in_order(browser, address):
    order = [f"{address}/{name}.html" for name in ["index", *PAGES]]
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        for button, names in (("right-next", order), ("left-prev", order[::-1])):
            page.goto(names[0])
            seen = [names[0]]
            while (link := page.locator(f"a.{button}")).count():
                link.click()
                page.wait_for_url(lambda url, last=seen[-1]: url != last)
                seen.append(page.url)
            assert seen == names


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_solutions_unfold(browser, address, chapter):
    with open_page(browser, viewport=PHONE) as (page, *_):
        page.goto(f"{address}/{chapter}.html")
        for folded, content in (
            (".tag_solution details", ".highlight"),
            ("details.sd-dropdown", "p"),
        ):
            found = page.locator(folded)
            assert found.count() >= 3
            for i in range(found.count()):
                inside = found.nth(i).locator(content).first
                assert not inside.is_visible()
                found.nth(i).locator("summary").click()
                inside.wait_for(state="visible")


def test_the_film_of_the_training_plays(browser, address):
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        page.goto(f"{address}/notebooks/05_dcgan.html")
        film = page.locator("#fig-gan-film img")
        film.scroll_into_view_if_needed()
        seen = set()
        for _ in range(20):
            seen.add(hashlib.sha256(film.screenshot()).hexdigest())
            page.wait_for_timeout(200)
    assert len(seen) >= 3


def test_the_reader_chooses_light_or_dark(browser, address):
    with open_page(browser, viewport=DESKTOP, color_scheme="light") as (page, *_):
        page.goto(f"{address}/introduction.html")
        backgrounds = set()
        for _ in range(3):
            backgrounds.add(
                page.evaluate("getComputedStyle(document.body).backgroundColor")
            )
            page.locator("button.theme-switch-button:visible").first.click()
    assert len(backgrounds) == 2


def test_paper_shows_the_article_and_nothing_else(browser, address):
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        page.goto(f"{address}/notebooks/01_data_preparation.html")
        page.emulate_media(media="print")
        assert page.locator("h1:visible").count() == 1
        around = (
            "#pst-primary-sidebar",
            "#pst-secondary-sidebar",
            ".header-article-items",
            ".prev-next-footer",
        )
        assert [
            place for place in around if page.locator(place).first.is_visible()
        ] == []


def test_a_page_can_be_downloaded_as_the_notebook_that_was_executed(browser, address):
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        page.goto(f"{address}/notebooks/04_average_saliency.html")
        link = page.locator(
            ".dropdown-download-buttons a[href$='.ipynb']"
        ).first.get_attribute("href")
        text = page.request.get(f"{address}/notebooks/{link}").text()
    cells = json.loads(text)["cells"]
    assert any(
        "image/png" in output.get("data", {})
        for cell in cells
        for output in cell.get("outputs", [])
    )
    assert str(runtime.project_root()) not in text
