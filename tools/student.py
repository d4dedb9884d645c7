"""The course for students: the notebooks without solutions, and a test that checks the answers.

    make student                       # or: python -m tools.student
    .venv/bin/pytest build/student     # what a student calls afterwards

It writes `build/student/`: `notebooks/`, where a stub `answer_4_1 = ...` stands for each solution; `test_exercises.py`,
a copy of `exercise_check.py`; and `solutions.json`, packed so that nobody reads a solution by accident. A notebook that
a student has changed is never overwritten.

A cell tagged `solution` ends with `answer_<chapter>_<number> = <value>  # <what it is, its form and unit>`. The value
is a number, a string, a list or a dictionary of numbers, and does not depend on what students may choose freely. A
solution without this line is an open question: nobody checks it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

from fashionlib import artifacts, runtime
from fashionlib.runtime import InputError

EXERCISE = re.compile(r"^:::\{admonition\} Exercise (\w+\.\d+)", re.MULTILINE)
AFTER_EXPLANATION = re.compile(r"^(:::\{admonition\} Exercise|#)", re.MULTILINE)
ANSWER = re.compile(r"^(answer_\w+) = .+?  (# .+)\s*\Z", re.MULTILINE)


def without_solutions(notebook: dict) -> tuple[dict, dict[str, str]]:
    """The notebook with stubs instead of solutions, and the solutions to check by: {"4.1": code}.

    notebook: as `json.loads` reads it; it stays as it is. The explanation after a solution goes, too.
    """
    cells, solutions, exercise, explaining = [], {}, "", False
    for cell in notebook["cells"]:
        made, text = dict(cell), "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = after_explanation(text) if explaining else text
            exercise = (EXERCISE.findall(text) or [exercise])[-1]
        else:
            made |= {"outputs": [], "execution_count": None}
        if "solution" in cell["metadata"].get("tags", []):
            if ANSWER.search(text):
                solutions[exercise] = text
            made["metadata"], text, explaining = {}, stub(text), True
        elif text:  # an explanation that fills its cell leaves nothing; the next cell may hold more of it
            explaining = False
        if text:
            cells.append({**made, "source": text.splitlines(keepends=True)})
    return {**notebook, "cells": cells}, solutions


def after_explanation(text: str) -> str:
    """What a Markdown cell holds from the next exercise or heading on; nothing where it has neither."""
    kept = AFTER_EXPLANATION.search(text)
    return text[kept.start() :] if kept else ""


def stub(solution: str) -> str:
    """The cell that a student fills in; of the solution it keeps the answer's name and its description."""
    answer = ANSWER.search(solution)
    return (
        f"# your code\n{answer[1]} = ...  {answer[2]}"
        if answer
        else "# your code: an open question, not checked"
    )


def write(folder: Path, sources: Iterable[Path]) -> None:
    """Write the students' version of the notebooks `sources` into `folder`, with the test and the packed solutions.

    Raises InputError where `folder` holds a notebook that is not as it was written.
    """
    made = {
        path.name: without_solutions(json.loads(path.read_text())) for path in sources
    }
    texts = {
        name: json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        for name, (notebook, _) in made.items()
    }
    refuse_changed(folder, texts)
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / "notebooks" / name).write_text(text)
    solutions = json.dumps(
        {Path(name).stem: found for name, (_, found) in made.items()}
    )
    packed = base64.b64encode(zlib.compress(solutions.encode())).decode()
    written = {name: digest(folder / "notebooks" / name) for name in texts}
    artifacts.write_json(
        folder / "solutions.json", {"written": written, "solutions": packed}
    )
    shutil.copyfile(
        Path(__file__).with_name("exercise_check.py"), folder / "test_exercises.py"
    )


def refuse_changed(folder: Path, texts: dict[str, str]) -> None:
    """Raise InputError where a notebook is neither what was written last nor what would be written now."""
    record = folder / "solutions.json"
    written = json.loads(record.read_text())["written"] if record.exists() else {}
    there = [
        path
        for path in (folder / "notebooks" / name for name in texts)
        if path.exists()
    ]
    changed = [
        path.name
        for path in there
        if digest(path) != written.get(path.name)
        and path.read_text() != texts[path.name]
    ]
    if changed:
        raise InputError(
            f"{folder / 'notebooks'} must hold no work of a student, found changed: {', '.join(changed)}. "
            f"Nothing was written: move {folder} to another place, then run make student again."
        )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    folder = runtime.build_root() / "student"
    try:
        write(folder, sorted((runtime.project_root() / "notebooks").glob("*.ipynb")))
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"The notebooks: {folder / 'notebooks'}")
    print(f"Check answers: .venv/bin/pytest {folder}")


if __name__ == "__main__":
    main()
