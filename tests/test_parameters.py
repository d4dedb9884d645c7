"""Parameters of chapters: profiles against notebooks, types, what is converted."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

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
        ("rate: .nan", "float"),
        ("sizes:", "sizes"),
        ("1: 2", "it has run, sizes"),
        ("run: yours", "mine"),
        ("sizes: [64", "YAML"),
        ("- sizes", "name: value"),
        ("# caf\xe9: 3", "YAML"),
        ("run: 2024-13-45", "YAML"),
        ("sizes: " + "[" * 5000, "YAML"),
    ],
)
def test_a_mistake_in_a_profile_is_one_line(project, text, word):
    project.write_text(text, "latin-1")
    with pytest.raises(InputError, match=word) as error:
        parameters.for_profile("01_data", "mine")
    assert "profiles/mine/01_data.yml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_in_a_profile_is_one_line_not_the_defaults(project, make):
    project.unlink(missing_ok=True)
    make(project)
    with pytest.raises(InputError, match=r"profiles/mine/01_data\.yml cannot be read"):
        parameters.for_profile("01_data", "mine")


def test_an_unknown_profile_is_told_with_those_that_exist(project):
    with pytest.raises(InputError, match="mine, sample"):
        parameters.for_profile("01_data", "smal")


def test_a_profile_without_a_run_is_its_own(project):
    """Else its results would go to the sample's folder."""
    project.write_text("epochs: 5\n")
    assert parameters.for_profile("01_data", "mine")["run"] == "mine"


@pytest.mark.parametrize("line", ["epochs = 1 + x", "epochs: int = 3", "epochs ="])
def test_an_edited_cell_of_parameters_that_is_no_list_of_values_is_one_line(
    project, line
):
    path = project.parents[2] / "notebooks" / "01_data.ipynb"
    path.write_text(path.read_text().replace("epochs = 3", line))
    with pytest.raises(InputError, match="parameters"):
        parameters.check("01_data", {})


# --- the one check --------------------------------------------------------------------


def test_every_parameter_says_what_it_may_be():
    """A new one needs an entry, and none is left of those that went."""
    used = {
        name
        for chapter in parameters.chapters()
        for name in parameters.notebook_defaults(chapter)
    }
    allowed = parameters.allowed()
    assert used == {name.split(".")[-1] for name in allowed}
    assert allowed["precision"] == f"str in {'|'.join(runtime.PRECISIONS)}"
    for kind in allowed.values():
        limits = kind.partition(" in ")[2]
        if limits and "|" not in limits:
            assert re.fullmatch(r"[\[(][-\d]+, (\d+|inf|[a-z_]+)[\])]", limits)


NAN, INF = math.nan, math.inf
RIGHT = [  # what is given, and what the chapter gets
    ("01_data_preparation", "run", 20261126, "20261126"),
    ("01_data_preparation", "run", "größe_2.b-c", "größe_2.b-c"),
    ("01_data_preparation", "sizes", "[64, [80, 60]]", [64, [80, 60]]),
    ("01_data_preparation", "sizes", (64.0, (80, 60)), [64, [80, 60]]),
    ("01_data_preparation", "source", 2024, "2024"),
    ("01_data_preparation", "group_names", "true", True),
    ("02_resnet152", "size", "[64, 64]", [64, 64]),
    ("02_resnet152", "weights", None, "none"),
    ("02_resnet152", "weights", "None/x.pth", "None/x.pth"),
    ("02_resnet152", "learning_rate", "1e-3", 0.001),
    ("02_resnet152", "learning_rate", "5e-05", 0.00005),
    ("02_resnet152", "learning_rate", 1, 1.0),
    ("02_resnet152", "epochs", 2.0, 2),
    ("02_resnet152", "epochs", "8", 8),
    ("02_resnet152", "flip", "False", False),
    ("02_resnet152", "compiled", "TRUE", True),
    ("02_resnet152", "seed", 2**32 - 1, 2**32 - 1),
    ("02_resnet152", "crop", 63, 63),
    ("02_resnet152", "layer_decay", 1, 1.0),
    ("02b_comparisons", "extractors", "['vgg16', \"alexnet\"]", ["vgg16", "alexnet"]),
    ("02b_comparisons", "extractor_weights", None, "none"),
    ("04_average_saliency", "image_count", 0, 0),
    ("05_dcgan", "classes", "[1]", [1]),
    ("08_transfer", "seeds", [0.0, 2], [0, 2]),
    ("08_transfer", "label_fractions", [0.5, 0.75, 1], [0.5, 0.75, 1.0]),
    ("08_transfer", "epochs", [3, 3, 3], [3, 3, 3]),
]
WRONG = {
    "01_data_preparation": {
        "run": (1.5, None, True, "", ".", "..", "../../x", "/x", "a/b", "a\\b", ".a"),
        "sizes": (64, [], [True], [64, 64], [[64]], [[1] * 3], ["a"], [NAN], [4], {}),
        "resize_mode": ("squeeze", None, True),
        "workers": (1.5, -2, None, 10**11),
        "source": (None, 1.5, ["a"], "", " "),
    },
    "02_resnet152": {
        "size": (64, "64", None, [64], [64, 64, 64], [64, True], [64, 6e9], [[64, 64]]),
        "epochs": (-1, 1.5, "1.5", "", "many", True, None, NAN, INF, 10**400, [3]),
        "batch_size": (0, 1, 2.5, -64, 10**30),
        "micro_batch": (-1, 65, 0.5),
        "learning_rate": (0, -1, NAN, INF, "nan", "1e999", "fast", True, 10**400),
        "weight_decay": (-1, NAN, INF),
        "label_smoothing": (-0.1, 1, 2, NAN),
        "crop": (-1, 1.5, 96),
        "layer_decay": (0, 1.1, NAN),
        "seed": (-1, 2**32, 1.5, NAN, "x"),
        "flip": (1, 0, "no", None, "", 1.0),
        "weights": (True, 1.5, ["none"]),
        "stem": ("large", None),
        "schedule": ("cosine",),
        "precision": ("half", 32),
    },
    "02b_comparisons": {
        "extractors": ("vgg16", [], ["vgg16", "vgg16"], [None], [1.5]),
        "extractor_weights": ("imagenet2", True),
        "extractor_images": (0, NAN),
    },
    "03_guided_backprop": {"deletion_images": (0, 61), "image_count": (0, 1, -1)},
    "03b_methods": {"drawing_size": (0, 16, 9999), "slow_images": (0, 25)},
    "04_average_saliency": {"image_count": (-1,), "face_images": (0, -1)},
    "05_dcgan": {
        "classes": (1, [1, 1], [6], [-1], [], [True], ["x"], [1.5], "[1, 1]"),
        "recipe": ("bset",),
        "beta1": (-0.1, 1, NAN),
        "latent_dim": (0, 1, 10**9),
        "base_channels": (0, 10**9),
        "distance_images": (3,),
    },
    "07_resolution": {"gan_side": (96, 0), "sides": (96, [], [97], [24, 24, 96])},
    "08_transfer": {
        "seeds": ([], [0, 0], [-1], 0),
        "label_fractions": ([0, 0.5, 1], [0.5, 1, 1.5], [NAN, 0.5, 1], [1], [1, 1, 1]),
        "epochs": (3, [3, 3], [3, 3, 0]),
    },
}


@pytest.mark.parametrize(("chapter", "name", "given", "expected"), RIGHT)
def test_what_is_without_doubt_is_converted_in_place(chapter, name, given, expected):
    values = {name: given, "other": object()}
    parameters.check(chapter, values)
    assert values[name] == expected
    assert type(values[name]) is type(expected)
    assert values.keys() == {name, "other"}


@pytest.mark.parametrize(
    ("chapter", "name"), [(each, name) for each in WRONG for name in WRONG[each]]
)
def test_every_other_value_is_one_line(chapter, name):
    for given in WRONG[chapter][name]:
        values = {name: given}
        with pytest.raises(InputError, match="must be") as error:
            parameters.check(chapter, values)
        assert "\n" not in str(error.value)
        assert values[name] is given  # nothing is half converted


def test_an_unknown_parameter_of_papermill_is_refused():
    """papermill only warns; what it injected is the cell that the kernel ran before."""
    cells = [
        "",
        "epochs = 6",
        "# Parameters\nlearing_rate = float('nan')\nepochs = 3\n",
    ]
    with pytest.raises(InputError, match="'learing_rate'; it has learning_rate"):
        parameters.check("02_resnet152", {"In": cells, "learing_rate": NAN})
    cells[-1] = "# Parameters\nepochs = 3\n"
    later = {"learning_rates": [1], "sized": 2}  # the chapter's own, run once more
    parameters.check("02_resnet152", {"In": cells} | later)


def run_papermill(folder, *options: str) -> tuple[int, str]:
    """Status and outputs of chapter 2's first cells, bare: without make's own check."""
    path = runtime.project_root() / "notebooks" / "02_resnet152.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    cells = notebook["cells"]
    (place,) = (
        i
        for i, cell in enumerate(cells)
        if cell["metadata"].get("tags") == ["parameters"]
    )
    code = (
        "from fashionlib import parameters\nparameters.check('02_resnet152', globals())"
    )
    cells[place + 1]["source"] = f"{code}\n(run, weights, size, epochs, learning_rate)"
    notebook["cells"] = cells[place : place + 2]
    (folder / "two.ipynb").write_text(json.dumps(notebook), "utf-8")
    command = [
        sys.executable,
        "-m",
        "papermill",
        "-k",
        "python3",
        "two.ipynb",
        "out.ipynb",
    ]
    environment = os.environ | {"PYTHONPATH": str(runtime.project_root())}
    done = subprocess.run([*command, *options], cwd=folder, env=environment)
    outputs = json.loads((folder / "out.ipynb").read_text("utf-8"))["cells"][-1][
        "outputs"
    ]
    return done.returncode, json.dumps(outputs)


@pytest.mark.slow
def test_bare_papermill_has_the_same_check(tmp_path):
    (tmp_path / "mine.yml").write_text("run: mine\nlearning_rate: 5e-05\n")
    options = ["-f", "mine.yml", "-p", "weights", "None", "-p", "size", "[64, 64]"]
    options += ["-p", "run", "20261126", "-y", "epochs: 2.0"]
    status, shown = run_papermill(tmp_path, *options)
    assert status == 0
    assert "('20261126', 'none', [64, 64], 2, 5e-05)" in shown
    for wrong in ("learing_rate 0.1", "run ../x"):
        status, shown = run_papermill(tmp_path, "-p", *wrong.split())
        assert status != 0
        assert f"InputError: {'run' if 'run' in wrong else '02_resnet152'}" in shown


def test_parameters_of_a_chapter_of_ones_own_have_the_type_of_their_default(project):
    values = {"rate": "1e-3", "epochs": 2.0, "sizes": "[80]", "flip": "false"}
    parameters.check("01_data", values)
    assert values == {"rate": 0.001, "epochs": 2, "sizes": [80], "flip": False}
    for name, given in {"rate": INF, "flip": "no", "sizes": "64"}.items():
        with pytest.raises(InputError, match=name):
            parameters.check("01_data", {name: given})


def test_every_profile_of_the_project_fits_its_notebooks():
    for profile in parameters.profiles():
        for chapter in parameters.chapters():
            chosen = parameters.for_profile(chapter, profile)
            assert chosen["run"] == profile
