"""The published book in a real browser, as its readers use it.

No page may ask any other machine for anything. Four pages are looked at before a
commit, all of them with `make test ALL=1`.
"""

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
FIRST = ("index", "notebooks/03_guided_backprop", "notebooks/05_dcgan", "glossary")
BY_AXE = FIRST[:2]  # it takes its time
# What lies beyond the right edge, and cannot be scrolled to.
CUT_OFF = """
    [...document.querySelectorAll("main :is(h1, h2, h3, p, li, a, img, svg)")]
    .filter(one => {
        for (let box = one; box.tagName !== "MAIN"; box = box.parentElement)
            if (["auto", "scroll"].includes(getComputedStyle(box).overflowX))
                return false
        return one.getBoundingClientRect().right > innerWidth
    }).map(one => one.textContent || one.outerHTML)"""
BROKEN_IMAGES = """() => Promise.all([...document.images].map(image => {
        image.loading = 'eager'
        return image.decode().then(() => null, () => image.src)
    })).then(found => found.filter(Boolean))"""


def some_slow(pages: list[str], first: tuple[str, ...] = FIRST) -> list:
    """Parameters: all but the first pages are looked at with ALL=1 only."""
    slow = {page: [] if page in first else [pytest.mark.slow] for page in pages}
    return [pytest.param(page, marks=marks) for page, marks in slow.items()]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def address(site) -> str:
    """The book on a port of this machine: a search needs a server."""
    handler = functools.partial(Quiet, directory=site)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def settled(page, address: str) -> None:
    """Open a page and wait until its formulas are set."""
    page.goto(address)
    ready = "window.MathJax.startup && window.MathJax.startup.promise"
    page.wait_for_function(f"() => !window.MathJax || ({ready})")
    page.evaluate(f"() => window.MathJax && {ready}.then(() => true)")


@pytest.mark.parametrize("name", some_slow(["index", *PAGES]))
def test_a_page_is_whole_on_a_desktop_and_on_a_phone(browser, address, name):
    for viewport, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        options = {"viewport": viewport, "color_scheme": scheme}
        with open_page(browser, **options) as (page, outside, errors):
            settled(page, f"{address}/{name}.html")
            assert page.evaluate(BROKEN_IMAGES) == []
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"]
            assert page.evaluate(CUT_OFF) == []
            formulas = page.locator("main .math").count()
            assert page.locator("main mjx-container").count() == formulas
            assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
        assert outside == []
        assert errors == []


def serious_violations(browser, address: str, scheme: str) -> list[tuple[str, str]]:
    options = {"viewport": DESKTOP, "color_scheme": scheme}
    with open_page(browser, reduced_motion="reduce", **options) as (page, *_):
        settled(page, address)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        unfold = "document.querySelectorAll('main details').forEach(x => x.open = true)"
        page.evaluate(unfold)
        page.wait_for_timeout(500)  # the theme fades in what unfolds
        options = {"resultTypes": ["violations"]}
        found = Axe().run(page, "main", options).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], one["nodes"][0]["html"]) for one in serious]


@pytest.mark.parametrize("name", some_slow(["index", *PAGES], BY_AXE))
def test_axe_finds_no_serious_violation_in_the_article(browser, address, name):
    assert serious_violations(browser, f"{address}/{name}.html", "light") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_AXE)
def test_axe_finds_no_serious_violation_in_the_dark(browser, address, name):
    assert serious_violations(browser, f"{address}/{name}.html", "dark") == []


def test_search_finds_what_chapters_say_and_print(browser, address):
    with open_page(browser, viewport=DESKTOP) as (page, outside, errors):
        page.goto(f"{address}/search.html?q=springenberg")
        page.wait_for_selector("#search-results li a")
        links = page.locator("#search-results li a")
        found = links.evaluate_all("links => links.map(link => link.href)")
    assert any("03_guided_backprop" in link for link in found)
    assert outside == errors == []


@pytest.mark.slow
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


@pytest.mark.parametrize("chapter", some_slow(CHAPTERS))
def test_solutions_and_answers_unfold(browser, address, chapter):
    with open_page(browser, viewport=PHONE) as (page, *_):
        page.goto(f"{address}/{chapter}.html")
        solutions, answers = ".tag_solution details", "section > details"
        for folded, content in ((solutions, ".highlight"), (answers, "p")):
            found = page.locator(folded)
            assert found.count() >= 3
            for i in range(found.count()):
                inside = found.nth(i).locator(content).first
                assert not inside.is_visible()
                found.nth(i).locator("summary").click()
                inside.wait_for(state="visible")


def test_a_term_leads_to_its_place_in_the_glossary(browser, address):
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        page.goto(f"{address}/notebooks/03_guided_backprop.html")
        page.locator("main a[href*='glossary.html#']").first.click()
        page.wait_for_url("**/glossary.html#*")
        place = page.url.partition("#")[2]
        assert page.locator(f"#{place} h2").count() == 1


@pytest.mark.slow
def test_the_film_of_the_training_plays(browser, address):
    """A PNG with several frames: the only image of its page that moves."""
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        page.goto(f"{address}/notebooks/05_dcgan.html")
        film = page.locator(".cell_output img[alt*='moments: epochs']").first
        film.scroll_into_view_if_needed()
        seen = set()
        for _ in range(40):
            seen.add(hashlib.sha256(film.screenshot()).hexdigest())
            page.wait_for_timeout(200)
    assert len(seen) >= 3


@pytest.mark.slow
def test_the_reader_chooses_light_or_dark(browser, address):
    background = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, viewport=DESKTOP, color_scheme="light") as (page, *_):
        page.goto(f"{address}/introduction.html")
        backgrounds = set()
        for _ in range(3):
            backgrounds.add(page.evaluate(background))
            page.locator("button.theme-switch-button:visible").first.click()
    assert len(backgrounds) == 2


@pytest.mark.slow
def test_paper_shows_the_article_and_nothing_else(browser, address):
    around = (
        "#pst-primary-sidebar",
        "#pst-secondary-sidebar",
        ".header-article-items",
        ".prev-next-footer",
    )
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        page.goto(f"{address}/notebooks/01_data_preparation.html")
        page.emulate_media(media="print")
        assert page.locator("h1:visible").count() == 1
        shown = [place for place in around if page.locator(place).first.is_visible()]
        assert shown == []


@pytest.mark.slow
def test_a_page_can_be_downloaded_as_the_notebook_that_was_executed(browser, address):
    button = ".dropdown-download-buttons a[href$='.ipynb']"
    with open_page(browser, viewport=DESKTOP) as (page, *_):
        page.goto(f"{address}/notebooks/04_average_saliency.html")
        link = page.locator(button).first.get_attribute("href")
        text = page.request.get(f"{address}/notebooks/{link}").text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    data = [output.get("data", {}) for cell in cells for output in cell["outputs"]]
    assert any("image/png" in each for each in data)
    assert str(runtime.project_root()) not in text
