"""The benchmarks' own code: what can be tried without measuring anything."""

import re
import subprocess
import sys

import pytest
import torch

from fashionlib import runtime

FOLDER = runtime.project_root() / "benchmarks"


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU it is no dry run: make bench"
)
def test_the_gpu_benchmark_makes_a_dry_run():
    result = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(
        r"a dry run at toy sizes, [1-9]\d* figures measured and none kept",
        result.stdout,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "typo.zip"], "error: source 'typo.zip' does not exist"),
        (
            ["--source", "synthetic", "--weights", "typo.pth"],
            "error: weights must be none, imagenet or the path",
        ),
    ],
)
def test_the_gpu_benchmark_looks_at_its_options_first(options, message):
    result = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), *options],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(message)


def test_a_clone_without_the_real_catalogue_measures_drawn_pictures(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.syspath_prepend(str(FOLDER))
    import conftest
    import measuring

    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    monkeypatch.setattr(conftest, "real_data_folder", lambda: None)
    for count in (40, 16):
        kind, pictures = measuring.photographs(count)
        assert (kind, len(pictures)) == ("drawn pictures", count)
        assert {picture.mode for picture in pictures} == {"RGB"}
    assert "the real catalogue is not here" in capsys.readouterr().out


def test_a_candidate_that_stops_says_why(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import measuring

    with pytest.raises(SystemExit, match=r"(?s)ours stopped .*ZeroDivisionError"):
        measuring.in_processes(
            {"ours": [sys.executable, "-c", "import sys; sys.stdin.readline(); 1 / 0"]},
            1,
        )


def test_every_result_has_its_place_on_the_page():
    page = (FOLDER / "README.md").read_text()
    for path in [*FOLDER.glob("*.py"), *(FOLDER / "experiments").glob("*.py")]:
        for name in re.findall(r'measuring\.save\(\s*"(\w+)"', path.read_text()):
            assert page.count(f"<!-- {name} -->\n") == 2, f"{path.name} writes {name}"
