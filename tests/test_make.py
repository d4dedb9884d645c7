"""The Makefile, called as users call it: what it rebuilds, and what it says to a mistake."""

import ast
import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def make(*arguments: str, build: Path) -> subprocess.CompletedProcess:
    of_make = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE", "SOURCE")
    environment = {
        key: value for key, value in os.environ.items() if key not in of_make
    }
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=environment | {"FASHION_BUILD": str(build)},
        capture_output=True,
        text=True,
        check=False,
    )


def tree(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_help_lists_every_target(tmp_path):
    shown = make("help", build=tmp_path).stdout
    for target in (
        "report",
        "test",
        "lab",
        "student",
        "notebooks",
        "bench",
        "experiments",
        "clean",
    ):
        assert re.search(rf"make {target} ", shown)


def imported(path: Path, code: str) -> set[str]:
    """Modules of fashionlib that `code` imports, at the top or within a function, for more than its annotations."""
    found, tree = set(), ast.parse(code, str(path))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "fashionlib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "fashionlib."
        ):
            found.add(node.module.split(".")[1])
    return found


def test_dependencies_are_the_modules_that_a_chapter_imports(tmp_path):
    modules = {
        path.stem: imported(path, path.read_text())
        for path in (ROOT / "fashionlib").glob("*.py")
    }
    database = make("--print-data-base", "--question", build=tmp_path).stdout
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        code = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
        )
        needed, seen = imported(notebook, code), set()
        while needed - seen:
            module = (needed - seen).pop()
            seen.add(module)
            # artifacts reads a catalogue only in `check`, which no chapter calls
            needed |= modules[module] - (
                {"catalogue", "sources"} if module == "artifacts" else set()
            )
        (rule,) = re.findall(
            rf"^\S*/sample/notebooks/{notebook.stem}\.ipynb: (.*)$",
            database,
            flags=re.MULTILINE,
        )
        listed = set(re.findall(r"fashionlib/(\w+)\.py", rule))
        assert listed == needed, (
            f"chapter {notebook.stem}: mend its line in the Makefile"
        )


@pytest.fixture
def bad_sources(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "corrupt.zip").write_bytes(b"PK\x03\x04 this is no zip")
    (folder / "empty").mkdir()
    (folder / "columns" / "images").mkdir(parents=True)
    (folder / "columns" / "styles.csv").write_text("id,gender\n1,Men\n")
    (folder / "columns" / "images" / "1.jpg").write_bytes(b"")
    with zipfile.ZipFile(folder / "escaping.zip", "w") as archive:
        archive.writestr("styles.csv", "id\n")
        archive.writestr("images/../../escaped.jpg", b"")
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["PROFILE=smal"], "PROFILE must be one of best, full, sample, small"),
        (["SOURCE=nowhere"], "does not exist"),
        (["SOURCE={bad}/empty"], "is no catalogue"),
        (["SOURCE={bad}/corrupt.zip"], "is not a readable zip"),
        (["SOURCE={bad}/escaping.zip"], "points outside"),
        (["SOURCE={bad}/columns"], "expected the columns id, gender, masterCategory"),
    ],
    ids=lambda value: value[0].split("/")[-1] if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_and_destroys_nothing(
    tmp_path, bad_sources, arguments, expected
):
    build = tmp_path / "build"
    kept = build / "sample" / "notebooks" / "01_data_preparation.ipynb"
    kept.parent.mkdir(parents=True)
    kept.write_text("an earlier result")
    before = tree(build)
    result = make(
        "report",
        *(argument.format(bad=bad_sources) for argument in arguments),
        build=build,
    )
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert before.items() <= tree(build).items()


def test_a_failing_chapter_is_kept_apart_and_says_which_chapter_to_run(tmp_path):
    """Chapter 1 looks finished to make, but its artifacts are not there."""
    notebooks = tmp_path / "sample" / "notebooks"
    assert make("check", build=tmp_path).returncode == 0
    notebooks.mkdir()
    (notebooks / "01_data_preparation.ipynb").write_text("{}")
    result = make(str(notebooks / "02_resnet152.ipynb"), build=tmp_path)
    assert result.returncode != 0
    assert (
        "InputError: prepared of run 'sample' is missing: chapter 01_data_preparation makes it"
        in result.stderr
    )
    assert sorted(path.name for path in notebooks.iterdir()) == [
        "01_data_preparation.ipynb",
        "02_resnet152.failed.ipynb",
    ]


def test_environment_for_conda_keeps_to_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (packages,) = (
        entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)
    )
    assert packages == ["-c constraints.txt", "-e .[test,bench]"]
    assert "pip" in environment["dependencies"]
    assert any(
        str(entry).startswith("python=3.") for entry in environment["dependencies"]
    )


@pytest.mark.parametrize("profile", ["", "../notebooks", "smal"])
def test_clean_removes_known_profiles_only(tmp_path, profile):
    kept = tmp_path / "build" / "sample" / "kept"
    kept.mkdir(parents=True)
    result = make("clean", f"PROFILE={profile}", build=tmp_path / "build")
    assert result.returncode != 0
    assert "PROFILE must be one of" in result.stderr
    assert kept.exists()
    assert make("clean", build=tmp_path / "build").returncode == 0
    assert not kept.exists()


def test_a_build_folder_with_a_space_is_refused(tmp_path):
    result = make("report", build=tmp_path / "with space")
    assert result.returncode != 0
    assert "FASHION_BUILD must be a path without spaces" in result.stderr
