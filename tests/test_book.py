"""The published book of this build: every page, link, picture and figure is there."""

import json
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from test_make import make, tree
from test_notebooks import PAGES

from fashionlib import artifacts, evaluation, runtime
from tools import book

BUILD = runtime.build_root()


@pytest.fixture(scope="session")
def pages(site) -> dict[str, BeautifulSoup]:
    return {
        page: BeautifulSoup((site / f"{page}.html").read_text(), "html.parser")
        for page in ["index", *PAGES]
    }


def test_every_local_link_and_picture_exists(site, pages):
    for page, soup in pages.items():
        targets = [tag.get("href") for tag in soup.find_all("a")] + [
            tag.get("src") for tag in soup.find_all(["img", "script"])
        ]
        for target in filter(None, targets):
            if re.match(r"^(https?:|mailto:|data:|#|javascript:)", target):
                continue
            path = ((site / page).parent / target.split("#")[0].split("?")[0]).resolve()
            assert path.exists(), f"{page} refers to {target}"


def test_every_link_to_a_place_on_a_page_leads_there(site, pages):
    places = {
        (site / f"{page}.html").resolve(): {tag["id"] for tag in soup.find_all(id=True)}
        for page, soup in pages.items()
    }
    for page, soup in pages.items():
        here = (site / f"{page}.html").resolve()
        for target in (
            tag["href"] for tag in soup.find("main").find_all("a", href=True)
        ):
            if re.match(r"^(https?:|mailto:)", target) or not target.partition("#")[2]:
                continue
            file, _, place = target.partition("#")
            path = (here.parent / file).resolve() if file else here
            assert place in places.get(path, {place}), f"{page} refers to {target}"


def test_a_page_with_its_pictures_stays_below_2_megabytes(site, pages):
    for page, soup in pages.items():
        path = site / f"{page}.html"
        pictures = {
            (path.parent / tag["src"]).resolve() for tag in soup.find_all("img")
        }
        assert sum(file.stat().st_size for file in (path, *pictures)) < 2_000_000, page


def test_every_figure_is_published_with_a_number_and_alt_text(pages):
    for path in sorted(Path(runtime.project_root() / "notebooks").glob("*.ipynb")):
        soup = pages[f"notebooks/{path.stem}"]
        cells = json.loads(path.read_text())["cells"]
        for figure in (
            c["metadata"]["mystnb"] for c in cells if "mystnb" in c["metadata"]
        ):
            shown = soup.find("figure", id=figure["figure"]["name"]) or soup.find(
                id=figure["figure"]["name"]
            )
            assert shown is not None, figure["figure"]["name"]
            kind = " ".join(figure["image"]["alt"].split())
            alt = shown.find("img")["alt"]
            assert alt.startswith(kind)
            assert len(alt) > len(kind) + 5, (
                f"{figure['figure']['name']}: nothing from its data"
            )
            assert "Fig." in shown.find(class_="caption-number").text


def test_no_glued_value_is_missing_and_no_cell_failed(pages):
    for page, soup in pages.items():
        text = soup.find("main").text
        assert "No key" not in text, page
        assert "Traceback" not in text, page
        assert not re.search(r"\{(glue|term|doc|numref|footcite)\S*\}`", text), page


QUOTED = {  # glued name: where the same value stands in metrics.json; a last number is what it is multiplied with
    "data_rows": ("data", "rows"),
    "data_malformed": ("data", "malformed_rows"),
    "data_files": ("data", "images"),
    "data_duplicate_groups": ("data", "duplicate_groups"),
    "data_products": ("data", "products"),
    "cls_parameters": ("classifier", "parameters"),
    "cls_test": ("classifier", "accuracy", "test", 100),
    "cls_low": ("classifier", "test_accuracy_ci95", 0, 100),
    "cls_high": ("classifier", "test_accuracy_ci95", 1, 100),
    "cls_f1": ("classifier", "macro_f1", 100),
    "cls_gap_low": ("classifier", "gender_gap", "difference_ci95", 0, 100),
    "cls_ece": ("classifier", "expected_calibration_error"),
    "cls_p": ("classifier", "recall_equality_p"),
    "cls_speed": ("classifier", "images_per_second"),
    "sal_edges": ("guided_backprop", "edge_similarity"),
    "sal_head": ("guided_backprop", "head_randomization_similarity"),
    "sal_randomization": ("guided_backprop", "randomization_similarity"),
    "sal_second": ("guided_backprop", "second_class_similarity"),
    "avg_pictures": ("average_saliency", "images"),
    "avg_edges": ("average_saliency", "edge_similarity"),
    "avg_random": ("average_saliency", "random_network_similarity"),
    "avg_shuffled": ("average_saliency", "shuffled_similarity"),
    "sum_products": ("data", "products"),
    "sum_accuracy": ("classifier", "accuracy", "test", 100),
    "sum_gender_errors": ("classifier", "gender_errors"),
}


def glued_values(folder: Path) -> dict[str, float]:
    """Every number that the executed chapters put into their prose."""
    outputs = [
        output
        for path in folder.glob("*.ipynb")
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", [])
        if "scrapbook" in output.get("metadata", {})
    ]
    texts = {
        output["metadata"]["scrapbook"]["name"]: output["data"][
            "application/papermill.record/text/plain"
        ]
        for output in outputs
    }
    return {
        name: float(text)
        for name, text in texts.items()
        if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text)
    }


def test_the_prose_agrees_with_the_metrics(site):
    metrics = json.loads((site.parent / "artifacts" / "metrics.json").read_text())
    glued = glued_values(site.parent / "notebooks")
    for name, keys in QUOTED.items():
        value = metrics
        for key in keys:
            value = value[key] if isinstance(value, dict | list) else value * key
        assert glued[name] == pytest.approx(value, rel=1e-9), name


def test_what_follows_from_a_confusion_matrix_was_not_overwritten(site):
    """Names of a notebook are shared by its cells: a loop's variable once took that of a result."""
    runs = [json.loads((site.parent / "artifacts" / "metrics.json").read_text())]
    runs += [artifacts.measured(name) for name in book.KEPT_RUNS]
    for network in (run["classifier"] for run in runs):
        classes = [(row[i], sum(row)) for i, row in enumerate(network["confusion"])]
        right, count = (sum(numbers) for numbers in zip(*classes, strict=True))
        assert network["accuracy"]["test"] == pytest.approx(right / count)
        assert network["test_accuracy_ci95"] == pytest.approx(
            evaluation.accuracy_interval(right, count)
        )
        study = evaluation.difference_interval(
            (right, count), (round(0.9175 * 5600), 5600)
        )
        assert network["minus_study_ci95"] == pytest.approx(study)
        assert network["gender_gap"] == evaluation.gender_gap(network["confusion"])
        for interval, each in zip(network["recall_ci95"], classes, strict=True):
            assert interval == pytest.approx(evaluation.accuracy_interval(*each))


def test_no_chapter_printed_a_warning(site):
    """The page hides stderr, where progress bars are; a warning must not hide with them."""
    for path in sorted((site.parent / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            streams = [
                output
                for output in cell.get("outputs", [])
                if output.get("name") == "stderr"
            ]
            text = "".join("".join(output["text"]) for output in streams)
            assert "Warning" not in text, f"{path.name}: {text[:500]}"


def test_a_second_report_executes_nothing(site):
    before = tree(site.parent / "notebooks") | tree(site)
    result = make("report", "PROFILE=sample", "SOURCE=", build=BUILD)
    assert result.returncode == 0, result.stderr
    assert "== chapter" not in result.stdout
    assert tree(site.parent / "notebooks") | tree(site) == before
