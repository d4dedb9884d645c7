"""The hand-over between chapters: metrics from several processes, checkpoints."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fashionlib import artifacts, evaluation, runtime
from fashionlib.runtime import InputError


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """A build root of its own for every test, for child processes too."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    return tmp_path / "build"


# --- metrics --------------------------------------------------------------------------

WRITER = """
import sys
from fashionlib import artifacts
for i in range(60):
    artifacts.publish("sample", "shared", {f"{sys.argv[1]}_{i}": i}, extend=True)
artifacts.publish("sample", sys.argv[1], {"done": True})
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
    artifacts.publish("sample", "dcgan", {"1": {"images": 5}, "2": {"images": 6}})
    artifacts.publish("sample", "dcgan", {"1": {"images": 5}})
    assert artifacts.read_metrics("sample") == {"dcgan": {"1": {"images": 5}}}


def test_metrics_replace_only_their_own_keys_and_become_plain_numbers():
    artifacts.publish("sample", "data", {"rows": 1, "images": 2})
    artifacts.publish(
        "sample",
        "data",
        {"images": np.int64(3), "shares": np.array([0.5, 0.25])},
        extend=True,
    )
    artifacts.publish("sample", "dcgan", {"1": {"distance": torch.tensor(1.5)}})
    expected = {
        "data": {"rows": 1, "images": 3, "shares": [0.5, 0.25]},
        "dcgan": {"1": {"distance": 1.5}},
    }
    assert artifacts.read_metrics("sample", "data") == expected
    assert artifacts.read_metrics("another") == {}


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), np.array([1.0, np.nan]), {"deep": [float("nan")]}],
)
def test_numbers_that_are_none_are_refused(value):
    artifacts.publish("sample", "data", {"rows": 1})
    before = (artifacts.folder("sample") / "metrics.json").read_text()
    with pytest.raises(InputError, match="not finite"):
        artifacts.publish("sample", "data", {"rows": value})
    assert (artifacts.folder("sample") / "metrics.json").read_text() == before
    assert not list(artifacts.folder("sample").glob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b'{"data": {', b"[]", b"null", b"\xff"])
def test_damaged_metrics_are_refused_and_stay_as_they_are(content):
    path = artifacts.folder("sample") / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        artifacts.read_metrics("sample")
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        artifacts.publish("sample", "data", {"count": 1})
    assert path.read_bytes() == content


def test_an_estimate_becomes_a_value_and_its_interval():
    estimate = evaluation.Estimate(0.5, [0.25, 0.75], 9)
    results = {"share": estimate, "methods": {"gradient": {"auc": estimate}}}
    artifacts.publish("sample", "data", results)
    flat = {"share": 0.5, "share_ci95": [0.25, 0.75]}
    nested = {"auc": 0.5, "auc_ci95": [0.25, 0.75]}
    expected = flat | {"methods": {"gradient": nested}}
    assert artifacts.read_metrics("sample")["data"] == expected


def test_missing_results_name_chapter_and_command():
    with pytest.raises(InputError, match=r"02_resnet152.*02_resnet152\.ipynb"):
        artifacts.read_metrics("sample", "classifier")
    with pytest.raises(InputError, match=r"papermill notebooks/05_dcgan\.ipynb"):
        artifacts.require("sample", "dcgan_1.safetensors")
    with pytest.raises(InputError, match=r"-f profiles/small/02_resnet152\.yml$"):
        artifacts.require("small", "classifier.safetensors")
    with pytest.raises(InputError, match="-p run mine"):
        artifacts.require("mine", "prepared")


def test_prepared_data_count_only_with_a_manifest():
    folder = artifacts.folder("sample") / "prepared"
    folder.mkdir()
    with pytest.raises(InputError, match="chapter 01_data_preparation makes it"):
        artifacts.require("sample", "prepared")
    (folder / "manifest.json").write_text("{}")
    assert artifacts.require("sample", "prepared") == folder


# --- weights and checkpoints ----------------------------------------------------------


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
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"epoch": 3, "history": [0.5, None]}
    artifacts.save_checkpoint(tmp_path / "c.pt", state)
    train(model, optimizer, 2, seed=1)

    restored = artifacts.load_checkpoint(tmp_path / "c.pt")
    assert (restored["epoch"], restored["history"]) == (3, [0.5, None])
    other = small_model(seed=7)
    other.load_state_dict(restored["model"])
    continued = torch.optim.AdamW(other.parameters(), lr=0.5)
    continued.load_state_dict(restored["optimizer"])
    assert continued.param_groups[0]["lr"] == 0.01
    for parameter, moments in continued.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
        assert moments["exp_avg_sq"].stride() == parameter.stride()
    assert not other[0].weight.is_contiguous()  # still channels_last
    train(other, continued, 2, seed=1)
    pairs = zip(tensors_of(model), tensors_of(other), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_other_settings_and_other_code_are_another_file(tmp_path, monkeypatch):
    code = ("catalogue", "data.duplicates")
    settings = {"epochs": 5, "size": (80, 60)}
    path = artifacts.checkpoint_path(tmp_path / "classifier", settings, code)
    assert path.name.startswith("classifier-")
    as_read = json.loads(json.dumps(settings))
    assert artifacts.checkpoint_path(tmp_path / "classifier", as_read, code) == path
    others = [
        artifacts.checkpoint_path(
            tmp_path / "classifier", settings | {"epochs": 6}, code
        ),
        artifacts.checkpoint_path(tmp_path / "classifier", settings, code[:1]),
    ]
    assert len({path, *others}) == 3
    assert artifacts.load_checkpoint(path) is None


def test_the_code_digest_is_of_what_is_computed(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    module = tmp_path / "data" / "lesson.py"
    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / "artifacts.py"))
    digests = []
    for text in (
        'def f(x):\n    """Doc."""\n    return x + 1\n',
        'def f(x):\n    """Another doc."""\n    return x + 1  # why\n',
        'def f(x):\n    """Doc."""\n    return x + 2\n',
    ):
        module.write_text(text)
        digests.append(artifacts.code_digest("data.lesson"))
    assert digests[0] == digests[1] != digests[2]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    artifacts.save_checkpoint(whole, {"model": small_model().state_dict()})
    cut.write_bytes(whole.read_bytes()[:-100])
    foreign = tmp_path / "foreign.pt"
    save_file({"weight": torch.zeros(2)}, foreign)
    pickled = tmp_path / "pickled.pt"
    torch.save({"code": pytest.raises}, pickled)
    for path in (cut, foreign, pickled):
        with pytest.raises(InputError, match=path.name) as error:
            artifacts.load_checkpoint(path)
        assert "\n" not in str(error.value)
        assert path.exists()  # left for the reader to look at
    for path in (foreign, pickled):
        with pytest.raises(InputError, match=path.name):
            artifacts.load_weights(path, small_model())


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
    with pytest.raises(InputError, match="Linear"):
        artifacts.load_weights(path, torch.nn.Linear(2, 2))
