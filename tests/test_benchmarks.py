"""The benchmarks' own code: what can be tried without measuring anything."""

import re
import subprocess
import sys

import pytest
import torch

from fashionlib import runtime

FOLDER = runtime.project_root() / "benchmarks"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is no dry run: make bench")
def test_the_gpu_benchmark_makes_a_dry_run():
    result = subprocess.run([sys.executable, str(FOLDER / "gpu.py")], capture_output=True, text=True, check=True)
    assert re.search(r"a dry run at toy sizes, [1-9]\d* figures measured and none kept", result.stdout)


def test_every_result_has_its_place_on_the_page():
    page = (FOLDER / "README.md").read_text()
    for path in [*FOLDER.glob("*.py"), *(FOLDER / "experiments").glob("*.py")]:
        for name in re.findall(r'measuring\.save\(\s*"(\w+)"', path.read_text()):
            assert page.count(f"<!-- {name} -->\n") == 2, f"{path.name} writes {name}"
