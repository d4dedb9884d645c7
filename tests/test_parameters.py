"""Parameters of chapters: profiles against notebooks, types, what is converted."""

import json
import math

import pytest

from fashionlib import parameters, runtime
from fashionlib.runtime import InputError

CELL = """
run = "sample"  # a comment
sizes = [64, 96]
rate = 2e-3
epochs = 3
flip = True
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one chapter and one profile `mine`; returns the profile's file."""
    cell = {"metadata": {"tags": ["parameters"]}, "source": CELL}
    text = json.dumps({"cells": [{"metadata": {}, "source": ""}, cell]})
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_data.ipynb").write_text(text)
    (tmp_path / "profiles" / "mine").mkdir(parents=True)
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    return tmp_path / "profiles" / "mine" / "01_data.yml"


def test_a_profile_changes_the_defaults(project):
    project.write_text("run: mine\nsizes: [[80, 60], 64]\nrate: 0.00005\n")
    assert parameters.for_profile("01_data", "mine") == {
        **{"run": "mine", "sizes": [[80, 60], 64], "rate": 0.00005},
        **{"epochs": 3, "flip": True},
    }
    assert parameters.for_profile("01_data", "sample")["rate"] == 2e-3
    assert parameters.chapters() == ["01_data"]
    assert parameters.profiles() == ["mine", "sample"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("sized: [64]", "sizes"),
        ("sizes: 64", "list"),
        ("epochs: true", "int"),
        ("epochs: 1.5", "int"),
        ("flip: 1", "bool"),
        ("rate: fast", "float"),
        ("sizes: [64", "YAML"),
        ("- sizes", "list"),
    ],
)
def test_a_mistake_in_a_profile_is_one_line(project, text, word):
    project.write_text(text)
    with pytest.raises(InputError, match=word) as error:
        parameters.for_profile("01_data", "mine")
    assert "profiles/mine/01_data.yml" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_profile_is_told_with_those_that_exist(project):
    with pytest.raises(InputError, match="mine, sample"):
        parameters.for_profile("01_data", "smal")


def test_what_is_without_doubt_is_converted_in_place(project):
    values = {"rate": 1, "epochs": 2.0, "flip": False, "other": object()}
    parameters.check("01_data", values)
    assert (values["rate"], type(values["rate"])) == (1.0, float)
    assert (values["epochs"], type(values["epochs"])) == (2, int)
    values = {"rate": "1e-3", "epochs": "4"}  # YAML 1.1 reads 1e-3 as text
    parameters.check("01_data", values)
    assert values == {"rate": 0.001, "epochs": 4}


@pytest.mark.parametrize(
    "values",
    [
        {"run": 20261126},
        {"sizes": "[64]"},
        {"epochs": None},
        {"flip": "no"},
        {"epochs": math.inf},
        {"epochs": math.nan},
        {"rate": 10**400},
    ],
)
def test_other_types_are_refused(project, values):
    with pytest.raises(InputError, match=next(iter(values))):
        parameters.check("01_data", values)


def test_every_profile_of_the_project_fits_its_notebooks():
    for profile in parameters.profiles():
        for chapter in parameters.chapters():
            chosen = parameters.for_profile(chapter, profile)
            assert chosen["run"] == profile
