"""The Makefile, called as users call it: what it rebuilds, and what it refuses."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from filelock import FileLock

from fashionlib import parameters, runtime

ROOT = runtime.project_root()
# a name that shells and make would read in many ways
HOSTILE = 'it\'s a $b "c" `touch x`; touch x; $(shell touch x) & (touch x) * ~ # é'
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PROFILE", "SOURCE")
OF_MAKE += ("SEED", "PYTHON", "WORKERS", "ALL", "TORCH_INDEX", "LAB_OPTIONS")


# the tests' own environment is the project's, whether make has made it or not
COMMAND = ("make", "--no-print-directory", "-o", ".venv/.installed")


def environment(build: Path | str) -> dict[str, str]:
    kept = {key: each for key, each in os.environ.items() if key not in OF_MAKE}
    return kept | {"FASHION_BUILD": str(build)}


def make(*arguments: str, build: Path | str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments],
        **{"cwd": ROOT, "env": environment(build)} | more,
        capture_output=True,
        text=True,
        check=False,
    )


def tree(folder: Path) -> dict[str, int]:
    """When each file was changed; a lock stays, and holds nothing."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    times = {str(path): path.stat().st_mtime_ns for path in files}
    return {path: each for path, each in times.items() if not path.endswith(".lock")}


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
    "profile",
    ["", "../notebooks", "smal", "sample ' kept '", "$(shell touch x)", "%", HOSTILE],
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


# --- words of a user ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["with space", "it's", "a$b", "a;touch x", "=a", "-x", "~", HOSTILE]
)
def test_a_build_folder_may_have_any_name(tmp_path, name):
    (tmp_path / name / "sample" / "kept").mkdir(parents=True)
    (tmp_path / name / "small" / "kept").mkdir(parents=True)
    result = make("clean", build=tmp_path / name)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / name / "sample").exists()
    assert (tmp_path / name / "small" / "kept").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not (ROOT / "x").exists()


@pytest.mark.slow
def test_a_chapter_runs_in_a_build_folder_of_any_name(tmp_path):
    build = tmp_path / HOSTILE.replace("/", "")
    chapter = {"CHAPTERS": "01_data_preparation"}
    result = make("-e", "notebooks", build=build, env=environment(build) | chapter)
    assert result.returncode == 0, result.stderr
    assert (build / "sample" / "notebooks" / "01_data_preparation.ipynb").exists()
    assert (build / "sample" / "artifacts" / "metrics.json").exists()
    assert not (ROOT / "x").exists()


@pytest.mark.parametrize("where", ["environment", "command line"])
def test_an_empty_build_folder_is_no_build_folder_for_make_as_for_python(where):
    named = ["FASHION_BUILD="] if where == "command line" else []
    shown = make("-n", "removed", *named, build="").stdout
    assert shown.strip().splitlines()[-1] == "rm -rf -- build/sample"


def test_a_build_folder_on_the_command_line_is_that_of_python_too(tmp_path):
    (tmp_path / "other" / "sample").mkdir(parents=True)
    named = f"FASHION_BUILD={tmp_path}/a $b"
    (tmp_path / "a $b" / "sample").mkdir(parents=True)
    assert make("clean", named, build=tmp_path / "other").returncode == 0
    assert (tmp_path / "other" / "sample").exists()
    assert not (tmp_path / "a $b" / "sample").exists()


@pytest.mark.parametrize("build", ["/dev/null", "/proc/build", "file", "file/below"])
@pytest.mark.parametrize("goal", ["report", "notebooks", "clean", "check"])
def test_a_build_folder_that_cannot_be_is_one_line(tmp_path, build, goal):
    (tmp_path / "file").write_text("kept")
    result = make(goal, build=tmp_path / build)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_source_of_any_name_reaches_the_check(tmp_path):
    """Down to the innermost make, and as it was written."""
    for source in (HOSTILE.replace("/", ""), "-x.zip", "--help", "O'Brien/cat.zip"):
        for goal in ("check", "notebooks"):
            result = make(goal, f"SOURCE={source}", build=tmp_path)
            assert result.returncode != 0
            assert repr(source) in result.stderr
            assert "does not exist" in result.stderr
    assert not (ROOT / "x").exists()


@pytest.fixture
def recorder(tmp_path) -> Path:
    """A program in the place of Python that writes down what it was called with."""
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    program = folder / "python"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$RECORD"\n')
    program.chmod(0o755)
    return program


def test_options_of_jupyterlab_are_words_and_no_commands(tmp_path, recorder):
    record = tmp_path / "record"
    there = environment(tmp_path) | {"RECORD": str(record)}
    (tmp_path / "bin").mkdir()
    shutil.copy(recorder, tmp_path / "bin" / "python")
    options = f"LAB_OPTIONS=--port=1 ; touch x $(shell touch x) `touch x` {tmp_path}/*"
    binaries = f"BIN={tmp_path}/bin"
    result = make("lab", options, binaries, build=tmp_path, env=there)
    assert result.returncode == 0, result.stderr
    given = record.read_text().splitlines()
    assert given[-3:] == ["`touch", "x`", f"{tmp_path}/*"]
    assert {"--port=1", ";", "$(shell"} <= set(given)
    assert not (ROOT / "x").exists()


def test_the_environment_is_made_by_a_python_at_any_place(tmp_path, recorder):
    project, record = tmp_path / "project a'b$c", tmp_path / "record"
    (project / "profiles").mkdir(parents=True)
    (project / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(recorder, project / ".venv" / "bin" / "python")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, project)
    result = subprocess.run(
        ["make", ".venv/.installed", f"PYTHON={recorder}", "TORCH_INDEX=a b;touch x"],
        cwd=project,
        env=environment(tmp_path) | {"RECORD": str(record)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    given = record.read_text().splitlines()
    assert given[given.index("--extra-index-url") + 1] == "a b;touch x"
    assert not (project / "x").exists()


# --- several makes, and killed ones ---------------------------------------------------


def test_two_makes_in_one_profile_wait_for_each_other_and_say_so(tmp_path):
    kept = tmp_path / "sample" / "kept"
    kept.mkdir(parents=True)
    (tmp_path / "small").mkdir()
    start = {"stdout": subprocess.PIPE, "text": True, "env": environment(tmp_path)}
    with FileLock(tmp_path / ".sample.lock"):
        second = subprocess.Popen([*COMMAND, "clean"], cwd=ROOT, **start)
        line = second.stdout.readline()
        assert "waiting" in line
        assert str(tmp_path / "sample") in line
        assert kept.exists()
        # another profile does not wait
        assert make("clean", "PROFILE=small", build=tmp_path).returncode == 0
        assert kept.exists()
    assert second.wait(20) == 0
    assert not kept.exists()


ROUND = """
import pathlib, sys, time
log = pathlib.Path(sys.argv[1])
for _ in range(2):
    with log.open("a") as file:
        file.write(sys.argv[2])
    time.sleep(0.3)
"""


def test_guarded_commands_of_one_profile_run_one_after_the_other(tmp_path):
    log = tmp_path / "log"
    guarded = [sys.executable, "-m", "tools.guarded", "--alone", "sample"]
    running = [
        subprocess.Popen(
            [*guarded, sys.executable, "-c", ROUND, str(log), name],
            cwd=ROOT,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
        )
        for name in "abc"
    ]
    assert [process.wait(30) for process in running] == [0, 0, 0]
    assert sorted(log.read_text()[i : i + 2] for i in (0, 2, 4)) == ["aa", "bb", "cc"]


TOY = """
run:
\t@{python} -m tools.guarded --alone sample $(MAKE) -f {file} inner
inner:
\t@A=1 {python} {apart} && true
"""


APART = "import subprocess; subprocess.run(['sleep', '300'], start_new_session=True)"


@pytest.fixture
def started():
    """Starts a make; what a failed test leaves of it is ended."""
    running = []

    def start(command: list[str], build: Path) -> subprocess.Popen:
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        there = {"cwd": ROOT, "env": environment(build)}
        # tests in a shell's background, or under nohup, inherit that both do nothing
        there["preexec_fn"] = listen
        running.append(subprocess.Popen(command, **there, **silent))
        return running[-1]

    def listen():
        for stop in (signal.SIGINT, signal.SIGHUP):
            signal.signal(stop, signal.SIG_DFL)

    yield start
    for process in running:
        for each in family(process.pid) if process.poll() is None else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()
        process.wait()


def family(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children(recursive=True)


def wait_for(condition, seconds: float):
    """Its first value that is true; a failure after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    return pytest.fail(f"not within {seconds} s")


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def is_asleep(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == "sleep"
    return False


STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL")


@pytest.mark.parametrize("stop", STOPS)
def test_a_make_that_is_stopped_leaves_nothing_running(tmp_path, started, stop):
    """Make alone is told: not its children, which a terminal would tell, too."""
    file, apart = tmp_path / "Makefile", tmp_path / "apart.py"
    apart.write_text(APART)
    file.write_text(TOY.format(python=sys.executable, file=file, apart=apart))
    running = started(["make", "-f", str(file)], tmp_path)
    slept = wait_for(
        lambda: [each for each in alive(family(running.pid)) if is_asleep(each)], 30
    )
    below = family(running.pid)
    assert len(below) >= 4  # guarded, make, Python, sleep
    running.send_signal(signal.Signals[stop])
    wait_for(lambda: not alive(below), 15)
    assert running.wait(5) != 0
    assert not alive(slept)
    with FileLock(tmp_path / ".sample.lock", timeout=5):
        pass


@pytest.mark.parametrize(
    "stop", ["SIGTERM", *(pytest.param(each, marks=pytest.mark.slow) for each in STOPS)]
)
def test_a_report_that_is_stopped_leaves_no_kernel(tmp_path, started, stop):
    running = started([*COMMAND, "report"], tmp_path)

    def has_kernel():
        commands = []
        for each in family(running.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                commands += each.cmdline()
        return "ipykernel_launcher" in commands

    wait_for(has_kernel, 60)
    below = family(running.pid)
    running.send_signal(signal.Signals[stop])
    wait_for(lambda: not alive(below), 20)
    assert running.wait(5) != 0
    with FileLock(tmp_path / ".sample.lock", timeout=5):
        pass


def test_environment_for_conda_keeps_to_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (packages,) = (
        entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)
    )
    assert packages == ["-c constraints.txt", "-e .[test,bench]"]
    assert "pip" in environment["dependencies"]
