"""The published book of this build: every page, link, image and figure is there."""

import json
import re

import pytest
from bs4 import BeautifulSoup
from conftest import from_chapter
from test_make import make, tree
from test_notebooks import NOTEBOOKS, PAGES

from fashionlib import artifacts, evaluation, runtime
from fashionlib.catalogue import CLASS_NAMES
from tools import book


@pytest.fixture(scope="session")
def pages(site) -> dict[str, BeautifulSoup]:
    found = {}
    for page in ["index", *PAGES]:
        text = (site / f"{page}.html").read_text()
        found[page] = BeautifulSoup(text, "html.parser")
    return found


@pytest.fixture(scope="session")
def executed(site) -> dict[str, list[dict]]:
    """Outputs of every executed chapter."""
    found = {}
    for path in NOTEBOOKS:
        notebook = json.loads((site.parent / "notebooks" / path.name).read_text())
        found[path.stem] = []
        for cell in notebook["cells"]:
            found[path.stem] += cell.get("outputs", [])
    return found


def test_every_local_link_and_image_exists(site, pages):
    for page, soup in pages.items():
        targets = [tag.get("href") for tag in soup.find_all("a")]
        targets += [tag.get("src") for tag in soup.find_all(["img", "script"])]
        for target in filter(None, targets):
            if re.match(r"^(https?:|mailto:|data:|#|javascript:)", target):
                continue
            file = target.split("#")[0].split("?")[0]
            assert ((site / page).parent / file).exists(), f"{page} refers to {target}"


def test_every_link_to_a_place_on_a_page_leads_there(site, pages):
    places = {}
    for page, soup in pages.items():
        file = (site / f"{page}.html").resolve()
        places[file] = {tag["id"] for tag in soup.find_all(id=True)}
    for page, soup in pages.items():
        here = (site / f"{page}.html").resolve()
        for tag in soup.find("main").find_all("a", href=True):
            file, _, place = tag["href"].partition("#")
            if not place or re.match(r"^(https?:|mailto:)", file):
                continue
            path = (here.parent / file).resolve() if file else here
            known = places.get(path, {place})
            assert place in known, f"{page} refers to {tag['href']}"


def test_a_page_with_its_images_stays_below_2_megabytes(site, pages):
    for page, soup in pages.items():
        path = site / f"{page}.html"
        sources = {tag["src"] for tag in soup.find_all("img")}
        sources = {each for each in sources if not each.startswith("data:")}
        images = {(path.parent / each).resolve() for each in sources}
        assert sum(file.stat().st_size for file in (path, *images)) < 2_000_000, page


def test_every_figure_is_published_with_its_words(pages, executed):
    for chapter, outputs in executed.items():
        figures = [
            output["data"]
            for output in outputs
            if "image/png" in output.get("data", {})
        ]
        assert figures, f"{chapter} shows nothing"
        soup = pages[f"notebooks/{chapter}"]
        shown = soup.select(".cell_output img:not(.quiz img)")
        alts = [image.get("alt", "") for image in shown]
        assert len(alts) == len(figures)
        for alt, data in zip(alts, figures, strict=True):
            words = " ".join("".join(data["text/plain"]).split())
            assert words in alt, f"{chapter}: one figure a cell"
            assert len(alt) > 20
            assert not re.search(r"\.png|<|object at 0x", alt), alt


def test_no_page_shows_raw_markup_or_an_error(pages):
    for page, soup in pages.items():
        text = soup.find("main").text
        assert "Traceback" not in text, page
        assert "<!--" not in text, page
        for code in soup.find("main").select("pre, code"):
            code.decompose()
        raw = r":::|\{(glue|term|doc|numref|ref|footcite)\b|\*\*|<details|\]\("
        assert not re.search(raw, soup.find("main").text), page


def test_no_folder_of_this_machine_is_published(site):
    root = str(runtime.project_root())
    for path in [*site.rglob("*.html"), *site.rglob("*.ipynb")]:
        assert root not in path.read_text(), path


def test_what_follows_from_a_confusion_matrix_was_not_overwritten(site):
    """Names of a notebook are shared by its cells: a loop's once took a result's."""
    chapter_2 = from_chapter("02_resnet152")
    runs = [json.loads((site.parent / "artifacts" / "metrics.json").read_text())]
    runs += [artifacts.measured(name) for name in book.KEPT_RUNS]
    for network in (run["classifier"] for run in runs):
        classes = [(row[i], sum(row)) for i, row in enumerate(network["confusion"])]
        correct, count = (sum(numbers) for numbers in zip(*classes, strict=True))
        interval = pytest.approx(evaluation.wilson_interval(correct, count))
        assert network["accuracy"]["test"] == pytest.approx(correct / count)
        assert network["test_accuracy_ci95"] == interval
        study = (round(0.9175 * 5600), 5600)
        difference = chapter_2.newcombe_interval((correct, count), study)
        assert network["minus_study_ci95"] == pytest.approx(difference)
        gap = chapter_2.gender_gap(network["confusion"])
        assert network["gender_gap"].items() >= gap.items()


def test_every_count_of_the_confusion_is_in_the_words_of_its_figure(site, executed):
    metrics = json.loads((site.parent / "artifacts" / "metrics.json").read_text())
    words = [
        output.get("data", {}).get("text/plain") for output in executed["02_resnet152"]
    ]
    (matrix,) = [text for text in words if "true class" in "".join(text or "")]
    for name, row in zip(CLASS_NAMES, metrics["classifier"]["confusion"], strict=True):
        assert f"{name} {' '.join(map(str, row))}" in "".join(matrix)


def test_every_reading_of_the_sample_holds(executed):
    """`claims.reading` prints another sentence where a result is otherwise."""
    for chapter, outputs in executed.items():
        for output in outputs:
            said = "".join(output.get("data", {}).get("text/markdown", ""))
            holds = output.get("metadata", {}).get("reading", True)
            assert holds, f"{chapter}: {said}"


def test_no_chapter_printed_a_warning(executed):
    """The page hides stderr and JupyterLab shows it in red: nothing is there."""
    for chapter, outputs in executed.items():
        for output in outputs:
            assert output.get("name") != "stderr", f"{chapter}: {output['text']}"


@pytest.mark.slow
def test_a_second_report_executes_nothing(site):
    before = tree(site.parent / "notebooks") | tree(site)
    result = make("report", build=runtime.build_root())
    assert result.returncode == 0, result.stderr
    assert "== chapter" not in result.stdout
    assert tree(site.parent / "notebooks") | tree(site) == before
