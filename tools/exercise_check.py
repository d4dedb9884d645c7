"""Checks the answers in notebooks/; `make student` copies it to build/student.

    .venv/bin/pytest build/student             # every exercise
    .venv/bin/pytest build/student -k 4.1      # one
    .venv/bin/pytest build/student -k "4."     # those of a chapter

A chapter with an answer is run once, as a copy: your file and the course's results stay
as they are. Then the course's own solutions run in the same kernel, and your answers
may be 1 % away from theirs: so the check holds for every profile and on every machine.
It needs what the chapter itself needs: the results of the chapters before it.
"""

import base64
import collections
import functools
import json
import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from fashionlib import runtime

FOLDER = Path(__file__).resolve().parent


def unpacked(path: Path) -> dict[str, dict[str, str]]:
    """{chapter: {exercise: code}} of solutions.json."""
    damage = (OSError, ValueError, LookupError, TypeError, AttributeError, zlib.error)
    try:
        packed = json.loads(path.read_text(encoding="utf-8"))["solutions"]
        solutions = json.loads(zlib.decompress(base64.b64decode(packed)))
        return {chapter: dict(each) for chapter, each in solutions.items()}
    except damage as error:
        reason = f"{path} is damaged ({error!r:.100}): run make student again"
        pytest.fail(reason, pytrace=False)


SOLUTIONS = unpacked(FOLDER / "solutions.json")
EXERCISES = [(chapter, name) for chapter, each in SOLUTIONS.items() for name in each]

# Names that the chapter made get their values back before a solution runs: your cells
# may have used them anew.
REMEMBER = "_chapter = {k: v for k, v in globals().items() if not k.startswith('_')}"
RESTORE = "globals().update(_chapter)"
SHOW = """
import json
plain = lambda value: value.tolist() if hasattr(value, "tolist") else repr(value)
print("\\n" + json.dumps({name}, default=plain))
"""


@pytest.mark.parametrize(
    ("chapter", "exercise"), EXERCISES, ids=[exercise for _, exercise in EXERCISES]
)
def test_exercise(chapter, exercise):
    name = answer_name(exercise)
    text = "\n".join(each.source for each in read(chapter).cells)
    if re.search(rf"^{name} *= *\.\.\.", text, re.MULTILINE):
        pytest.fail(f"{name}: not answered yet", pytrace=False)
    error, answer, correct = run(chapter)[exercise]
    if error:
        pytest.fail(f"{name}: {error}", pytrace=False)
    if not isinstance(correct, str | bool):
        correct = pytest.approx(correct, rel=0.01, abs=1e-6, nan_ok=True)
    if answer != correct:
        pytest.fail(f"{name}: not correct yet, found {answer!r:.300}", pytrace=False)


def answer_name(exercise: str) -> str:
    return "answer_" + exercise.replace(".", "_")


def read(chapter: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / "notebooks" / f"{chapter}.ipynb", as_version=4)


def cell(code: str) -> nbformat.NotebookNode:
    """A cell after whose error the run goes on."""
    return nbformat.v4.new_code_cell(code, metadata={"tags": ["raises-exception"]})


@functools.cache
def run(chapter: str) -> dict[str, tuple]:
    """Run a copy of the chapter, then its solutions: {exercise: (error, yours, ours)}.

    The error says why there is nothing to compare; it is '' where there is.
    """
    notebook = read(chapter)
    yours, ours = split_by_exercise(notebook), {}
    for exercise, code in SOLUTIONS[chapter].items():
        show = SHOW.format(name=answer_name(exercise))
        yours[exercise].append(cell(show))
        ours[exercise] = cell(f"{RESTORE}\n{code}\n{show}")
    notebook.cells += [yours[exercise][-1] for exercise in ours] + [*ours.values()]
    try:
        execute(notebook)
    except (CellExecutionError, DeadKernelError) as stop:
        what = f"{stop.ename}: {stop.evalue}" if hasattr(stop, "ename") else stop
        return dict.fromkeys(ours, (f"{chapter} was not run to its end, {what}", 0, 0))
    return {exercise: outcome(yours[exercise], ours[exercise]) for exercise in ours}


def split_by_exercise(notebook: nbformat.NotebookNode) -> dict[str, list]:
    """Your cells by exercise; in the notebook, they may fail from here on."""
    yours, exercise = collections.defaultdict(list), None
    for position, each in enumerate(notebook.cells):
        heading = re.search(r"^### Exercise (\w+\.\d+)", each.source, re.MULTILINE)
        if each.cell_type == "markdown" and heading:
            exercise = heading[1]
        elif each.cell_type == "code" and exercise:
            first = "" if yours else f"{REMEMBER}\n"
            notebook.cells[position] = cell(first + each.source)
            yours[exercise].append(notebook.cells[position])
    return yours


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in a build folder of links to the real files, which stay."""
    build = runtime.build_root()
    build.mkdir(parents=True, exist_ok=True)
    # A kernel's log would stand below a wrong answer.
    options = {"timeout": None, "extra_arguments": ["--log-level=ERROR"]}
    place = {"metadata": {"path": FOLDER / "notebooks"}}
    with tempfile.TemporaryDirectory(dir=build) as folder:
        for made in build.glob("*/artifacts"):
            copy = Path(folder) / made.relative_to(build)
            shutil.copytree(made, copy, copy_function=os.link)
        client = NotebookClient(
            notebook, kernel_name="python3", resources=place, **options
        )
        client.execute(env=os.environ | {"FASHION_BUILD": folder})


def outcome(yours: list, ours: nbformat.NotebookNode) -> tuple:
    """The error, or what both print on their last lines."""
    for each in [*yours, ours]:
        for output in each.outputs:
            if output.output_type == "error":
                where = "our own solution" if each is ours else "your cell"
                return f"{where} stops, {output.ename}: {output.evalue}", 0, 0
    return "", *(printed(each) for each in (yours[-1], ours))


def printed(executed: nbformat.NotebookNode):
    """The value that SHOW printed."""
    streams = [each.text for each in executed.outputs if each.get("name") == "stdout"]
    return json.loads("".join(streams).splitlines()[-1])
