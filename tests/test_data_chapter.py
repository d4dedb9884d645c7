"""Chapter 1 on catalogues that lack something, or that only our reader can read."""

import json
import re
import warnings

import degenerate
import numpy as np
import pytest
from conftest import csv_line, write_catalogue

from fashionlib import artifacts, runtime
from fashionlib.runtime import InputError


def run_chapter(tmp_path, monkeypatch, **parameters) -> dict:
    """Run the code of all cells in this process; returns what was published."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    path = runtime.project_root() / "notebooks" / "01_data_preparation.ipynb"
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a mean of nothing
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= {"run": "tiny", "workers": 1} | parameters
    answers = [value for name, value in names.items() if name.startswith("answer_")]
    assert np.isfinite(np.hstack(answers)).all()
    return artifacts.read_metrics("tiny", "data")["data"]


SHORT = ["men only", "1 products", "all images equal"]
LONG = [name for name in degenerate.EVERY if name not in [*SHORT, "no readable image"]]


@pytest.mark.parametrize(
    "name", [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_a_catalogue_that_lacks_something(tmp_path, monkeypatch, name):
    source = degenerate.write(name, tmp_path)
    found = run_chapter(tmp_path, monkeypatch, source=str(source))
    assert len(found["class_counts"]) == 6
    assert found["rows"] == len(degenerate.EVERY[name])
    text = (artifacts.folder("tiny") / "metrics.json").read_text()
    assert not re.search("NaN|Infinity", text)


def test_a_catalogue_without_a_readable_image_is_one_line(tmp_path, monkeypatch):
    source = degenerate.write("no readable image", tmp_path)
    with pytest.raises(InputError, match="none of the 1 images can be read"):
        run_chapter(tmp_path, monkeypatch, source=str(source))
    folder = artifacts.folder("tiny")
    assert not list(folder.iterdir())


HARM = {
    "not UTF-8": (b"Product 5", b"Prod\xe9ct 5"),
    "unbalanced quote": (b"Product 9", b'"Product 9'),
    "carriage returns": (b"\n", b"\r"),
    "control characters": (b"Product 7", b"a\0b\x0cc\xe2\x80\xa8d"),
    "comma in the first row": (b"Product 1\n", b"Product, 1\n"),
}


@pytest.mark.parametrize("harm", HARM)
def test_the_chapter_reads_what_the_reader_reads(tmp_path, monkeypatch, harm):
    lines = [csv_line(i, name=f"Product {i}") for i in range(1, 13)]
    files = {i: degenerate.image(i) for i in range(1, 13)}
    source = write_catalogue(tmp_path / "catalogue", lines, files)
    table = source / "styles.csv"
    table.write_bytes(table.read_bytes().replace(*HARM[harm]))
    found = run_chapter(tmp_path, monkeypatch, source=str(source))
    assert (found["rows"], found["products"]) == (12, 12)
    assert found["rows_not_utf8"] == (harm == "not UTF-8")
