"""A hostile catalogue in the published book: its markup is text, nothing of it runs.

The whole way is real: cells that run in a kernel and show what a catalogue, a file's
name and a profile hold; the staged book; Jupyter Book; Chromium.
"""

import json
import re
import subprocess
import sys

import nbformat
import pytest
from browser import open_page
from nbclient import NotebookClient

from fashionlib import artifacts, parameters, runtime
from tools import book

CHAPTER = "01_data_preparation"
NAMES = [
    "<script>window.ran = 'script'</script>",
    "<img src=x onerror=\"window.ran = 'image'\">",
    "</table></div><h1>Taken over</h1>",
    "<svg onload=window.ran='svg'>",
    "{role}`text` {{ title }} {doc}`index`",
    "Was $20 now $10",
    r"$\frac{x$ \(y\) \[z\]",
    "`code` ``two`` ~~~",
    "[link](javascript:window.ran='link') ](javascript:window.ran='b') <javascript:c>",
    "::: note",
    "% a comment",
    "&lt;b&gt; &amp; \"quoted\" 'single'",
    "# heading",
    "- item",
    "1. first",
    "*bold* **strong** _low_ ~~gone~~",
    "| cell | ---",
    "two\nlines\n\n# and a heading",
    "\u202egnp.txt",
    "zero\u200bwidth \u05e9\u05dc\u05d5\u05dd",
    "https://shop.example/x shop.com www.shop.com me@shop.com",
]
# of a file, without what a name cannot hold
FILE = "".join(NAMES).replace("/", "").replace("\n", " ")[:80] + ".zip"
CELLS = [
    """
import sys, warnings
import numpy as np, pandas as pd
from IPython.display import Markdown, display
from fashionlib import evaluation, plots
print(folder, *names, sep="\\n")
warnings.warn("seen")
print(folder, file=sys.stderr)
""",
    "pd.DataFrame({name: [name] for name in names}, index=pd.Index(names[:1]))",
    "evaluation.table({name: {'kind': name, name: 1} for name in names})",
    """
for name in names:
    display(Markdown(evaluation.escape(name)))
    display(Markdown(f"A {evaluation.escape(name)} product."))
display(Markdown(f"In {evaluation.escape(folder)}."))
""",
    """
grey = np.full((8, 8, 3), 99, np.uint8)
plots.show(plots.image_grid([grey] * len(names), names), " and ".join(names))
plots.show(plots.image_grid([grey], [folder]), folder)
""",
    "plots.show(plots.class_bars({name: [1] * 6 for name in names}), names[0])",
    "names[0] + folder",
]


def executed(*cells: str, **metadata) -> nbformat.NotebookNode:
    """A chapter with these cells, as papermill leaves it."""
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# A chapter")])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    if cells:
        notebook.cells += [new.new_code_cell(cell.strip()) for cell in cells]
        notebook.cells[1].metadata["tags"] = ["injected-parameters"]
        NotebookClient(notebook, kernel_name="python3").execute()
    notebook.metadata["papermill"] = {
        "input_path": "/home/me/in.ipynb",
        "output_path": "/home/me/out.ipynb",
        "duration": 2.5,
        "parameters": metadata,
    }
    return notebook


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The rendered book of a hostile run."""
    build = tmp_path_factory.mktemp("it's a build")
    home = tmp_path_factory.mktemp("<home> of $me")
    folder = build / "sample"
    (folder / "notebooks").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASHION_BUILD", str(build))
        patch.setattr(book, "overview", lambda profile, path: "A picture.")
        code = f"names = {NAMES!r}\nfolder = {str(home)!r}"
        for chapter in parameters.chapters():
            cells = (code, *CELLS) if chapter == CHAPTER else ()
            passed = {"source": f"{home}/{FILE}", "files": [f"{home}/{FILE}"]}
            passed |= {f"name_{i}": name for i, name in enumerate(NAMES)}
            made = executed(*cells, **passed)
            nbformat.write(made, folder / "notebooks" / f"{chapter}.ipynb")
        machine = {"gpu": None, "cores": 2, "cpu": NAMES[0]}
        classifier = {"architecture": NAMES[1], "weights": f"{home}/{FILE}"}
        classifier |= {"precision_mode": "float32", "accuracy": {"test": 0.5}}
        artifacts.publish("sample", "classifier", classifier | {"machine": machine})
        artifacts.publish("sample", "data", {"source": FILE})
        settings = {"source": FILE, "source_fingerprint": "0" * 32}
        settings |= {"sizes": ["64x64"], "resize_mode": "squash"}
        prepared = artifacts.folder("sample") / "prepared"
        prepared.mkdir()
        artifacts.write_json(prepared / "manifest.json", {"settings": settings})
        staged = book.stage("sample")
    for page in ("index", "introduction", "glossary"):  # they link into the chapters
        (staged / f"{page}.md").write_text("# A page\n\nText.\n")
    render = "from jupyter_book.cli.main import main; main()"
    options = ["build", "-W", "-n", "--keep-going", "-q", str(staged)]
    done = subprocess.run(
        [sys.executable, "-c", render, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return staged / "_build" / "html", [build, home]


# Sphinx sets quotation marks and dashes of pages, not of outputs.
STRAIGHT = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "--"}
STRAIGHT[0x2014] = "---"
# What runs, or could be made to.
ELEMENTS = """() => [...document.querySelectorAll("main article *")]
    .filter(one => ["IFRAME", "OBJECT", "FORM"].includes(one.tagName)
        || [...one.attributes].some(
            each => /^on/.test(each.name) || /^javascript:/i.test(each.value))
        || one.tagName === "SCRIPT" && /ran/.test(one.textContent))
    .map(one => one.outerHTML)"""


@pytest.mark.parametrize("name", [f"notebooks/{CHAPTER}", "this_build"])
def test_no_markup_of_a_catalogue_takes_effect(browser, hostile, name):
    html, _ = hostile
    with open_page(browser) as (page, outside, errors):
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto((html / f"{name}.html").as_uri())
        page.wait_for_timeout(1000)  # scripts have run, formulas are set
        assert page.evaluate("window.ran") is None
        assert page.evaluate(ELEMENTS) == []
        main = page.locator("main article")
        assert main.locator("h1").count() == 1
        assert (
            main.locator("mjx-container, mjx-merror, ul, ol, hr, del, b").count() == 0
        )
        assert main.locator("a[href*='shop'], a[href^='mailto']").count() == 0
        shown = " ".join(main.inner_text().split())
        for text in NAMES[:17]:
            assert text in shown.translate(STRAIGHT)
    assert outside == []
    assert [each for each in errors if "ERR_FAILED" not in each] == []


def test_no_folder_of_the_machine_is_published(hostile):
    html, folders = hostile
    files = [each for each in html.rglob("*") if each.suffix in (".html", ".ipynb")]
    for path in [*files, html / "searchindex.js"]:
        text = path.read_text()
        for folder in [*map(str, folders), folders[1].name, "/home/me", sys.prefix]:
            assert folder not in text, path
        assert str(runtime.project_root()) not in text, path


def test_a_downloaded_notebook_holds_no_note_of_the_machine(hostile):
    html, _ = hostile
    text = (html / "_sources" / "notebooks" / f"{CHAPTER}.ipynb").read_text()
    notebook = json.loads(text)
    assert set(notebook["metadata"]) == {"kernelspec"}
    assert not re.search("papermill|UserWarning", text)
    outputs = [each for cell in notebook["cells"] for each in cell.get("outputs", [])]
    assert len(outputs) > 2 * len(NAMES)
    assert all(each.get("name") != "stderr" for each in outputs)
