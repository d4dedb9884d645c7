"""The course for students: notebooks without solutions, and a test of the answers.

    make student                       # or: python -m tools.student
    .venv/bin/pytest build/student     # what a student calls afterwards

It writes `build/student/`: `notebooks/`, where a stub `answer_4_1 = ...` stands for
each solution; the glossary that they link to; `test_exercises.py`, a copy of
`exercise_check.py`; and `solutions.json`, packed so that nobody reads a solution by
accident. A file that a student has changed is never overwritten.

A cell tagged `solution` ends with `answer_<chapter>_<number> = <value>  # <what it is,
its form and unit>`. The value is a number, a string, a list or a dictionary of numbers,
and does not depend on what students may choose freely. A solution without this line is
an open question: nobody checks it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

from fashionlib import artifacts, parameters, runtime
from fashionlib.runtime import InputError

EXERCISE = re.compile(r"^### Exercise (\w+\.\d+)", re.MULTILINE)
ANSWER = re.compile(r"^(answer_\w+) = .+?  (# .+)\s*\Z", re.MULTILINE)


def without_solutions(notebook: dict) -> tuple[dict, dict[str, str]]:
    """The notebook with stubs for solutions, and the solutions: {"4.1": code}.

    The answers in words (`<details>`) go, too.
    """
    cells, solutions, exercise = [], {}, ""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if text.startswith("<details>"):
            continue
        if cell["cell_type"] == "code":
            cell = cell | {"outputs": [], "execution_count": None}
        elif heading := EXERCISE.search(text):
            exercise = heading[1]
        if "solution" in cell["metadata"].get("tags", []):
            if ANSWER.search(text):
                solutions[exercise] = text
            cell = cell | {"metadata": {}, "source": stub(text).splitlines(True)}
        cells.append(cell)
    return notebook | {"cells": cells}, solutions


def stub(solution: str) -> str:
    """The cell that a student fills in: the answer's name and what it is."""
    if answer := ANSWER.search(solution):
        return f"# your code\n{answer[1]} = ...  {answer[2]}"
    return "# your code: an open question, not checked"


def write(folder: Path, sources: Iterable[Path]) -> None:
    """Write the students' version of notebooks into `folder`, with test and solutions.

    Raises InputError where `folder` holds a file that is not as it was written, and
    where it cannot be written.
    """
    check = Path(__file__).with_name("exercise_check.py")
    texts = {folder / "test_exercises.py": check.read_text(encoding="utf-8")}
    glossary = runtime.project_root() / "glossary.md"
    texts[folder / "glossary.md"] = glossary.read_text(encoding="utf-8")
    solutions = {}
    for path in sources:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        made, solutions[path.stem] = without_solutions(notebook)
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        texts[folder / "notebooks" / path.name] = text
    refuse_changed(folder, texts)
    with artifacts.writing(folder):
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    packed = base64.b64encode(zlib.compress(json.dumps(solutions).encode())).decode()
    for path, text in texts.items():
        artifacts.write_text(path, text)
    written = {path.name: digest(text) for path, text in texts.items()}
    content = {"written": written, "solutions": packed}
    artifacts.write_json(folder / "solutions.json", content)


def refuse_changed(folder: Path, texts: dict[Path, str]) -> None:
    """Raise InputError where a file is neither as it was written nor as it will be."""
    written = artifacts.read_json(folder / "solutions.json").get("written")
    written = written if isinstance(written, dict) else {}
    for path, text in texts.items():
        found = path.read_bytes().decode(errors="replace") if path.is_file() else text
        if found != text and digest(found) != written.get(path.name):
            raise InputError(
                f"{path} is a student's work, it has changed since it was written. "
                f"Nothing was written: move {folder} away, then run make student again."
            )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    root, folder = runtime.project_root(), runtime.build_root() / "student"
    notebooks = [root / "notebooks" / f"{name}.ipynb" for name in parameters.chapters()]
    pictures = root / "notebooks" / "pictures"
    try:
        write(folder, notebooks)
        with artifacts.writing(folder / "notebooks" / "pictures"):
            if pictures.exists():
                there = {"dirs_exist_ok": True}
                shutil.copytree(pictures, folder / "notebooks" / "pictures", **there)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"The notebooks: {folder / 'notebooks'}")
    print(f"Check answers: .venv/bin/pytest {shlex.quote(str(folder))}")


if __name__ == "__main__":
    main()
