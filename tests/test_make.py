"""The Makefile, called as users call it: what it rebuilds, and what it refuses."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from fashionlib import parameters, runtime

ROOT = runtime.project_root()
OF_MAKE = (
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "MAKEOVERRIDES",
    "PROFILE",
    "SOURCE",
    "SEED",
)


def make(*arguments: str, build: Path) -> subprocess.CompletedProcess:
    environment = {key: each for key, each in os.environ.items() if key not in OF_MAKE}
    return subprocess.run(
        # the tests' own environment is the project's, whether make has made it or not
        ["make", "--no-print-directory", "-o", ".venv/.installed", *arguments],
        cwd=ROOT,
        env=environment | {"FASHION_BUILD": str(build)},
        capture_output=True,
        text=True,
        check=False,
    )


def tree(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_help_lists_the_commands(tmp_path):
    shown = make("help", build=tmp_path).stdout
    for target in (
        "report",
        "test",
        "lab",
        "student",
        "bench",
        "experiments",
        "seeds",
        "clean",
    ):
        assert f"make {target} " in shown


def test_an_edit_of_the_library_runs_all_chapters_and_of_one_chapter_what_follows(
    tmp_path,
):
    """A dry run over a finished report: which chapters would run?"""
    executed = tmp_path / "sample" / "notebooks"
    executed.mkdir(parents=True)
    chapters = parameters.chapters()
    for chapter in chapters:
        (executed / f"{chapter}.ipynb").touch()
        (tmp_path / "sample" / "parameters").mkdir(exist_ok=True)
        stamp = tmp_path / "sample" / "parameters" / f"{chapter}.yml"
        stamp.touch()
        os.utime(stamp, (0, 0))
    targets = [str(executed / f"{chapter}.ipynb") for chapter in chapters]

    def planned(edited: str) -> list[str]:
        lines = make("-n", "-W", edited, *targets, build=tmp_path).stdout.splitlines()
        begun = (line for line in lines if line.startswith('echo "== chapter '))
        return sorted(line.split()[-1].strip('"') for line in begun)

    assert planned("README.md") == []
    assert planned("fashionlib/plots.py") == chapters
    assert planned("fashionlib/data/drawings.txt") == chapters
    followers = ["03_guided_backprop", "03b_methods", "04_average_saliency"]
    chosen = planned("notebooks/03_guided_backprop.ipynb")
    assert chosen == [*followers, "06_summary"]


def test_a_mistake_gets_one_line_and_destroys_nothing(tmp_path):
    kept = tmp_path / "sample" / "notebooks" / "01_data_preparation.ipynb"
    kept.parent.mkdir(parents=True)
    kept.write_text("an earlier result")
    before = tree(tmp_path)
    result = make("report", "SOURCE=it's no a$b; $(shell touch x).zip", build=tmp_path)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "no a$b; $(shell touch x).zip" in lines[0]
    assert before == tree(tmp_path)


@pytest.mark.slow
def test_a_failing_chapter_is_kept_apart_and_says_which_chapter_to_run(tmp_path):
    """Chapter 1 looks finished to make, but its artifacts are not there."""
    notebooks = tmp_path / "sample" / "notebooks"
    assert make("check", build=tmp_path).returncode == 0
    notebooks.mkdir()
    first = notebooks / "01_data_preparation.ipynb"
    first.write_text("{}")
    second = notebooks / "02_resnet152.ipynb"
    result = make("-o", str(first), str(second), build=tmp_path)
    assert result.returncode != 0
    assert "InputError: " in result.stderr
    assert "chapter 01_data_preparation makes it" in result.stderr
    assert sorted(path.name for path in notebooks.iterdir()) == [
        "01_data_preparation.ipynb",
        "02_resnet152.failed.ipynb",
    ]


@pytest.mark.parametrize(
    "profile", ["", "../notebooks", "smal", "sample ' kept '", "$(shell touch x)", "%"]
)
def test_clean_removes_known_profiles_only(tmp_path, profile):
    kept = tmp_path / "sample" / "kept"
    kept.mkdir(parents=True)
    result = make("clean", f"PROFILE={profile}", build=tmp_path)
    assert result.returncode != 0
    assert "PROFILE must be one of" in result.stderr
    assert kept.exists()
    assert not (ROOT / "x").exists()


def test_clean_removes_a_profile(tmp_path):
    (tmp_path / "sample" / "kept").mkdir(parents=True)
    assert make("clean", build=tmp_path).returncode == 0
    assert not (tmp_path / "sample").exists()


def test_a_build_folder_with_a_space_is_refused(tmp_path):
    result = make("report", build=tmp_path / "with space")
    assert result.returncode != 0
    assert "without spaces" in result.stderr


def test_environment_for_conda_keeps_to_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (packages,) = (
        entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)
    )
    assert packages == ["-c constraints.txt", "-e .[test,bench]"]
    assert "pip" in environment["dependencies"]
