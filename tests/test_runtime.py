"""Folders, device and precision, and what an import may cost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fashionlib import plots, runtime
from fashionlib.runtime import InputError


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    code = "import sys, fashionlib; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
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
    monkeypatch.setenv("FASHION_BUILD", "relative")
    assert runtime.build_root() == root / "relative"


def test_a_missing_device_is_named_with_those_that_are_there():
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(
        InputError,
        match=f"device '{missing}' is not available here; this machine has: .*cpu",
    ):
        runtime.device(missing)
    assert runtime.device("cpu") == torch.device("cpu")


def test_precision():
    cpu = torch.device("cpu")
    assert runtime.resolve_precision(cpu, "float32") == "float32"
    assert runtime.resolve_precision(cpu, "auto") in ("float32", "bfloat16")
    with pytest.raises(
        InputError,
        match="precision must be one of auto, bfloat16, float32, found 'half'",
    ):
        runtime.resolve_precision(cpu, "half")
    with runtime.autocast(cpu, "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with runtime.autocast(cpu, "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_notebook_shows_the_message_of_an_input_error_only():
    assert InputError("one line")._render_traceback_() == ["InputError: one line"]


def test_a_figure_is_closed_and_the_readers_style_untouched():
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = mpl.rcParams["axes.grid"], len(plt.get_fignums())
    figure = plots.class_bars({"ours": [0.1] * 6})
    assert (mpl.rcParams["axes.grid"], len(plt.get_fignums())) == before
    assert figure.axes[0].get_xticklabels()[0].get_text() == "Men/\nAccessories"


def test_confusion_shows_every_count():
    matrix = [[10 * row + column for column in range(6)] for row in range(6)]
    shown = [text.get_text() for text in plots.confusion(matrix).axes[0].texts]
    assert shown == [str(10 * row + column) for row in range(6) for column in range(6)]


def test_source_shows_the_code_itself():
    assert "def build_root()" in plots.source(runtime.build_root).data
