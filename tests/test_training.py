"""Training: the recipe's ingredients by hand, resume after a real SIGKILL, two real processes, too large a batch."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fashionlib import artifacts, evaluation, images, runtime, training
from fashionlib.runtime import InputError


def pictures(count: int = 40) -> images.ImageSet:
    """16x16 pictures whose class is their brightness: six levels, with a little noise."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, count)
    pixels = labels[:, None, None, None] * 45 + generator.integers(
        0, 10, (count, 16, 16, 3)
    )
    return images.ImageSet(
        pixels.astype(np.uint8), np.arange(count), labels.astype(np.int64)
    )


@pytest.fixture
def data() -> images.ImageSet:
    return pictures()


def tiny(dropout: float = 0.1, seed: int = 0) -> nn.Module:
    """A network with BatchNorm, small enough for a test."""
    torch.manual_seed(seed)
    body = [
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
    ]
    return nn.Sequential(*body, nn.Linear(392, 6))


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(
        torch.equal(value, other[name]) for name, value in first.state_dict().items()
    )


RECIPE = training.Recipe(epochs=3, batch_size=16, learning_rate=1e-2, flip=True, crop=1)
PLAIN = training.Recipe(epochs=1, batch_size=16, learning_rate=0.0, schedule="constant")


# --- the loop ---


def test_fit_learns_an_easy_task_and_records_every_epoch(data):
    model = tiny()
    recipe = replace(RECIPE, epochs=120, learning_rate=3e-2)
    history = training.fit(model, data, data, recipe=recipe, device="cpu")
    assert [record["epoch"] for record in history] == list(range(1, 121))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    logits, labels = training.predict(model, data, device="cpu")
    assert evaluation.evaluate(logits, labels)["accuracy"] > 0.8
    assert history[-1]["validation_accuracy"] == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item()
    )


@pytest.mark.parametrize("epochs", range(1, 7))
def test_one_cycle_is_as_short_as_one_step(data, epochs):
    """PyTorch's own schedule divides by zero where four steps are asked for."""
    history = training.fit(
        tiny(), data, recipe=replace(RECIPE, epochs=epochs, batch_size=64), device="cpu"
    )
    assert len(history) == epochs


def test_one_step_of_the_studys_recipe_is_adams(tmp_path, data):
    """Adam's first step moves every weight by the rate, against the sign of its gradient, and keeps a tenth of that."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 6))
    start = model[1].weight.detach().clone()
    pixels, labels = next(images.batches(data, batch_size=40, epoch=0))
    nn.functional.cross_entropy(model(pixels), labels, label_smoothing=0.1).backward()
    expected = start - 0.01 * model[1].weight.grad.sign()
    recipe = replace(
        PLAIN, batch_size=40, learning_rate=0.01, optimizer="adam", label_smoothing=0.1
    )
    gradient = model[1].weight.grad.clone()
    path = tmp_path / "run.safetensors"
    training.fit(
        model, data, recipe=recipe, device="cpu", precision="float32", checkpoint=path
    )
    torch.testing.assert_close(model[1].weight.detach(), expected, atol=1e-5, rtol=0)
    state, _ = artifacts.read_checkpoint(path)
    torch.testing.assert_close(state["optimizer"]["state"][0]["exp_avg"], gradient / 10)


def test_training_accuracy_is_over_samples_not_over_batches(data):
    """With a rate of 0 the weights stay, so that the epoch's accuracy has one right value; 40 is no multiple of 16."""
    model, hits, loss = tiny(dropout=0), 0, 0.0
    for pixels, labels in images.batches(data, batch_size=16, epoch=0):
        logits = model(pixels)
        hits += (logits.argmax(1) == labels).sum().item()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    history = training.fit(model, data, recipe=PLAIN, device="cpu", precision="float32")
    assert history[0]["train_accuracy"] == pytest.approx(hits / 40)
    assert history[0]["train_loss"] == pytest.approx(loss / 40, rel=1e-5)


def test_the_first_epochs_may_see_half_the_size(data):
    sizes, model = (
        [],
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6)),
    )
    model.register_forward_pre_hook(
        lambda _, arguments: sizes.append(tuple(arguments[0].shape[2:]))
    )
    training.fit(
        model, data, data, recipe=replace(RECIPE, half_size_epochs=2), device="cpu"
    )
    assert (
        sizes == [(8, 8)] * 8 + [(16, 16)] * 4
    )  # three batches an epoch, and one of validation


def test_the_average_is_that_of_the_weights_after_every_step(data):
    """Six steps, of which the average reaches back half: each keeps 1 - 1/3 of what was; the first one starts it."""
    recipe = replace(PLAIN, epochs=2, learning_rate=0.1, average=0.5)
    last, seen = nn.Sequential(nn.Flatten(), nn.Linear(768, 6)), []
    averaged = nn.Sequential(nn.Flatten(), nn.Linear(768, 6))
    averaged.load_state_dict(last.state_dict())
    last.register_forward_pre_hook(
        lambda module, _: seen.append(module[1].weight.detach().clone())
    )
    options = {"device": "cpu", "precision": "float32"}
    training.fit(last, data, recipe=replace(recipe, average=0.0), **options)
    training.fit(averaged, data, recipe=recipe, **options)
    expected = seen[1]
    for weight in [*seen[2:], last[1].weight.detach()]:
        expected = expected * 2 / 3 + weight / 3
    torch.testing.assert_close(averaged[1].weight.detach(), expected)


def test_averaged_weights_get_statistics_of_their_own(data):
    model = tiny(dropout=0)
    recipe = replace(RECIPE, average=0.3, flip=False, crop=0)
    history = training.fit(
        model, data, data, recipe=recipe, device="cpu", precision="float32"
    )
    outputs = torch.cat(
        [model[0](pixels) for pixels, _ in images.batches(data, batch_size=16, epoch=3)]
    )
    torch.testing.assert_close(
        model[1].running_mean, outputs.mean((0, 2, 3)), atol=0.02, rtol=0.02
    )
    logits, labels = training.predict(model, data, device="cpu", precision="float32")
    assert history[-1]["validation_accuracy"] == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item()
    )


def test_frozen_batch_norm_keeps_its_statistics(data):
    model = tiny()
    before = model[1].running_mean.clone()
    training.fit(
        model,
        data,
        recipe=replace(RECIPE, frozen_batch_norm=True, average=0.2),
        device="cpu",
    )
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimizer": "sgdd"}, "optimizer must be one of adam, adamw"),
        ({"schedule": "cosine"}, "schedule one of constant, one-cycle"),
        ({"average": 1.5}, "average must be a share of the steps"),
        ({"epochs": 0}, "epochs must be above 0; found 0"),
        ({"batch_size": -1}, "batch_size must be above 0; found -1"),
        ({"crop": -1}, "crop must be 0 or more pixels; found -1"),
        ({"learning_rate": 1e20, "schedule": "constant"}, "the loss is (nan|inf)"),
    ],
)
def test_fit_refuses(data, options, expected):
    with pytest.raises(InputError, match=expected):
        training.fit(tiny(), data, recipe=replace(RECIPE, **options), device="cpu")


def test_what_cannot_end_well_does_not_begin(data):
    empty = data._replace(rows=data.rows[:0], labels=data.labels[:0])
    with pytest.raises(InputError, match="the training part holds no picture"):
        training.fit(tiny(), empty, recipe=RECIPE, device="cpu")
    with pytest.raises(InputError, match="no picture to predict"):
        training.predict(tiny(), empty, device="cpu")
    convolutional = nn.Sequential(
        nn.Conv2d(3, 6, 16), nn.Flatten()
    )  # as SqueezeNet ends
    with pytest.raises(InputError, match="no linear layer at its end"):
        training.fit(convolutional, data, data, recipe=RECIPE, device="cpu")


def test_a_loss_that_is_not_finite_is_not_written(tmp_path, data):
    """The first step's loss is finite, and its update so large that the second step's is not."""
    path = tmp_path / "run.safetensors"
    recipe = replace(RECIPE, learning_rate=1e20, schedule="constant")
    with pytest.raises(InputError, match="the loss is"):
        training.fit(
            tiny(),
            data,
            recipe=recipe,
            device="cpu",
            checkpoint=path,
            checkpoint_steps=1,
        )
    state, _ = artifacts.read_checkpoint(path)
    assert state["step"] == 1
    assert torch.isfinite(state["totals"]).all()


def test_a_batch_that_is_too_large_says_which_fits(data):
    """A stand-in for a GPU's memory: a network that takes at most five pictures."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(768, 6)

        def forward(self, pixels):
            if len(pixels) > 5:
                raise torch.OutOfMemoryError
            return self.head(pixels.flatten(1))

    with pytest.raises(
        InputError,
        match=r"batch_size = 16 does not fit into the memory of cpu; 4 does\.",
    ):
        training.fit(Small(), data, recipe=RECIPE, device="cpu", precision="float32")


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_trains_like_the_cpu(data, monkeypatch, resident):
    if not resident:
        monkeypatch.setattr(runtime, "free_memory", lambda _: 0)
    histories = []
    for device in ("cpu", "cuda"):
        recipe = replace(RECIPE, average=0.2)
        histories.append(
            training.fit(
                tiny(dropout=0),
                data,
                data,
                recipe=recipe,
                device=device,
                precision="float32",
            )
        )
    for on_cpu, on_gpu in zip(*histories, strict=True):
        assert on_gpu["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=1e-3)


@pytest.mark.gpu
def test_a_network_that_was_used_for_prediction_can_be_trained_on_a_gpu(data):
    model = tiny()
    training.predict(model, data, device="cuda")
    training.fit(model, data, recipe=RECIPE, device="cuda")


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_says_which_batch_fits(data):
    large = nn.Sequential(
        nn.Upsample(4096),
        nn.Conv2d(3, 64, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 6),
    )
    with pytest.raises(
        InputError,
        match=r"batch_size = 40 does not fit into the memory of cuda.*; \d+ does\.",
    ):
        training.fit(large, data, recipe=replace(RECIPE, batch_size=40), device="cuda")


# --- resume ---


class Stop(Exception):
    """The reader presses stop."""


@pytest.mark.parametrize(
    "after", [1, 2, 3, 4, 7]
)  # saves: after each step, and after each epoch of three
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    tmp_path, data, monkeypatch, after
):
    recipe = replace(RECIPE, average=0.3)
    whole, saves, save = tiny(), [], artifacts.save_checkpoint
    options = {"recipe": recipe, "device": "cpu", "checkpoint_steps": 1}
    expected = training.fit(
        whole, data, data, checkpoint=tmp_path / "whole.safetensors", **options
    )

    def save_and_stop(*arguments, **settings):
        save(*arguments, **settings)
        saves.append(1)
        if len(saves) == after:
            raise Stop

    monkeypatch.setattr(artifacts, "save_checkpoint", save_and_stop)
    with pytest.raises(Stop):
        training.fit(
            tiny(), data, data, checkpoint=tmp_path / "stopped.safetensors", **options
        )
    monkeypatch.undo()
    resumed = tiny(
        seed=1
    )  # other first weights: without the checkpoint it would end elsewhere
    history = training.fit(
        resumed, data, data, checkpoint=tmp_path / "stopped.safetensors", **options
    )
    for key in ("train_loss", "train_accuracy", "validation_loss", "learning_rate"):
        assert [record[key] for record in history] == [
            record[key] for record in expected
        ]
    assert same(whole, resumed)


def test_a_finished_run_returns_at_once_and_other_settings_start_afresh(
    tmp_path, data, capsys
):
    path = tmp_path / "run.safetensors"
    options = {
        "recipe": replace(RECIPE, average=0.2),
        "device": "cpu",
        "checkpoint": path,
    }
    model, again = tiny(), tiny(seed=1)
    first = training.fit(model, data, settings={"data": "a"}, **options)
    written = path.stat().st_mtime_ns
    assert training.fit(again, data, settings={"data": "a"}, **options) == first
    assert same(model, again)
    assert path.stat().st_mtime_ns == written
    training.fit(tiny(), data, settings={"data": "b"}, **options)
    assert (
        "data changed; starting afresh, the old file is kept as run.previous.safetensors"
        in capsys.readouterr().out
    )
    assert (tmp_path / "run.previous.safetensors").exists()


@pytest.mark.parametrize("content", [b"neither", b""])
def test_a_damaged_checkpoint_is_refused(tmp_path, data, content):
    (tmp_path / "run.safetensors").write_bytes(content)
    with pytest.raises(
        InputError, match="is damaged or not one of this course's files"
    ):
        training.fit(
            tiny(),
            data,
            recipe=RECIPE,
            device="cpu",
            checkpoint=tmp_path / "run.safetensors",
        )


JOB = Path(__file__).parent / "training_job.py"


def job(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(JOB), str(folder), *arguments]


def test_a_run_that_was_killed_ends_like_one_that_was_not(tmp_path):
    """Three real SIGKILLs at random moments; the weights are the same to the last bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(job(whole), check=True)
    wait = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(job(killed))
        seen = (
            (killed / "checkpoint.safetensors").stat().st_mtime_ns
            if (killed / "checkpoint.safetensors").exists()
            else 0
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            path = killed / "checkpoint.safetensors"
            if path.exists() and path.stat().st_mtime_ns != seen:
                break
            time.sleep(0.01)
        time.sleep(wait.random() / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (
        killed / "history.json"
    ).exists()  # it was killed before its end, or the test shows nothing
    subprocess.run(job(killed), check=True)
    first, second = (
        load_file(folder / "weights.safetensors") for folder in (whole, killed)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    histories = [
        json.loads((folder / "history.json").read_text()) for folder in (whole, killed)
    ]
    for record in (record for history in histories for record in history):
        del record["seconds"]
    assert histories[0] == histories[1]


# --- several processes ---


@pytest.mark.parametrize("network", ["plain", "frozen"])
def test_two_processes_train_like_one(tmp_path, network):
    """Gloo on the CPU, launched as a user launches it; the same global batch, of which the last one is odd.

    The pair finds a checkpoint of other settings, which the first process moves away once.
    """
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    pair.mkdir()
    artifacts.save_checkpoint(
        pair / "checkpoint.safetensors", {"step": 1}, settings={"version": 0}
    )
    subprocess.run(job(alone, network), check=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    subprocess.run(
        [*launch, *job(pair, network)[1:]],
        check=True,
        env=environment,
        cwd=runtime.project_root(),
    )
    histories = [
        json.loads((folder / "history.json").read_text()) for folder in (alone, pair)
    ]
    for one, two in zip(*histories, strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["train_accuracy"] == one["train_accuracy"]
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-4)
    first, second = (
        load_file(folder / "weights.safetensors") for folder in (alone, pair)
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)
    assert (pair / "checkpoint.previous.safetensors").exists()
    states = [
        artifacts.read_checkpoint(folder / "checkpoint.safetensors")[0]
        for folder in (alone, pair)
    ]
    for one, two in zip(
        *(state["optimizer"]["state"].values() for state in states), strict=True
    ):
        torch.testing.assert_close(
            two["exp_avg"], one["exp_avg"], rtol=1e-2, atol=1e-5
        )  # Adam hides a wrong scale


# --- predict ---


def test_predict_keeps_order_mode_and_statistics(data):
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, labels = training.predict(
        model, data, batch_size=7, device="cpu", precision="float32"
    )
    assert model.training
    assert all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )
    assert torch.equal(labels, torch.from_numpy(data.labels))
    alone = images.ImageSet(data.images, data.rows[13:14], data.labels[13:14])
    expected, _ = training.predict(model, alone, device="cpu", precision="float32")
    torch.testing.assert_close(logits[13:14], expected)


def test_test_time_flip_is_the_mean_of_both_sides(data):
    model = tiny().eval()
    pixels, _ = next(images.batches(data, batch_size=40))
    with torch.no_grad():
        expected = (model(pixels) + model(pixels.flip(3))) / 2
    logits, _ = training.predict(
        model, data, device="cpu", precision="float32", flip=True
    )
    torch.testing.assert_close(logits, expected)
