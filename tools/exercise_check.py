"""Checks the answers in notebooks/. `make student` writes this file to build/student/test_exercises.py.

    .venv/bin/pytest build/student             # every exercise
    .venv/bin/pytest build/student -k 4.1      # one
    .venv/bin/pytest build/student -k "4."     # those of a chapter

A chapter with an answer is run once, from its first cell, as a copy: your file stays as it is. Then the course's own
solutions run in the same kernel, and your answers may be 1 % away from theirs. So the check holds for every profile and
on every machine. It needs what the chapter itself needs: the results of the chapters before it.
"""

import base64
import contextlib
import functools
import json
import re
import zlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from fashionlib import artifacts, runtime

FOLDER = Path(__file__).resolve().parent
TOLERANCE = 0.01  # of the right value
PACKED = json.loads((FOLDER / "solutions.json").read_text())["solutions"]
SOLUTIONS = json.loads(
    zlib.decompress(base64.b64decode(PACKED))
)  # {chapter: {exercise: code}}
EXERCISES = [
    pytest.param(chapter, each, id=each)
    for chapter, found in SOLUTIONS.items()
    for each in found
]

# Names that the chapter made get their values back before a solution runs: your cells may have used them anew.
REMEMBER = "_chapter = {name: value for name, value in globals().items() if not name.startswith('_')}"
RESTORE = "globals().update(_chapter)"
SHOW = """
import json
print("\\n" + json.dumps({name}, default=lambda value: value.tolist() if hasattr(value, "tolist") else repr(value)))
"""


@pytest.mark.parametrize(("chapter", "exercise"), EXERCISES)
def test_exercise(chapter, exercise):
    name = answer_name(exercise)
    if re.search(
        rf"^{name} *= *\.\.\.",
        "\n".join(cell.source for cell in read(chapter).cells),
        re.MULTILINE,
    ):
        pytest.fail(f"{name}: not answered yet", pytrace=False)
    outcome = run(chapter)[exercise]
    if "error" in outcome:
        pytest.fail(f"{name}: {outcome['error']}", pytrace=False)
    right = outcome["right"]
    if not isinstance(right, str | bool):
        right = pytest.approx(right, rel=TOLERANCE, abs=1e-6, nan_ok=True)
    if outcome["answer"] != right:
        pytest.fail(
            f"{name}: not right yet, found {outcome['answer']!r:.300}", pytrace=False
        )


def answer_name(exercise: str) -> str:
    return "answer_" + exercise.replace(".", "_")


def read(chapter: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / "notebooks" / f"{chapter}.ipynb", as_version=4)


def cell(code: str) -> nbformat.NotebookNode:
    """A cell after whose error the run goes on."""
    return nbformat.v4.new_code_cell(code, metadata={"tags": ["raises-exception"]})


@functools.cache
def run(chapter: str) -> dict[str, dict]:
    """Run a copy of the chapter, then its solutions: {exercise: {"answer", "right"}, or {"error"} with the reason}."""
    notebook, yours = read(chapter), {}
    notebook.cells = split_by_exercise(notebook.cells, yours)
    answers = {
        exercise: cell(SHOW.format(name=answer_name(exercise)))
        for exercise in SOLUTIONS[chapter]
    }
    ours = {
        exercise: cell(f"{RESTORE}\n{code}{SHOW.format(name=answer_name(exercise))}")
        for exercise, code in SOLUTIONS[chapter].items()
    }
    notebook.cells += [*answers.values(), *ours.values()]
    place = {"metadata": {"path": FOLDER / "notebooks"}}
    quiet = [
        "--log-level=ERROR"
    ]  # a message of the kernel's own would stand below a wrong answer
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources=place,
        extra_arguments=quiet,
    )
    try:
        with keep_metrics():
            client.execute()
    except CellExecutionError as error:
        reason = f"{chapter} stops before its exercises, {error.ename}: {error.evalue}"
        return {each: {"error": reason} for each in answers}
    except DeadKernelError as error:
        return {
            each: {"error": f"{chapter} was not run to its end: {error}"}
            for each in answers
        }
    return {
        each: outcome([*yours.get(each, []), answers[each]], ours[each])
        for each in answers
    }


@contextlib.contextmanager
def keep_metrics():
    """A chapter writes its figures anew; what later chapters have added to them is put back."""
    before = {
        path: path.read_text()
        for path in runtime.build_root().glob("*/artifacts/metrics.json")
    }
    try:
        yield
    finally:
        for path, text in before.items():
            if path.read_text() != text:
                artifacts.write_json(
                    path, merged(json.loads(text), json.loads(path.read_text()))
                )


def merged(old, new):
    """`new`, and what only `old` has; dictionaries key by key."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


def split_by_exercise(cells: list, yours: dict[str, list]) -> list:
    """The cells with REMEMBER before the first exercise; `yours` gets each exercise's own, which may fail."""
    result, exercise = [], None
    for each in cells:
        if each.cell_type == "markdown":
            found = re.findall(
                r"^:::\{admonition\} Exercise (\w+\.\d+)", each.source, re.MULTILINE
            )
            if found and exercise is None:
                result.append(cell(REMEMBER))
            exercise = (found or [exercise])[-1]
        elif each.cell_type == "code" and exercise is not None:
            each = cell(each.source)
            yours.setdefault(exercise, []).append(each)
        result.append(each)
    return result


def outcome(yours: list, ours: nbformat.NotebookNode) -> dict:
    """What both say, from the outputs of the executed cells; the last of `yours` shows the answer."""
    if error := first_error(yours):
        return {"error": f"your cell stops, {error}"}
    if error := first_error([ours]):
        return {"error": f"our own solution stops after your cells, {error}"}
    return {"answer": shown(yours[-1]), "right": shown(ours)}


def first_error(executed: list) -> str:
    errors = [
        output
        for each in executed
        for output in each.outputs
        if output.output_type == "error"
    ]
    return f"{errors[0].ename}: {errors[0].evalue}" if errors else ""


def shown(executed: nbformat.NotebookNode):
    """The value that SHOW printed, on the last line."""
    text = "".join(
        output.text for output in executed.outputs if output.get("name") == "stdout"
    )
    return json.loads(text.splitlines()[-1])
