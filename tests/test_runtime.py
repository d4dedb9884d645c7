"""Folders, device and precision, the reader's environment, what an import may cost."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from fashionlib import artifacts, runtime
from fashionlib.runtime import InputError


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    heavy = {"torch", "torchvision", "pandas", "matplotlib"}
    code = f"import sys, fashionlib; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert result.stdout.strip() == "[]"


def test_folders_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("FASHION_BUILD", raising=False)
    monkeypatch.chdir(tmp_path)
    root = runtime.project_root()
    assert (root / "_toc.yml").is_file()
    assert runtime.build_root() == root / "build"
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "elsewhere"))
    assert runtime.build_root() == Path(tmp_path / "elsewhere").resolve()
    monkeypatch.setenv("FASHION_BUILD", "")  # as not set, for make and Python alike
    assert runtime.build_root() == root / "build"
    monkeypatch.setenv("FASHION_BUILD", "relative")
    assert runtime.build_root() == root / "relative"


@pytest.mark.parametrize(
    "name", ["sample", "2026-11-30", "mine_2.b", "größe", "a" * 60]
)
def test_a_run_has_a_plain_name(name):
    assert runtime.check_run(name) == name


NO_PATH = ["", ".", "..", "../../x", "/x", "a/b", "a\\b", ".a", "a:b", "a\0", "a" * 61]
NO_WORD = ["-rf", "a ", " a", "a b", "a\n", "$(x)", "a'b", 5, None, True, ["sample"]]


@pytest.mark.parametrize("name", [*NO_PATH, *NO_WORD])
def test_no_other_name_leaves_the_build_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    reading = (artifacts.read_metrics, lambda run: artifacts.require(run, "prepared"))
    writing = (
        artifacts.folder,
        lambda run: artifacts.publish(run, "data", {"rows": 1}),
    )
    for use in (runtime.check_run, *reading, *writing):
        with pytest.raises(InputError, match="run must be") as error:
            use(name)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# --- the reader's environment ---------------------------------------------------------

ROOT = runtime.project_root()
SOURCES = [
    path
    for folder in ("fashionlib", "tools", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_are_utf_8_whatever_the_locale_and_no_work_is_done_for_assert(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        assert not isinstance(node, ast.Assert), "python -O leaves it out"
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            assert name != "__doc__", "python -OO has none"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, given = node.func.attr, {each.arg for each in node.keywords}
            wanted = {"read_text": 1, "write_text": 2}.get(name, 0)
            assert len(node.args) >= wanted or "encoding" in given, node.lineno


@pytest.mark.slow
def test_commands_work_where_little_is_promised(tmp_path):
    """No docstrings, no asserts, no UTF-8, no home, another place in the world."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0"}
    environment |= {
        "PYTHONCOERCECLOCALE": "0",
        "TZ": "Asia/Kolkata",
        "MPLBACKEND": "agg",
    }
    environment |= {"HOME": "/proc/nowhere", "PYTHONPATH": str(ROOT)}
    environment |= {"FASHION_BUILD": str(tmp_path / "b u$i'l[d] é")}
    command = [sys.executable, "-OO", "-m"]
    for module in ("fashionlib", "tools.check", "tools.book"):
        subprocess.run(
            [*command, module, "--help"], check=True, cwd=tmp_path, env=environment
        )
    check = [*command, "tools.check", "--profile", "small", "--source", "synthetic"]
    subprocess.run(check, check=True, cwd=tmp_path, env=environment)
    code = "import sys; from fashionlib.data import synthetic as drawn\n"
    code += "drawn.draw(sys.argv[1], products=60)"
    drawn = [*command[:-1], "-c", code, "c a$t é"]
    subprocess.run(drawn, check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "c a$t é" / "styles.csv").is_file()
    predict = [*command, "fashionlib", "predict", "x.jpg", "--run", "smal"]
    done = subprocess.run(
        predict, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: ")


def test_a_missing_device_is_named_with_those_that_are_there():
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(InputError, match=f"cpu.*{missing}"):
        runtime.device(missing)
    assert runtime.device("cpu") == torch.device("cpu")


def test_precision():
    cpu = torch.device("cpu")
    assert runtime.resolve_precision(cpu, "float32") == "float32"
    assert runtime.resolve_precision(cpu, "auto") in ("float32", "bfloat16")
    with pytest.raises(InputError, match="half"):
        runtime.resolve_precision(cpu, "half")
    with runtime.autocast(cpu, "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with runtime.autocast(cpu, "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_notebook_shows_the_message_of_an_input_error_only():
    assert InputError("one line")._render_traceback_() == ["InputError: one line"]


def test_lesson_modules_leave_torchs_compiler_alone(tmp_path):
    """It takes more than a second, and only `torch.compile` needs it."""
    code = (
        "import sys; from fashionlib import dcgan, plots, saliency, training\n"
        "print(sorted({'torch._dynamo', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "[]"


def test_the_local_main_process_goes_first_on_every_machine(monkeypatch):
    """Two machines of two processes: who waits before the block, and who after it."""
    from torch import distributed

    waited = []
    monkeypatch.setattr(distributed, "barrier", lambda: waited.append(len(done)))
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, local_rank, expected in ((0, 0, [1]), (1, 1, [0]), (2, 0, [1])):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        done = []
        waited.clear()
        with runtime.local_main_process_first():
            done.append("downloaded")
        assert waited == expected


def test_the_bar_is_on_stdout_and_goes(capsys):
    assert list(runtime.progress(range(3), "counting", mininterval=0)) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "counting" in shown.out
    assert shown.out.rsplit("\r", 1)[-1].strip() == ""
    assert shown.err == ""


def test_only_the_first_process_shows_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert list(runtime.progress(range(3), "counting", mininterval=0)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_the_machine_is_described_in_plain_values():
    described = runtime.describe_machine()
    assert described["machine"]["cores"] >= 1
    assert described["versions"]["torch"] == torch.__version__


def test_a_message_stays_one_line_of_1000_characters_whatever_it_quotes():
    error = runtime.InputError("a\nb\x1b[31m\u2028c" + "x" * 10**6 + " what to do.")
    assert str(error).startswith("a b [31m c")
    assert str(error).endswith("x what to do.")
    assert len(str(error)) <= 1000
    assert error._render_traceback_() == [f"InputError: {error}"]


WORKER = """
import os, time, torch
from fashionlib import runtime
runtime.join_processes(torch.device("cpu"))
os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: both write to this pipe
time.sleep(300)
"""


@pytest.mark.slow
def test_workers_of_a_launcher_that_is_killed_end_with_it(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    options = ["--standalone", "--nproc-per-node", "2", str(script)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(runtime.project_root())},
    )
    workers = [psutil.Process(int(launcher.stdout.readline())) for _ in range(2)]
    launcher.kill()
    launcher.wait()
    _, left = psutil.wait_procs(workers, timeout=10)
    running = [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
    for each in running:
        each.kill()
    assert running == []
