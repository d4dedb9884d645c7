"""The course for students: no solution is left, no work is lost, answers are judged."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import full_disk
from test_make import tree
from test_notebooks import NOTEBOOKS, cells_of, each_notebook, tags, text_of

from fashionlib.runtime import InputError
from tools import student

# Exercises that no answer is checked for: an image and a claim of one's own.
OPEN = ("2.5", "6.3")
HEADING = re.compile(r"^### Exercise (\w+\.\d+)", re.MULTILINE)


def solutions_of(path: Path) -> dict[str, str]:
    """{exercise: code} of the course's own notebook."""
    found, exercise = {}, ""
    for cell in cells_of(path):
        exercise = (HEADING.findall(cell["source"]) or [exercise])[-1]
        if "solution" in tags(cell):
            found[exercise] = cell["source"]
    return found


def answer_name(exercise: str) -> str:
    return f"answer_{exercise.replace('.', '_')}"


@each_notebook
def test_every_solution_ends_with_the_answer_of_its_exercise_or_is_open(path):
    solutions = solutions_of(path)
    assert list(solutions) == HEADING.findall(text_of(path))
    for exercise, code in solutions.items():
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASHION_BUILD", str(build))
        student.main()
    return build / "student"


@each_notebook
def test_no_solution_is_left_and_every_stub_says_what_to_assign(path, written):
    made = written / "notebooks" / path.name
    nbformat.validate(nbformat.read(made, as_version=4))
    cells = cells_of(made, "code")
    assert not any("solution" in tags(cell) or cell["outputs"] for cell in cells)
    stubs = [cell["source"] for cell in cells if cell["source"].startswith("# your")]
    expected = []
    for exercise, solution in solutions_of(path).items():
        comment = solution.splitlines()[-1].partition("  # ")[2]
        name = answer_name(exercise)
        line = f"# your code\n{name} = ...  # {comment}"
        open_question = "# your code: an open question, not checked"
        expected.append(open_question if exercise in OPEN else line)
    assert stubs == expected


@each_notebook
def test_answers_are_gone_and_everything_else_is_there(path, written):
    made = written / "notebooks" / path.name
    original = [
        (cell["cell_type"], cell["source"])
        for cell in cells_of(path)
        if "solution" not in tags(cell) and not cell["source"].startswith("<details>")
    ]
    kept = [
        (cell["cell_type"], cell["source"])
        for cell in cells_of(made)
        if not cell["source"].startswith("# your code")
    ]
    assert kept == original


def test_what_the_notebooks_link_to_is_there_and_solutions_are_packed(written):
    assert (written / "glossary.md").is_file()
    assert (written / "test_exercises.py").is_file()
    text = "".join(path.read_text() for path in written.rglob("*.*") if path.is_file())
    for path in NOTEBOOKS:
        for code in solutions_of(path).values():
            for line in filter(lambda line: len(line) > 40, code.splitlines()):
                shown = json.dumps(line)[1:-1]
                once = path.read_text().count(shown) == 1
                assert not once or shown not in text


# --- the test that students call ------------------------------------------------------


def write_toy(folder: Path, *solutions: str) -> Path:
    """A chapter with an exercise for each of the solutions, 9.1 and so on.

    Returns the students' version of it.
    """
    new = nbformat.v4
    cells = [new.new_code_cell("numbers = [1.0, 2.0, 3.0]")]
    for i, solution in enumerate(solutions, start=1):
        tagged = {"tags": ["solution", "hide-cell"]}
        cells += [
            new.new_markdown_cell(f"### Exercise 9.{i}: sums\n\nAdd them."),
            new.new_code_cell(solution, metadata=tagged),
            new.new_markdown_cell("<details><summary>Answer</summary>\n\nSo.\n"),
        ]
    notebook = new.new_notebook(cells=cells)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    source = folder / "09_toy.ipynb"
    nbformat.write(notebook, source)
    student.write(folder / "student", [source])
    return folder / "student" / "notebooks" / "09_toy.ipynb"


def fill(path: Path, replace: dict[str, str]) -> None:
    """Put code in the place of stubs or of other lines, found by how they begin."""
    filled = nbformat.read(path, as_version=4)
    for cell in filled.cells:
        for beginning, code in replace.items():
            line = re.compile(rf"^{re.escape(beginning)}.*", re.MULTILINE)
            cell.source = line.sub(lambda _, code=code: code, cell.source)
    nbformat.write(filled, path)


class Outcomes:
    """A pytest plugin that notes {exercise: "passed" or the message}."""

    def __init__(self):
        self.found = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            exercise = report.nodeid.partition("[")[2].removesuffix("]")
            message = getattr(report.longrepr, "reprcrash", None)
            text = message.message if message else str(report.longrepr or "passed")
            self.found[exercise] = text.removeprefix("Failed: ")


def check(folder: Path) -> dict[str, str]:
    """Run the supplied test of `folder` in this process, as a student does."""
    outcomes = Outcomes()
    options = [f"--rootdir={folder}", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASHION_BUILD", str(folder.parent))
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setattr(sys, "path", [*sys.path])
        pytest.main([*options, str(folder)], plugins=[outcomes])
    sys.modules.pop("test_exercises")
    return outcomes.found


TOTAL = "answer_9_1 = sum(numbers)  # sum of the numbers"


@pytest.mark.slow
def test_the_supplied_test_judges_each_answer_by_itself(tmp_path):
    total = "total = sum(numbers)\nprint(total, end=' ')\nanswer_9_{} = total  # sum"
    solutions = [total.format(i) for i in range(1, 6)]
    notebook = write_toy(tmp_path, *solutions, "print('an open question')")
    before = tree(notebook.parent.parent)
    fill(
        notebook,
        {
            # a name used anew
            "answer_9_1": "import numpy as np\nnumbers = np.float32(6.01)\n"
            "answer_9_1 = numbers",
            "answer_9_2": "answer_9_2 = 5.0",
            "answer_9_3": "answer_9_3 = undefined + 1",
            "answer_9_4": "answer_9_4 = [6.0]",
        },
    )
    filled = notebook.read_text()
    found = check(notebook.parent.parent)
    assert found.pop("9.1") == "passed"
    words = {"9.2": "5.0", "9.3": "undefined", "9.4": "[6.0]", "9.5": "not answered"}
    assert found.keys() == words.keys()
    for exercise, message in found.items():
        assert words[exercise] in message
    assert notebook.read_text() == filled
    assert tree(notebook.parent.parent).keys() == before.keys()


@pytest.mark.slow
def test_every_kind_of_answer_is_compared(tmp_path):
    """Of each kind one correct answer, then one wrong one."""
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
        f"answer_9_{i} = {correct}  # what it is"
        for i, correct in enumerate([*kinds, *kinds], start=1)
    ]
    notebook = write_toy(tmp_path, *solutions)
    good, bad = zip(*kinds.values(), strict=True)
    answers = {"numbers": "import numpy as np\nnumbers = [1.0, 2.0, 3.0]"}
    for i, code in enumerate([*good, *bad], start=1):
        answers[f"answer_9_{i}"] = f"answer_9_{i} = {code}"
    fill(notebook, answers)
    outcome = list(check(notebook.parent.parent).values())
    assert outcome[:4] == ["passed"] * 4
    assert all("not correct" in message for message in outcome[4:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [("numbers = missing", "NameError"), ("import os; os._exit(1)", "Kernel died")],
    ids=["error", "death"],
)
def test_the_supplied_test_says_where_a_chapter_stops(tmp_path, code, words):
    notebook = write_toy(tmp_path, TOTAL)
    fill(notebook, {"numbers": code, "answer_9_1": "answer_9_1 = 6"})
    message = check(notebook.parent.parent)["9.1"]
    assert "09_toy was not run to its end" in message
    assert words in message


@pytest.mark.slow
def test_a_check_changes_no_result_of_the_course(tmp_path):
    notebook = write_toy(tmp_path, TOTAL)
    metrics = tmp_path / "sample" / "artifacts" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text(json.dumps({"toy": {"sum": 5}}))
    code = (
        "from fashionlib import artifacts\n"
        "numbers = [artifacts.read_metrics('sample')['toy']['sum'] + 1]\n"
        "artifacts.publish('sample', 'toy', {'sum': 7})"
    )
    fill(notebook, {"numbers": code, "answer_9_1": "answer_9_1 = 6"})
    assert check(notebook.parent.parent) == {"9.1": "passed"}
    assert json.loads(metrics.read_text()) == {"toy": {"sum": 5}}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "09_toy.ipynb",
        "sample",
        "student",
    ]


def test_unanswered_exercises_run_nothing(tmp_path):
    notebook = write_toy(tmp_path, TOTAL)
    fill(notebook, {"numbers": "from pathlib import Path; Path('ran').touch()"})
    assert "not answered yet" in check(notebook.parent.parent)["9.1"]
    assert not (notebook.parent / "ran").exists()


def test_the_work_of_a_student_is_never_overwritten(tmp_path):
    notebook, folder = write_toy(tmp_path, TOTAL), tmp_path / "student"
    # an unchanged notebook follows the course
    write_toy(tmp_path, "answer_9_1 = 6 * numbers[0]  # sum")
    assert '# sum"' in notebook.read_text()
    # as after a stop half way: the notebooks are those of now
    (folder / "solutions.json").unlink()
    student.write(folder, [tmp_path / "09_toy.ipynb"])
    fill(notebook, {"answer_9_1": "answer_9_1 = 6"})
    before = tree(folder)
    with pytest.raises(InputError, match=r"09_toy\.ipynb"):
        write_toy(tmp_path, TOTAL)
    assert tree(folder) == before
    # nothing tells any more what was written
    (folder / "solutions.json").unlink()
    with pytest.raises(InputError, match=r"09_toy\.ipynb"):
        write_toy(tmp_path, TOTAL)


@pytest.mark.parametrize("name", ["test_exercises.py", "glossary.md"])
def test_a_changed_test_or_glossary_is_not_overwritten(tmp_path, name):
    write_toy(tmp_path, TOTAL)
    changed = tmp_path / "student" / name
    changed.write_text(changed.read_text() + "\n# mine\n")
    with pytest.raises(InputError, match=name):
        write_toy(tmp_path, TOTAL)
    assert changed.read_text().endswith("# mine\n")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b'{"written": '])
def test_damaged_solutions_are_one_line(tmp_path, content):
    notebook = write_toy(tmp_path, TOTAL)
    record = tmp_path / "student" / "solutions.json"
    record.write_bytes(content)
    with pytest.raises(InputError, match=r"solutions\.json is damaged"):
        write_toy(tmp_path, TOTAL)
    checked = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=notebook.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode != 0
    assert "solutions.json is damaged" in checked.stdout
    assert "Traceback" not in checked.stdout


@pytest.mark.parametrize("written", [[], 3, "text", {"09_toy.ipynb": 3}])
def test_a_foreign_record_of_what_was_written_protects_every_file(tmp_path, written):
    notebook = write_toy(tmp_path, TOTAL)
    fill(notebook, {"answer_9_1": "answer_9_1 = 6"})
    record = tmp_path / "student" / "solutions.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"written": written}))
    with pytest.raises(InputError, match="09_toy"):
        write_toy(tmp_path, TOTAL)


def test_after_a_full_disk_the_command_goes_on_with_what_it_wrote(tmp_path):
    """Whatever is full: the second write fails, then there is room again."""
    source = write_toy(tmp_path, TOTAL).parents[2] / "09_toy.ipynb"
    for kibibytes in (4, 12, 16, 20):
        with full_disk(tmp_path / f"{kibibytes}", kibibytes) as disk:
            folder = disk / "student"
            with pytest.raises(InputError, match="No space left"):
                student.write(folder, [source])
            assert not list(disk.rglob("*.tmp"))
            command = ["mount", "-o", "remount,size=4m", str(disk)]
            subprocess.run(command, check=True)
            student.write(folder, [source])
            student.write(folder, [source])


@pytest.mark.parametrize("build", ["/dev/null", "/proc/build"])
def test_a_folder_that_takes_no_file_is_one_line(monkeypatch, build):
    monkeypatch.setenv("FASHION_BUILD", build)
    with pytest.raises(SystemExit) as stopped:
        student.main()
    assert str(stopped.value).startswith("error: /")
    assert "\n" not in str(stopped.value)


def test_a_refusal_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    student.main()
    changed = tmp_path / "student" / "notebooks" / "06_summary.ipynb"
    fill(changed, {"answer_6_1": "answer_6_1 = 0.5"})
    with pytest.raises(SystemExit) as stopped:
        student.main()
    message = str(stopped.value)
    assert message.startswith("error: ")
    assert changed.name in message
    assert "\n" not in message
