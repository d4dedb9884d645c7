"""The benchmarks' own code: what can be tried without measuring anything."""

import re
import subprocess
import sys

import pytest

from fashionlib import runtime

FOLDER = runtime.project_root() / "benchmarks"


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import measuring

    return measuring


def gpu(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / "gpu.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_gpu_benchmark_makes_a_dry_run():
    import torch

    if torch.cuda.is_available():
        pytest.skip("with a GPU it is no dry run: make bench")
    result = gpu()
    assert result.returncode == 0, result.stderr
    assert re.search(r"dry run .*[1-9]\d* figures", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--source", "typo.zip"], "typo.zip"),
        (["--source", "synthetic", "--weights", "typo.pth"], "weights"),
    ],
)
def test_the_gpu_benchmark_looks_at_its_options_first(options, word):
    result = gpu(*options)
    assert (result.returncode, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert word in last


@pytest.mark.slow
def test_a_clone_without_the_real_catalogue_measures_synthetic_images(
    monkeypatch, tmp_path, capsys, measuring
):
    import conftest

    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    monkeypatch.setattr(conftest, "real_data_folder", lambda: None)
    for count in (40, 16):
        _, images = measuring.photographs(count)
        assert len(images) == count
        assert {image.mode for image in images} == {"RGB"}
    assert "not here" in capsys.readouterr().out


@pytest.mark.slow
def test_a_candidate_that_stops_says_why(measuring):
    code = "import sys; sys.stdin.readline(); 1 / 0"
    with pytest.raises(SystemExit, match=r"(?s)ours.*ZeroDivisionError"):
        measuring.in_processes({"ours": [sys.executable, "-c", code]}, 1)


def test_every_result_has_its_place_on_the_page():
    page = (FOLDER / "README.md").read_text()
    for path in [*FOLDER.glob("*.py"), *(FOLDER / "experiments").glob("*.py")]:
        for name in re.findall(r'measuring\.save\(\s*"(\w+)"', path.read_text()):
            assert page.count(f"<!-- {name} -->\n") == 2, f"{path.name} writes {name}"
