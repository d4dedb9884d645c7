"""The chapters as text: clean in git, readable without extensions, links that lead."""

import ast
import collections
import itertools
import json
import re
import symtable
from pathlib import Path

import pytest
import yaml

from fashionlib import parameters, runtime
from tools import book, clean_notebooks

ROOT = runtime.project_root()
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in parameters.chapters()]
PROFILES = sorted((ROOT / "profiles").glob("*/*.yml"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [page["file"] for part in TOC["parts"] for page in part["chapters"]]
ANSWER = "<details><summary>Answer</summary>\n\n"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path, *kinds: str) -> list[dict]:
    """Cells of these kinds, or all, with their source as one text."""
    cells = json.loads(path.read_text())["cells"]
    return [
        cell | {"source": "".join(cell["source"])}
        for cell in cells
        if cell["cell_type"] in (kinds or ("markdown", "code"))
    ]


def text_of(path: Path) -> str:
    """The Markdown of a notebook or a page."""
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(cell["source"] for cell in cells_of(path, "markdown"))


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_toc_lists_the_chapters_in_order_and_appendices_apart():
    """An appendix has a letter: between chapters it would shift their numbers."""
    start, course, beyond, appendix = (
        [page["file"] for page in part["chapters"]] for part in TOC["parts"]
    )
    assert start == ["introduction"]
    names = [f"notebooks/{path.stem}" for path in NOTEBOOKS]
    numbered = [name for name in names if re.match(r"notebooks/\d\d_", name)]
    assert course + beyond == numbered
    assert course[-1] == "notebooks/06_summary", "the last page of part one"
    appended = [page for page in appendix if page.startswith("notebooks/")]
    assert appended == [name for name in names if name not in numbered]


@each_notebook
def test_clean(path):
    notebook = json.loads(path.read_text())
    assert clean_notebooks.cleaned(notebook) == notebook, (
        "run: python -m tools.clean_notebooks notebooks/*.ipynb"
    )
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    compared = [
        cell for cell in notebook["cells"] if "nbval-check-output" in tags(cell)
    ]
    assert compared
    for cell in compared:
        assert "keep_output" in tags(cell)
        assert cell["outputs"], f"nbval compares nothing in {cell['id']}"


@each_notebook
def test_parameters_are_commented_literals_and_checked_first(path):
    cells = cells_of(path, "code")
    (place,) = (i for i, cell in enumerate(cells) if "parameters" in tags(cell))
    lines = cells[place]["source"].splitlines()
    assert all(re.fullmatch(r"\w+ = .+  # .+", line) for line in lines), (
        "one literal and one comment a line"
    )
    assert len(parameters.notebook_defaults(path.stem)) == len(lines)
    assert parameters.notebook_defaults(path.stem)["run"] == "sample"
    called = f'parameters.check("{path.stem}", globals())'
    assert called in cells[place + 1]["source"]


# --- what JupyterLab shows ------------------------------------------------------------


@each_notebook
def test_no_markup_that_needs_an_extension(path):
    for cell in cells_of(path):
        role = r"\{[a-z][\w:-]*\}`"
        if cell["cell_type"] == "code":  # f"`{name}`" is none
            role = r"\{(glue|term|doc|numref|ref|footcite|cite)\b[^}]*\}`"
        for markup in (r":::", r"```\{", role):
            assert not re.search(markup, cell["source"]), cell["source"][:300]


@each_notebook
def test_the_page_opens_with_its_box_and_ends_with_references(path):
    text = text_of(path)
    assert text.startswith("# ")
    assert re.search(r"^> \*\*Before you start\.\*\*", text, flags=re.MULTILINE)
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert headings[-3:] == ["Summary", "Exercises", "References"]


@each_notebook
def test_set_up_and_solutions_are_folded_in_jupyterlab_and_in_the_book(path):
    for cell in cells_of(path, "code"):
        hidden = cell["metadata"].get("jupyter", {})
        if "solution" in tags(cell):
            assert "hide-cell" in tags(cell)
            assert hidden == {"source_hidden": True, "outputs_hidden": True}
        else:
            assert ("hide-input" in tags(cell)) == hidden.get("source_hidden", False)
        statements = ast.parse(cell["source"]).body
        if all(isinstance(each, ast.Import | ast.ImportFrom) for each in statements):
            assert "hide-input" in tags(cell), cell["source"][:100]


@each_notebook
def test_an_exercise_is_a_heading_a_solution_and_a_folded_answer(path):
    cells, count = cells_of(path), 0
    number = re.sub(r"^0", "", path.stem.split("_")[0])
    for place, cell in enumerate(cells):
        headings = re.findall(r"^### Exercise.*", cell["source"], flags=re.MULTILINE)
        if headings:
            count += 1
            (heading,) = headings
            assert re.fullmatch(rf"### Exercise {number}\.{count}: \S.*", heading)
            solution, answer = cells[place + 1 : place + 3]
            assert "solution" in tags(solution), heading
            assert answer["source"].startswith(ANSWER), heading
            assert answer["source"].rstrip().endswith("\n\n</details>"), heading
            assert answer["source"].count("<details>") == 1, heading
    assert count == sum("solution" in tags(cell) for cell in cells) >= 3


@each_notebook
def test_code_fits_into_the_page(path):
    for cell in cells_of(path, "code"):
        for line in cell["source"].splitlines():
            assert len(line) <= 88, line


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as JupyterLab makes them."""
    headings = re.findall(r"^#{1,6} (.+?) *$", text_of(path), flags=re.MULTILINE)
    return {book.slug(re.sub(r"[`*]", "", heading)) for heading in headings}


PAGES_WITH_LINKS = [*NOTEBOOKS, ROOT / "glossary.md", ROOT / "introduction.md"]


@pytest.mark.parametrize("path", PAGES_WITH_LINKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    prose = re.sub(r"`[^`]*`|\$[^$]*\$", "", text_of(path))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page), target
        assert anchor.isascii(), f"JupyterLab does not find {target}"


@each_notebook
def test_every_source_that_is_cited_stands_in_the_references(path):
    prose, references = text_of(path).split("\n## References")
    source = r"\]\((https://(?:doi\.org|arxiv\.org)/[^)\s]+)\)"
    cited = set(re.findall(source, prose))
    listed = set(re.findall(source, references))
    assert cited == listed


# --- what a lesson must not do --------------------------------------------------------


@each_notebook
def test_nothing_that_a_lesson_must_not_do(path):
    code = "\n".join(cell["source"] for cell in cells_of(path, "code"))
    for forbidden in (
        r"^\s*[!%]",
        r"warnings",
        r"urlopen|requests|wget",
        r"['\"]/\w+/",
    ):
        assert not re.search(forbidden, code, flags=re.MULTILINE), forbidden


def names(code: str) -> tuple[set[str], set[str]]:
    """The names that a cell assigns and reads; a comprehension's own are neither."""
    tables = [symtable.symtable(code, "cell", "exec")]
    for table in tables:
        tables += table.get_children()
    top = tables[0]
    assigned = {each.get_name() for each in top.get_symbols() if each.is_assigned()}
    read = set()
    for table in tables:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                read.add(symbol.get_name())
    return assigned, read


@each_notebook
def test_what_is_published_was_assigned_in_one_cell(path):
    """A loop's variable once took the name of a result on its way to metrics.json."""
    made = collections.defaultdict(list)
    for cell in cells_of(path, "code"):
        assigned, read = names(cell["source"])
        if "publish(" in cell["source"]:
            twice = [name for name in read - assigned if len(made[name]) > 1]
            assert twice == [], cell["source"]
        for name in assigned:
            made[name].append(cell["id"])


@each_notebook
def test_no_cell_takes_the_name_of_a_parameter(path):
    """A cell of chapter 7 once did, and the exercise below read its value."""
    cells = cells_of(path, "code")
    (given,) = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    parameters, _ = names(given["source"])
    for cell in cells:
        if cell is not given:
            assert not parameters & names(cell["source"])[0], cell["source"]


def calls(tree: ast.AST, *functions: str) -> list[ast.Call]:
    """Calls of functions by their dotted names."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in found if ast.unparse(node.func) in functions]


@each_notebook
def test_every_training_goes_on_from_a_checkpoint_that_names_its_network(path):
    """`full/08` would lose 27 fine-tunings, and a report would train them each time."""
    for cell in cells_of(path, "code"):
        tree = ast.parse(cell["source"])
        for call in calls(tree, "training.fit", "dcgan.fit"):
            given = {word.arg for word in call.keywords}
            assert "checkpoint" in given or '"checkpoint"' in cell["source"]
            assert "settings" in given or '"settings"' in cell["source"]
            data = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            texts = {node.value for node in data}
            named = {"data", "images"} & texts or "named" in cell["source"]
            assert named, cell["source"]


WHOLE = r"(train|validation|test|data|whole|clothes|called|unseen|known|asked|real)"


@each_notebook
def test_no_beginning_of_a_set_stands_for_a_sample_of_it(path):
    """Rows lie in the order of ids, and ids cluster by class.

    `images.random_subset` and its like take samples. One single image is none.
    """
    prefix = rf"\b{WHOLE}(\[\w+\])?(\.(rows|labels|images))?\[:(?!1\])\w"
    for cell in cells_of(path, "code"):
        for wrong in (prefix, rf"\b{WHOLE}\.(head|iloc)\b", r"\bislice\b"):
            assert not re.search(wrong, cell["source"]), cell["source"]


def test_the_pattern_of_beginnings_finds_what_it_should():
    prefix = rf"\b{WHOLE}(\[\w+\])?(\.(rows|labels|images))?\[:(?!1\])\w"
    for wrong in ("test.rows[:10]", "train[label].rows[:n]", "clothes[:n]"):
        assert re.search(prefix, wrong)
    for right in ("train.rows[:1]", "pixels[:1]", "test.rows[chosen]"):
        assert not re.search(prefix, right)


# The study's accuracies and split, the level of every interval, and three round figures
# of examples.
TYPED = {"93.26", "91.26", "91.75", "75", "10", "15", "95", "90", "92", "0.3"}


@each_notebook
def test_no_result_is_typed(path):
    """Fractions in the prose are the study's own or part of a worked example."""
    no_prose = r"\]\([^)]*\)|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$"
    prose = re.sub(no_prose, "", text_of(path), flags=re.DOTALL)
    typed = set(re.findall(r"(\d[\d.,]*) ?(?:%|percent|points?\b)", prose))
    assert typed - TYPED <= {"1,024"}, "print it"  # points that an exercise draws


# --- profiles -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", PROFILES, ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_profile_keys_exist_in_the_notebook(path):
    chosen = parameters.for_profile(path.stem, path.parent.name)
    assert chosen["run"] == path.parent.name


def test_every_profile_covers_every_chapter():
    profiles = {path.parent.name for path in PROFILES}
    expected = itertools.product(profiles, (path.stem for path in NOTEBOOKS))
    assert {(path.parent.name, path.stem) for path in PROFILES} == set(expected)
