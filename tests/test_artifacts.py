"""The hand-over between chapters: metrics from several processes, checkpoints, and the check before a run."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import csv_line, solid, write_catalogue
from safetensors.torch import save_file

from fashionlib import artifacts, runtime
from fashionlib.runtime import InputError


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """A build root of its own for every test, for child processes too."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    return tmp_path / "build"


# --- metrics ----------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from fashionlib import artifacts
for i in range(60):
    artifacts.update_metrics("sample", "shared", {f"{sys.argv[1]}_{i}": i}, extend=True)
artifacts.update_metrics("sample", sys.argv[1], {"done": True})
"""


def test_two_processes_lose_none_of_each_others_metrics():
    command = [sys.executable, "-c", WRITER]
    writers = [
        subprocess.Popen([*command, name], cwd=runtime.project_root())
        for name in ("first", "second")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    metrics = artifacts.read_metrics("sample")
    assert metrics["shared"] == {
        f"{name}_{i}": i for name in ("first", "second") for i in range(60)
    }
    assert metrics["first"] == metrics["second"] == {"done": True}
    assert not list(artifacts.folder("sample").glob("*.tmp"))


def test_a_chapter_that_runs_again_leaves_no_key_of_its_last_run():
    artifacts.update_metrics(
        "sample", "dcgan", {"1": {"images": 5}, "2": {"images": 6}}
    )
    artifacts.update_metrics("sample", "dcgan", {"1": {"images": 5}})
    assert artifacts.read_metrics("sample") == {"dcgan": {"1": {"images": 5}}}


def test_metrics_replace_only_their_own_keys_and_become_plain_numbers():
    artifacts.update_metrics("sample", "data", {"rows": 1, "images": 2})
    artifacts.update_metrics(
        "sample",
        "data",
        {"images": np.int64(3), "shares": np.array([0.5, 0.25])},
        extend=True,
    )
    artifacts.update_metrics("sample", "dcgan", {"1": {"distance": torch.tensor(1.5)}})
    expected = {
        "data": {"rows": 1, "images": 3, "shares": [0.5, 0.25]},
        "dcgan": {"1": {"distance": 1.5}},
    }
    assert artifacts.read_metrics("sample", "data") == expected
    assert artifacts.read_metrics("another run") == {}


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), np.array([1.0, np.nan]), {"deep": [float("nan")]}],
)
def test_numbers_that_are_none_are_refused(value):
    artifacts.update_metrics("sample", "data", {"rows": 1})
    before = (artifacts.folder("sample") / "metrics.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.update_metrics("sample", "data", {"rows": value})
    assert (artifacts.folder("sample") / "metrics.json").read_text() == before


def test_metrics_of_other_types_are_refused():
    with pytest.raises(TypeError, match=r"plain numbers.*found \w*Path"):
        artifacts.update_metrics("sample", "data", {"folder": runtime.project_root()})


def test_what_a_later_chapter_adds_is_missing_after_the_first_one_ran_again():
    artifacts.update_metrics("sample", "guided_backprop", {"images": 1})
    artifacts.update_metrics(
        "sample",
        "guided_backprop",
        {"verdict_known": "x", "face_reason": ""},
        extend=True,
    )
    artifacts.read_metrics("sample", *artifacts.ADDED_METRICS)
    artifacts.update_metrics("sample", "guided_backprop", {"images": 1})
    with pytest.raises(
        InputError,
        match=r"'guided_backprop.verdict_known' .* chapter 03b_methods makes it",
    ):
        artifacts.read_metrics("sample", *artifacts.ADDED_METRICS)


def test_missing_results_name_chapter_and_command():
    with pytest.raises(
        InputError,
        match=r"'classifier'.*chapter 02_resnet152 makes it.*notebooks/02_resnet152\.ipynb",
    ):
        artifacts.read_metrics("sample", "classifier")
    with pytest.raises(
        InputError, match=r"papermill notebooks/05_dcgan\.ipynb out\.ipynb$"
    ):
        artifacts.require("sample", "dcgan_1.safetensors")
    with pytest.raises(InputError, match=r"-f profiles/small/02_resnet152\.yml$"):
        artifacts.require("small", "classifier.safetensors")


def test_prepared_data_count_only_with_a_manifest():
    folder = artifacts.folder("sample") / "prepared"
    folder.mkdir()
    with pytest.raises(InputError, match="chapter 01_data_preparation makes it"):
        artifacts.require("sample", "prepared")
    (folder / "manifest.json").write_text("{}")
    assert artifacts.require("sample", "prepared") == folder


# --- weights and checkpoints ------------------------------------------------------------------------------------------


def small_model(seed=0) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3),
    ]
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(2, 3, 9, 9, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()


def tensors_of(model) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_a_restored_training_goes_on_as_if_never_stopped(tmp_path):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "history": [0.5, None],
    }
    artifacts.save_checkpoint(
        tmp_path / "c.safetensors", state, settings={"size": (80, 60)}
    )
    train(model, optimizer, 2, seed=1)

    restored = artifacts.load_checkpoint(
        tmp_path / "c.safetensors", settings={"size": [80, 60]}
    )
    assert (restored["epoch"], restored["history"]) == (3, [0.5, None])
    other = small_model(seed=7)
    other.load_state_dict(restored["model"])
    continued = torch.optim.AdamW(other.parameters(), lr=0.5)
    artifacts.restore_optimizer(continued, restored["optimizer"])
    assert continued.param_groups[0]["lr"] == 0.01
    for parameter, moments in continued.state.items():
        assert (
            moments["exp_avg"].stride()
            == moments["exp_avg_sq"].stride()
            == parameter.stride()
        )
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not other[0].weight.is_contiguous()
    train(other, continued, 2, seed=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors_of(model), tensors_of(other), strict=True)
    )


def test_changed_settings_start_afresh_say_so_and_keep_the_old_file(tmp_path, capsys):
    path = tmp_path / "classifier.safetensors"
    assert artifacts.load_checkpoint(path, settings={}) is None
    artifacts.save_checkpoint(
        path, {"epoch": 2}, settings={"epochs": 5, "rate": 0.1, "classes": 6}
    )
    content = path.read_bytes()
    assert (
        artifacts.load_checkpoint(path, settings={"epochs": 9, "rate": 0.1, "seed": 0})
        is None
    )
    assert "classes, epochs, seed changed; starting afresh" in capsys.readouterr().out
    assert not path.exists()
    assert (tmp_path / "classifier.previous.safetensors").read_bytes() == content
    artifacts.save_checkpoint(
        path, {"epoch": 8}, settings={"epochs": 9, "rate": 0.1, "seed": 0}
    )
    for wanted, epoch in (
        ({"epochs": 5, "rate": 0.1, "classes": 6}, 2),
        ({"epochs": 9, "rate": 0.1, "seed": 0}, 8),
    ):
        assert artifacts.load_checkpoint(path, settings=wanted) == {"epoch": epoch}, (
            "back and forth loses nothing"
        )
        assert "going on from models.previous.safetensors" in capsys.readouterr().out
    path.unlink()
    assert artifacts.load_checkpoint(
        path, settings={"epochs": 5, "rate": 0.1, "classes": 6}
    ) == {"epoch": 2}
    assert path.read_bytes() == content
    (tmp_path / "classifier.previous.safetensors").write_bytes(
        b"damaged, and not wanted"
    )
    assert artifacts.load_checkpoint(
        path, settings={"epochs": 5, "rate": 0.1, "classes": 6}
    ) == {"epoch": 2}


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    artifacts.save_checkpoint(whole, {"model": small_model().state_dict()}, settings={})
    cut.write_bytes(whole.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"weight": torch.zeros(2)}, pickled)
    for path in (cut, foreign, pickled):
        with pytest.raises(
            InputError,
            match=rf"{path.name} is damaged or not one of this course's files",
        ):
            artifacts.load_checkpoint(path, settings={})
        assert path.exists()  # left for the reader to look at


def test_weights_and_their_settings(tmp_path):
    model, path = small_model(), tmp_path / "model.safetensors"
    artifacts.save_weights(path, model, {"architecture": "tiny", "classes": 4})
    assert json.loads((tmp_path / "model.json").read_text()) == {
        "architecture": "tiny",
        "classes": 4,
    }
    other = small_model(seed=5)
    assert artifacts.load_weights(path, other) == {"architecture": "tiny", "classes": 4}
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors_of(model), tensors_of(other), strict=True)
    )
    with pytest.raises(InputError, match=r"model\.safetensors does not fit Linear"):
        artifacts.load_weights(path, torch.nn.Linear(2, 2))


# --- the check before a run -------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A project with the library, chapter 1 and one profile `mine`."""
    root = tmp_path / "project"
    shutil.copytree(
        runtime.project_root() / "fashionlib",
        root / "fashionlib",
        ignore=shutil.ignore_patterns("__py*"),
    )
    (root / "notebooks").mkdir()
    shutil.copy(
        runtime.project_root() / "notebooks" / "01_data_preparation.ipynb",
        root / "notebooks",
    )
    (root / "profiles" / "mine").mkdir(parents=True)
    return root


def write_profile(project, text, name="01_data_preparation.yml"):
    (project / "profiles" / "mine" / name).write_text(text)


def check(project, *options) -> subprocess.CompletedProcess:
    """Run the command as make does, with its library in the working directory."""
    command = [sys.executable, "-m", "fashionlib.artifacts", "check", *options]
    return subprocess.run(
        command,
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )


def test_check_writes_the_parameters_of_every_chapter(project, build, tmp_path):
    write_profile(project, "sizes: [[80, 60], 64]\nfit: pad\n")
    source = write_catalogue(tmp_path / "catalogue", [csv_line(1)], {1: solid("red")})
    done = check(project, "--profile", "mine", "--source", str(source))
    assert (done.returncode, done.stderr) == (0, "")
    path = build / "mine" / "parameters" / "01_data_preparation.yml"
    note, text = path.read_text().split("\n", 1)
    assert note.startswith("# source: ")
    assert json.loads(text) == {
        "sizes": [[80, 60], 64],
        "fit": "pad",
        "run": "mine",
        "source": str(source),
    }
    first = path.stat().st_mtime_ns
    assert check(project, "--profile", "mine", "--source", str(source)).returncode == 0
    assert (
        path.stat().st_mtime_ns == first
    )  # make must not see a change where there is none


@pytest.mark.parametrize(
    ("profile", "options", "message"),
    [
        (
            "",
            ["--profile", "nonsense"],
            "PROFILE must be one of mine, sample; found 'nonsense'",
        ),
        (
            "sized: [64]",
            ["--profile", "mine"],
            "has no parameter 'sized'; did you mean 'sizes'?",
        ),
        (
            "sizes: 64",
            ["--profile", "mine"],
            "sizes must be of type list like [64, 96], found 64",
        ),
        (
            "seed: true",
            ["--profile", "mine"],
            "seed must be of type int like 0, found True",
        ),
        (
            "sizes: [64",
            ["--profile", "mine"],
            "01_data_preparation.yml is not valid YAML",
        ),
        ("- sizes", ["--profile", "mine"], "must hold lines `name: value`, found list"),
        (
            "",
            ["--profile", "mine", "--source", "missing.zip"],
            "source 'missing.zip' does not exist",
        ),
        ("", ["--profile", "mine", "--source", "notebooks"], "is no catalogue"),
    ],
)
def test_a_mistake_costs_a_second_and_one_line(
    project, build, profile, options, message
):
    write_profile(project, profile)
    done = check(project, *options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1  # one line, no traceback
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not (build / "mine" / "parameters" / "01_data_preparation.yml").exists()


def test_a_profile_of_no_chapter_is_a_mistake(project):
    write_profile(project, "run: mine", name="1_data.yml")
    done = check(project, "--profile", "mine")
    assert done.returncode == 1
    assert (
        "profiles/mine/1_data.yml belongs to no notebook; known: 01_data_preparation"
        in done.stderr
    )


def test_the_build_root_and_the_errors_last_line(build, monkeypatch):
    assert artifacts.folder("sample") == build / "sample" / "artifacts"
    monkeypatch.delenv("FASHION_BUILD")
    assert runtime.build_root() == runtime.project_root() / "build"
    assert InputError("a sentence")._render_traceback_() == ["InputError: a sentence"]
