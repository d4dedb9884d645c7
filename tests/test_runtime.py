"""Folders, device and precision, and what an import may cost."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from fashionlib import runtime
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


def test_the_machine_is_described_in_plain_values():
    described = runtime.describe_machine()
    assert described["machine"]["cores"] >= 1
    assert described["versions"]["torch"] == torch.__version__


WORKER = """
import os, time, torch
from fashionlib import runtime
runtime.join_processes(torch.device("cpu"))
print("joined", os.getpid(), flush=True)
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
    joined = [launcher.stdout.readline() for _ in range(2)]
    workers = [psutil.Process(int(line.split()[1])) for line in joined]
    launcher.kill()
    launcher.wait()
    _, left = psutil.wait_procs(workers, timeout=10)
    running = [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
    for each in running:
        each.kill()
    assert running == []
