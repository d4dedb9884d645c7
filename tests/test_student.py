"""The course for students: no solution is left in it, no work of a student is lost, and its test judges answers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_make import make, tree
from test_notebooks import NOTEBOOKS, cells_of, each_notebook, tags, text_of

from fashionlib.runtime import InputError
from tools import student

OPEN = {
    "2.5": "a picture of one's own",
    "6.3": "a claim of one's own",
}  # exercises that no answer is checked for
ADMONITION = re.compile(
    r"^:::\{admonition\} Exercise (\w+\.\d+).*?^:::$", re.MULTILINE | re.DOTALL
)


def solutions_of(path: Path) -> dict[str, str]:
    """{exercise: code} of the course's own notebook: the exercise is the last one in the text above the cell."""
    found, exercise = {}, ""
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            exercise = (
                [match[1] for match in ADMONITION.finditer(text)] or [exercise]
            )[-1]
        elif "solution" in tags(cell):
            assert exercise not in found, f"exercise {exercise} has two solutions"
            found[exercise] = text
    return found


def answer_name(exercise: str) -> str:
    return f"answer_{exercise.replace('.', '_')}"


@each_notebook
def test_every_solution_ends_with_the_answer_of_its_exercise_or_is_open(path):
    solutions = solutions_of(path)
    assert list(solutions) == [match[1] for match in ADMONITION.finditer(text_of(path))]
    for exercise, code in solutions.items():
        assert len(code.splitlines()) <= 15
        assigned = re.findall(r"^\s*(answer_\w+) = ", code, flags=re.MULTILINE)
        if exercise in OPEN:
            assert assigned == []
            continue
        assert assigned == [answer_name(exercise)]
        value, _, comment = code.splitlines()[-1].partition(" = ")[2].partition("  # ")
        assert re.search(r"[a-z]\w*", value), "computed, never typed"
        assert len(comment.split()) >= 3, "the comment says what to assign"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """What `make student` writes."""
    build = tmp_path_factory.mktemp("build")
    result = make("student", build=build)
    assert result.returncode == 0, result.stderr
    assert str(build / "student" / "notebooks") in result.stdout
    return build / "student"


def test_what_is_written(written):
    assert sorted(path.name for path in written.iterdir()) == [
        "notebooks",
        "solutions.json",
        "test_exercises.py",
    ]
    assert [path.name for path in sorted((written / "notebooks").iterdir())] == [
        path.name for path in NOTEBOOKS
    ]


@each_notebook
def test_no_solution_is_left_and_every_stub_says_what_to_assign(path, written):
    made = written / "notebooks" / path.name
    nbformat.validate(nbformat.read(made, as_version=4))
    code = ["".join(cell["source"]) for cell in cells_of(made, "code")]
    assert not any(
        "solution" in tags(cell) or cell["outputs"] for cell in cells_of(made, "code")
    )
    chapter = [
        "".join(cell["source"])
        for cell in cells_of(path, "code")
        if "solution" not in tags(cell)
    ]
    assert [text for text in code if not text.startswith("# your code")] == chapter
    stubs = [text.splitlines() for text in code if text.startswith("# your code")]
    solutions = solutions_of(path)
    assert len(stubs) == len(solutions)
    for lines, (exercise, solution) in zip(stubs, solutions.items(), strict=True):
        if exercise in OPEN:
            assert lines == ["# your code: an open question, not checked"]
        else:
            comment = solution.splitlines()[-1].partition("  # ")[2]
            assert lines == [
                "# your code",
                f"{answer_name(exercise)} = ...  # {comment}",
            ]


@each_notebook
def test_explanations_are_gone_and_everything_else_is_there(path, written):
    """Taken away is what stands between the exercises, and below the last one; the rest of the page is the same."""
    original, made = text_of(path), text_of(written / "notebooks" / path.name)
    exercises = [match[0] for match in ADMONITION.finditer(original)]
    assert [match[0] for match in ADMONITION.finditer(made)] == exercises
    above, section = original.split("## Exercises")
    references = section[section.index("## References") :]
    expected = "\n\n".join([above + "## Exercises", *exercises, references])
    assert made.split() == expected.split()
    explanations = ADMONITION.sub("\0", section.removesuffix(references)).split("\0")[
        1:
    ]
    assert len(explanations) == len(exercises)
    assert all(text.strip() for text in explanations), "each solution is explained"


def test_solutions_are_packed(written):
    text = "".join(path.read_text() for path in written.rglob("*") if path.is_file())
    for path in NOTEBOOKS:
        for code in solutions_of(path).values():
            lines = [line for line in code.splitlines() if len(line) > 40]
            chapter = path.read_text()
            alone = [
                line for line in lines if chapter.count(json.dumps(line)[1:-1]) == 1
            ]
            assert not any(
                line in text or json.dumps(line)[1:-1] in text for line in alone
            )


def notebook(*cells: tuple[str, str]) -> dict:
    """A notebook of (kind, text) pairs; the kind `solution` is a code cell with this tag."""
    made = nbformat.v4.new_notebook()
    for kind, text in cells:
        tagged = {"tags": ["solution", "hide-cell"]} if kind == "solution" else {}
        new = (
            nbformat.v4.new_markdown_cell
            if kind == "markdown"
            else nbformat.v4.new_code_cell
        )
        made.cells.append(new(text, metadata=tagged))
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return made


def exercise(number: str) -> str:
    return f":::{{admonition}} Exercise {number}: sums\n:class: tip\nAdd them.\n:::"


def write_toy(folder: Path, *solutions: str) -> Path:
    """A chapter with an exercise for each of the solutions, 9.1 and so on; returns the students' version of it."""
    cells = [
        ("markdown", "# Toy"),
        ("code", "numbers = [1.0, 2.0, 3.0]"),
        ("markdown", "## Exercises\n"),
    ]
    for i, solution in enumerate(solutions, start=1):
        cells += [
            ("markdown", exercise(f"9.{i}")),
            ("solution", solution),
            ("markdown", "Because.\n"),
        ]
    source = folder / "09_toy.ipynb"
    nbformat.write(notebook(*cells), source)
    student.write(folder / "student", [source])
    return folder / "student" / "notebooks" / "09_toy.ipynb"


def fill(path: Path, replace: dict[str, str]) -> None:
    """Put code in the place of stubs or of other lines, found by how they begin."""
    filled = nbformat.read(path, as_version=4)
    for cell in filled.cells:
        for beginning, code in replace.items():
            cell.source = re.sub(
                rf"^{re.escape(beginning)}.*",
                lambda _, code=code: code,
                cell.source,
                flags=re.M,
            )
    nbformat.write(filled, path)


def check(folder: Path) -> dict[str, str]:
    """Run the supplied test as a student does, from another folder: {exercise: "passed" or the message}."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "--color=no",
        str(folder),
    ]
    environment = os.environ | {"COLUMNS": "500", "FASHION_BUILD": str(folder.parent)}
    done = subprocess.run(
        command,
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = re.findall(
        r"^(PASSED|FAILED|ERROR) \S*test_exercise\[(\S+)\](?: - (.*))?$",
        done.stdout,
        flags=re.MULTILINE,
    )
    assert lines, done.stdout + done.stderr
    return {number: message or state.lower() for state, number, message in lines}


def test_the_supplied_test_judges_each_answer_by_itself(tmp_path):
    total = "total = sum(numbers)\nprint(total, end=' ')\nanswer_9_{} = total  # sum of the numbers"
    notebook = write_toy(
        tmp_path, *(total.format(i) for i in range(1, 6)), "print('an open question')"
    )
    before = tree(notebook.parent.parent)
    fill(
        notebook,
        {
            "answer_9_1": "import numpy as np\nnumbers = np.float32(6.01)\nanswer_9_1 = numbers",  # a name used anew
            "answer_9_2": "answer_9_2 = 5.0",
            "answer_9_3": "answer_9_3 = undefined + 1",
            "answer_9_4": "answer_9_4 = [6.0]",
        },
    )
    filled = notebook.read_text()
    assert check(notebook.parent.parent) == {
        "9.1": "passed",
        "9.2": "Failed: answer_9_2: not right yet, found 5.0",
        "9.3": "Failed: answer_9_3: your cell stops, NameError: name 'undefined' is not defined",
        "9.4": "Failed: answer_9_4: not right yet, found [6.0]",
        "9.5": "Failed: answer_9_5: not answered yet",
    }
    assert notebook.read_text() == filled
    assert {
        name for name in tree(notebook.parent.parent) if "__pycache__" not in name
    } == before.keys()


def test_every_kind_of_answer_is_compared(tmp_path):
    """Of each kind one right answer, then one wrong one."""
    kinds = {
        "str(numbers)": ("str(numbers)", "'numbers'"),
        "len(numbers) == 3": ("np.array(numbers).size == 3", "False"),
        "[*numbers, float('nan')]": ("np.array([1, 2, 3, np.nan])", "(1, 2, 3)"),
        "{'mean': sum(numbers) / 3, 'none': 0.0}": (
            "{'mean': np.mean(numbers), 'none': 1e-9}",
            "{'mean': 2.1, 'none': 0}",
        ),
    }
    solutions = [
        f"answer_9_{i} = {right}  # what it is"
        for i, right in enumerate([*kinds, *kinds], start=1)
    ]
    notebook = write_toy(tmp_path, *solutions)
    good, bad = zip(*kinds.values(), strict=True)
    answers = {
        f"answer_9_{i}": f"answer_9_{i} = {code}"
        for i, code in enumerate([*good, *bad], start=1)
    }
    fill(
        notebook, answers | {"numbers": "import numpy as np\nnumbers = [1.0, 2.0, 3.0]"}
    )
    outcome = list(check(notebook.parent.parent).values())
    assert outcome[:4] == ["passed"] * 4
    assert all("not right yet" in message for message in outcome[4:])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "numbers = missing",
            "stops before its exercises, NameError: name 'missing' is not defined",
        ),
        ("import os; os._exit(1)", "was not run to its end: Kernel died"),
    ],
    ids=["error", "death"],
)
def test_the_supplied_test_says_where_a_chapter_stops(tmp_path, code, message):
    notebook = write_toy(tmp_path, "answer_9_1 = sum(numbers)  # sum of the numbers")
    fill(notebook, {"numbers": code, "answer_9_1": "answer_9_1 = 6"})
    assert check(notebook.parent.parent) == {
        "9.1": f"Failed: answer_9_1: 09_toy {message}"
    }


def test_a_check_keeps_what_later_chapters_have_added_to_the_metrics(tmp_path):
    notebook = write_toy(tmp_path, "answer_9_1 = sum(numbers)  # sum of the numbers")
    metrics = tmp_path / "sample" / "artifacts" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text(
        json.dumps(
            {"toy": {"sum": 5, "face": 1, "methods": {"later": 2}}, "summary": {"n": 3}}
        )
    )
    code = "from fashionlib import artifacts; artifacts.update_metrics('sample', 'toy', {'sum': 6, 'methods': {'now': 4}})"
    fill(
        notebook, {"numbers": f"{code}\nnumbers = [6]", "answer_9_1": "answer_9_1 = 6"}
    )
    assert check(notebook.parent.parent) == {"9.1": "passed"}
    toy = {"sum": 6, "face": 1, "methods": {"later": 2, "now": 4}}
    assert json.loads(metrics.read_text()) == {"toy": toy, "summary": {"n": 3}}


def test_unanswered_exercises_run_nothing(tmp_path):
    notebook = write_toy(tmp_path, "answer_9_1 = sum(numbers)  # sum of the numbers")
    fill(notebook, {"numbers": "from pathlib import Path; Path('ran').touch()"})
    assert "not answered yet" in check(notebook.parent.parent)["9.1"]
    assert not (notebook.parent / "ran").exists()


def test_the_work_of_a_student_is_never_overwritten(tmp_path):
    notebook = write_toy(tmp_path, "answer_9_1 = sum(numbers)  # sum of the numbers")
    write_toy(
        tmp_path, "answer_9_1 = 6 * numbers[0]  # sum"
    )  # an unchanged notebook follows the course
    assert '# sum"' in notebook.read_text()
    (
        tmp_path / "student" / "solutions.json"
    ).unlink()  # as after a stop half way: the notebooks are those of now
    student.write(tmp_path / "student", [tmp_path / "09_toy.ipynb"])
    fill(notebook, {"answer_9_1": "answer_9_1 = 6"})
    before = tree(tmp_path / "student")
    with pytest.raises(
        InputError,
        match=r"found changed: 09_toy\.ipynb\. Nothing was written: move .*student to another",
    ):
        write_toy(tmp_path, "answer_9_1 = sum(numbers)  # sum of the numbers")
    assert tree(tmp_path / "student") == before
    (
        tmp_path / "student" / "solutions.json"
    ).unlink()  # nothing tells any more what was written
    with pytest.raises(InputError, match=r"found changed: 09_toy\.ipynb"):
        write_toy(tmp_path, "answer_9_1 = sum(numbers)  # sum of the numbers")


def test_make_refuses_in_one_line(written):
    changed = written / "notebooks" / "06_summary.ipynb"
    original = changed.read_text()
    try:
        fill(changed, {"answer_6_1": "answer_6_1 = 0.5"})
        result = make("student", build=written.parent)
    finally:
        changed.write_text(original)
    assert result.returncode != 0
    (line,) = (
        line for line in result.stderr.splitlines() if not line.startswith("make")
    )
    assert line.startswith("error: ")
    assert changed.name in line
