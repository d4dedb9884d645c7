"""The chapters as text: clean in git, one skeleton, every name they refer to is known."""

import collections
import itertools
import json
import re
import subprocess
import symtable
import sys
from pathlib import Path

import pytest
import yaml

from fashionlib import artifacts
from tools import clean_notebooks

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted((ROOT / "profiles").glob("*/*.yml"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [page["file"] for part in TOC["parts"] for page in part["chapters"]]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str) -> list[dict]:
    return [
        cell
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


def text_of(path: Path) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_toc_lists_the_chapters_in_order_and_appendices_apart():
    """An appendix has a letter in its number: between the numbered chapters it would shift theirs."""
    start, course, beyond, appendix = (
        [page["file"] for page in part["chapters"]] for part in TOC["parts"]
    )
    assert start == ["introduction"]
    names = [f"notebooks/{path.stem}" for path in NOTEBOOKS]
    assert course + beyond == [
        name for name in names if re.match(r"notebooks/\d\d_", name)
    ]
    assert course[-1] == "notebooks/06_summary", "the last page of part one"
    appended = [page for page in appendix if page.startswith("notebooks/")]
    assert appended == [name for name in names if name not in course + beyond]


@each_notebook
def test_clean(path):
    notebook = json.loads(path.read_text())
    assert notebooks.cleaned(notebook) == notebook, (
        "run: python -m tools.clean_notebooks notebooks/*.ipynb"
    )
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in cells_of(path, "code"):
        if "nbval-check-output" in tags(cell):
            assert "keep_output" in tags(cell)
            assert cell["outputs"], f"nbval compares nothing in {cell['id']}"


def test_cleaning_keeps_what_is_compared_and_nothing_else(tmp_path):
    printed = {
        "output_type": "execute_result",
        "execution_count": 7,
        "metadata": {},
        "data": {"text/plain": ["1"]},
    }
    ran = {
        "cell_type": "code",
        "execution_count": 7,
        "source": ["1"],
        "outputs": [printed],
    }
    cells = [
        ran
        | {
            "id": "a",
            "metadata": {
                "execution": {"shell.execute_reply": "2026"},
                "tags": ["keep_output"],
            },
        },
        ran | {"id": "b", "metadata": {"scrolled": True}},
        {"cell_type": "markdown", "id": "c", "metadata": {}, "source": ["text"]},
    ]
    path = tmp_path / "lesson.ipynb"
    dirty = {
        "cells": cells,
        "metadata": {"kernelspec": {"name": "conda-x"}, "widgets": {}},
        "nbformat": 4,
    }
    path.write_text(json.dumps(dirty))
    for status in (1, 0):  # the second time there is nothing left to do
        command = [sys.executable, "-m", "tools.clean_notebooks", path]
        assert (
            subprocess.run(command, capture_output=True, check=False).returncode
            == status
        )
    first, second, third = json.loads(path.read_text())["cells"]
    assert (first["execution_count"], first["outputs"][0]["execution_count"]) == (1, 1)
    assert first["metadata"] == {"tags": ["keep_output"]}
    assert (second["execution_count"], second["outputs"], second["metadata"]) == (
        None,
        [],
        {},
    )
    assert third == cells[2]
    assert json.loads(path.read_text())["metadata"] == {
        "kernelspec": notebooks.KERNEL,
        "language_info": {"name": "python"},
    }


@each_notebook
def test_some_output_is_compared(path):
    assert any("nbval-check-output" in tags(cell) for cell in cells_of(path, "code"))


@each_notebook
def test_parameters_are_commented_literals(path):
    (cell,) = (cell for cell in cells_of(path, "code") if "parameters" in tags(cell))
    lines = "".join(cell["source"]).splitlines()
    assert all(re.fullmatch(r"\w+ = .+  # .+", line) for line in lines), (
        "one literal and one comment a line"
    )
    assert len(artifacts.notebook_parameters(path)) == len(lines)
    assert artifacts.notebook_parameters(path)["run"] == "sample"


@each_notebook
def test_skeleton(path):
    text = text_of(path)
    assert text.startswith("# ")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert headings[0] == "The question"
    assert headings[-3:] == ["Summary", "Exercises", "References"]
    assert "```{footbibliography}" in text
    objectives = re.search(
        r"\{admonition\} Before you start.*?```", text, flags=re.DOTALL
    ).group()
    assert 4 <= len(re.findall(r"^- ", objectives, flags=re.MULTILINE)) <= 5


@each_notebook
def test_what_a_solution_shows_is_folded_with_it(path):
    cells = json.loads(path.read_text())["cells"]
    for solution, after in itertools.pairwise(cells):
        if "solution" in tags(solution):
            text = "".join(after["source"])
            assert text.startswith(
                (":::{dropdown} Answer\n", ":::{admonition} Exercise", "## References")
            ), text[:80]


@each_notebook
def test_size(path):
    code = [cell for cell in cells_of(path, "code") if "solution" not in tags(cell)]
    assert 12 <= len(code) <= 30
    for cell in code:
        limit = 25 if "parameters" in tags(cell) else 15  # a parameter is a line
        assert len("".join(cell["source"]).splitlines()) <= limit, (
            f"{cell['id']} is too long to read in one glance"
        )
    prose = re.sub(r"## Exercises.*?## References", "", text_of(path), flags=re.DOTALL)
    assert 1500 <= len(prose.split()) <= 4000


@each_notebook
def test_nothing_that_a_lesson_must_not_do(path):
    code = "\n".join("".join(cell["source"]) for cell in cells_of(path, "code"))
    for forbidden in (
        r"^\s*[!%]",
        r"\bdef ",
        r"warnings",
        r"urlopen|requests|wget",
        r"['\"]/\w+/",
    ):
        assert not re.search(forbidden, code, flags=re.MULTILINE), forbidden


@each_notebook
def test_terms_and_citations_are_known(path):
    glossary = {
        line.strip()
        for line in (ROOT / "glossary.md").read_text().splitlines()
        if re.match(r"^\S", line)
    }
    keys = set(
        re.findall(
            r"^@\w+\{(.+),$", (ROOT / "references.bib").read_text(), flags=re.MULTILINE
        )
    )
    text = text_of(path)
    for term in re.findall(r"\{term\}`([^`]+)`", text):
        target = re.sub(r".*<(.+)>", r"\1", term)
        assert target.lower() in {entry.lower() for entry in glossary}
    for cited in re.findall(r"\{footcite[^}]*\}`([^`]+)`", text):
        assert set(cited.split(",")) <= keys


def names(code: str) -> tuple[set[str], set[str]]:
    """The notebook's names that a cell assigns, and those that it reads; a comprehension's own are neither."""
    tables = [symtable.symtable(code, "cell", "exec")]
    for table in tables:
        tables += table.get_children()
    assigned = {
        symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_assigned()
    }
    seen = (
        (symbol, table)
        for table in tables
        for symbol in table.get_symbols()
        if symbol.is_referenced()
    )
    return assigned, {
        symbol.get_name()
        for symbol, table in seen
        if table is tables[0] or symbol.is_global()
    }


@each_notebook
def test_what_is_published_was_assigned_in_one_cell(path):
    """A loop's variable once took the name of a result on its way to metrics.json."""
    made = collections.defaultdict(list)
    for cell in cells_of(path, "code"):
        code = "".join(cell["source"])
        assigned, read = names(code)
        if "update_metrics(" in code or "glue(" in code:
            assert {
                name: made[name] for name in read - assigned if len(made[name]) > 1
            } == {}, cell["id"]
        for name in assigned:
            made[name].append(cell["id"])


# The study's accuracies and split, the level of every interval, and three round figures of examples.
TYPED = {"93.26", "91.26", "91.75", "75", "10", "15", "95", "90", "92", "0.3"}


@each_notebook
def test_no_result_is_typed(path):
    """A share or a difference in the prose is glued, the study's own, or part of a worked example."""
    prose = re.sub(
        r"\{[a-z:]+\}`[^`]*`|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$",
        "",
        text_of(path),
        flags=re.DOTALL,
    )
    typed = set(re.findall(r"(\d[\d.,]*) ?(?:%|percent|points?\b)", prose))
    assert typed - TYPED <= {"1,024"}, "glue it"  # points that an exercise draws


@each_notebook
def test_figures_have_caption_name_and_alt_text(path):
    for cell in cells_of(path, "code"):
        if "mystnb" not in cell["metadata"]:
            continue
        figure = cell["metadata"]["mystnb"]["figure"]
        assert figure["caption"]
        assert figure["name"].startswith("fig-")
        assert cell["metadata"]["mystnb"]["image"]["alt"]
        assert f"{{numref}}`{figure['name']}`" in text_of(path), (
            "a figure must be read in the text"
        )


def test_names_of_figures_and_glued_values_are_unique():
    code = "\n".join(
        "".join(cell["source"]) for path in NOTEBOOKS for cell in cells_of(path, "code")
    )
    names = re.findall(r'glue\("(\w+)"', code)
    names += [
        c["metadata"]["mystnb"]["figure"]["name"]
        for p in NOTEBOOKS
        for c in cells_of(p, "code")
        if "mystnb" in c["metadata"]
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "path", PROFILES, ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_profile_keys_exist_in_the_notebook(path):
    defaults = artifacts.notebook_parameters(ROOT / "notebooks" / f"{path.stem}.ipynb")
    chosen = artifacts.read_profile(path, defaults)
    assert chosen["run"] == path.parent.name


def test_every_profile_covers_every_chapter():
    profiles = {path.parent.name for path in PROFILES}
    assert profiles == {"small", "small-224", "full", "best"}
    expected = {f"{profile}/{path.stem}" for profile in profiles for path in NOTEBOOKS}
    assert {f"{path.parent.name}/{path.stem}" for path in PROFILES} == expected
