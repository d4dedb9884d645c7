"""Training: its parts by hand, resume after a real SIGKILL, two real processes."""

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import from_chapter
from torch import nn
from torch.nn import functional as F

from fashionlib import artifacts, images, models, runtime, training
from fashionlib.data import prepare
from fashionlib.runtime import InputError


def brightness(count: int = 40) -> images.ImageSet:
    """16x16 images whose class is their brightness: six levels, with a little noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, count)
    pixels = labels[:, None, None, None] * 45 + rng.integers(0, 10, (count, 16, 16, 3))
    return images.ImageSet(pixels.astype(np.uint8), np.arange(count), labels)


@pytest.fixture
def data() -> images.ImageSet:
    return brightness()


def tiny(dropout: float = 0.1, seed: int = 0) -> nn.Module:
    """A network with BatchNorm, in channels_last, small enough for a test."""
    torch.manual_seed(seed)
    first, norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
    rest = [nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(392, 6)]
    model = nn.Sequential(first, norm, *rest)
    return model.to(memory_format=torch.channels_last)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 6))


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(v, other[name]) for name, v in first.state_dict().items())


def numbers(history: list[dict]) -> list[dict]:
    """The records without the seconds that they took."""
    return [{k: v for k, v in each.items() if k != "seconds"} for each in history]


RECIPE = training.Recipe(epochs=3, batch_size=16, learning_rate=1e-2, flip=True, crop=1)
STILL = training.Recipe(
    epochs=1, batch_size=16, learning_rate=1e-30, schedule="constant"
)
CPU = {"device": "cpu", "precision": "float32"}


def trainer(model: nn.Module, data: images.ImageSet, recipe, **options):
    options |= {"recipe": recipe, "precision": "float32"}
    return training.Trainer(model, data, device=torch.device("cpu"), **options)


# --- the loop ---


def test_fit_learns_an_easy_task_and_records_every_epoch(data):
    model = tiny()
    recipe = replace(RECIPE, epochs=30, learning_rate=3e-2)
    history = training.fit(model, data, data, recipe=recipe, device="cpu")
    assert [record["epoch"] for record in history] == list(range(1, 31))
    logits, labels = training.predict(model, data, device="cpu")
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert accuracy > 0.8
    assert history[-1]["validation_accuracy"] == pytest.approx(accuracy)
    assert history[-1]["validation_loss"] == pytest.approx(
        F.cross_entropy(logits, labels).item()
    )


def test_the_loop_by_hand_takes_the_steps_of_the_library(data):
    """Chapter 2's: AdamW's own decay, a constant rate, smoothing and flips."""
    model, other = tiny(dropout=0.0), tiny(dropout=0.0)
    for each in (model, other):  # BatchNorm takes it away: its gradient is rounding
        each[0].register_parameter("bias", None)
    recipe = training.Recipe(
        epochs=2, batch_size=16, learning_rate=1e-2, weight_decay=0.01, seed=3,
        schedule="constant", label_smoothing=0.1, flip=True,
    )  # fmt: skip
    history = training.fit(other, data, recipe=recipe, **CPU)
    options = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "seed": 3}
    losses = from_chapter("02_resnet152").train_by_hand(model, data, **options)
    assert len(losses) == 6  # of 16, 16 and 8 images
    mean = np.average(losses[3:], weights=[16, 16, 8])
    assert history[-1]["train_loss"] == pytest.approx(mean, rel=1e-4)
    for name, value in other.state_dict().items():
        found = model.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("epochs", range(1, 7))
def test_one_cycle_is_as_short_as_one_step(data, epochs):
    """PyTorch's own schedule divides by zero where four steps are asked for."""
    recipe = replace(RECIPE, epochs=epochs, batch_size=64)
    assert len(training.fit(linear(), data, recipe=recipe, device="cpu")) == epochs


def test_one_step_of_the_studys_recipe_is_adams(tmp_path, data):
    """Adam moves every weight by the rate, and keeps a tenth of its gradient."""
    model = linear()
    start = model[1].weight.detach().clone()
    pixels, labels = next(images.batches(data, batch_size=40, epoch=0))
    F.cross_entropy(model(pixels), labels, label_smoothing=0.1).backward()
    gradient = model[1].weight.grad.clone()
    recipe = replace(STILL, batch_size=40, label_smoothing=0.1)
    recipe = replace(recipe, learning_rate=0.01)
    training.fit(model, data, recipe=recipe, checkpoint=tmp_path / "run", **CPU)
    expected = start - 0.01 * gradient.sign()
    torch.testing.assert_close(model[1].weight.detach(), expected, atol=1e-5, rtol=0)
    (path,) = tmp_path.glob("run-*.pt")
    moments = artifacts.load_checkpoint(path)["optimizer"]["state"][0]
    torch.testing.assert_close(moments["exp_avg"], gradient / 10)


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("steps", [[16, 16, 8], [16, 17], [16, 5], [16, 2], [1]])
def test_a_gradient_is_the_mean_over_the_images_of_its_step(steps, micro_batch):
    """The weights stay, Adam remembers the gradients. An image left over is no step."""
    data, model, expected = brightness(sum(steps)), linear(), 0
    recipe = replace(STILL, micro_batch=micro_batch)
    whole = next(images.batches(data, batch_size=64, epoch=0))
    for pixels, labels in zip(*(part.split(steps) for part in whole), strict=True):
        loss = F.cross_entropy(model(pixels), labels)
        (gradient,) = torch.autograd.grad(loss, model[1].weight)
        expected = 0.9 * expected + 0.1 * gradient
    made = trainer(model, data, recipe)
    assert made.steps == len(steps)
    batches = made.batches()
    for _ in steps:
        made.train_step(batches)
    assert next(batches, None) is None
    moment = made.optimizer.state[model[1].weight]["exp_avg"]
    torch.testing.assert_close(moment, expected)


def test_what_dropout_draws_depends_on_the_step(data):
    model, seeds = tiny(), []
    model[3].register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    training.fit(model, data, recipe=RECIPE, **CPU)
    training.fit(model, data, recipe=RECIPE, **CPU)
    assert len(set(seeds[1:10])) == 9  # the first pass only looks at the size
    assert seeds[1:10] == seeds[11:]


def test_training_accuracy_is_over_images_not_over_batches(data):
    """The weights stay, so that the epoch has one accuracy; 40 is no multiple of 16."""
    model, correct, loss = tiny(dropout=0), 0, 0.0
    for pixels, labels in images.batches(data, batch_size=16, epoch=0):
        logits = model(pixels)
        correct += (logits.argmax(1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    (record,) = training.fit(model, data, recipe=STILL, **CPU)
    assert record["train_accuracy"] == pytest.approx(correct / 40)
    assert record["train_loss"] == pytest.approx(loss / 40, rel=1e-5)


def test_the_recorded_rate_is_the_last_one_used(data):
    """Three steps of one cycle: the rate rises from 1/25 at step 0 of 4."""
    model = linear()
    recipe = replace(RECIPE, epochs=1)
    (record,) = training.fit(model, data, recipe=recipe, **CPU)
    # two steps (of 0 to 3) go up, to 1e-2; the third is the last: a cosine to zero
    assert record["learning_rate"] == pytest.approx(schedule(recipe, 3)[-1])
    assert record["learning_rate"] > 1e-4
    (record,) = training.fit(model, data, recipe=STILL, **CPU)
    assert record["learning_rate"] == STILL.learning_rate


def schedule(recipe: training.Recipe, steps: int) -> list[float]:
    """Rates of one cycle by the formula: a cosine up, a cosine down."""
    top, rates = max(0.2 * (steps + 1), 2) - 1, []
    for step in range(steps):
        part = step / top if step <= top else (step - top) / (steps - top)
        low = 1 / 25 if step <= top else 1 / 25 / 1e4
        weight = (1 + math.cos(math.pi * part)) / 2
        begin, end = (low, 1) if step <= top else (1, low)
        rates.append(recipe.learning_rate * (end + (begin - end) * weight))
    return rates


def test_one_cycle_moves_adams_beta1_against_the_rate(data):
    made = trainer(linear(), data, RECIPE)
    seen = []
    for _ in range(3):
        batches = made.batches()
        for _ in range(made.steps):
            made.train_step(batches)
            group = made.optimizer.param_groups[0]
            seen.append((group["lr"], group["betas"][0]))
        made.end_epoch(None)
    highest = max(seen)
    assert highest[1] == pytest.approx(0.85, abs=0.01)
    assert seen[-1][1] == pytest.approx(0.95, abs=0.01)


def test_frozen_stages_keep_weights_and_statistics(data):
    """Of the network 0 (convolution), 1 (BatchNorm), 5 (linear) the first two."""
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    model[0].register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    recipe = replace(RECIPE, frozen_until="1", epochs=1)
    training.fit(model, data, recipe=recipe, **CPU)
    assert seen == [False] * 4  # no gradient is computed for what does not move
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["5.weight", "5.bias"]
    training.fit(model, data, recipe=replace(recipe, frozen_until="none"), **CPU)
    assert all(each.requires_grad for each in model.parameters())
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_the_rate_of_a_stage_is_a_part_of_the_next_one_s(data):
    """Adam's first step moves every weight by its rate; BatchNorm's are the layer's."""
    model = tiny(dropout=0)
    model[0].bias = None  # BatchNorm takes it away again: its gradient is rounding
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    recipe = replace(STILL, learning_rate=0.01, layer_decay=0.25, batch_size=40)
    training.fit(model, data, recipe=recipe, **CPU)
    for name, value in model.named_parameters():
        rate = 0.01 if name.startswith("5") else 0.0025
        moved = (value - before[name]).abs().max().item()
        assert moved == pytest.approx(rate, rel=1e-3), name
    assert training.stage_rates(model, recipe) == {"0": 0.0025, "1": 0.0025, "5": 0.01}


def test_frozen_batch_norm_keeps_its_statistics(data):
    model = tiny()
    before = model[1].running_mean.clone()
    recipe = replace(RECIPE, frozen_batch_norm=True)
    training.fit(model, data, recipe=recipe, device="cpu")
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize(("count", "micro_batch"), [(40, 4), (40, 1), (33, 1)])
def test_micro_batches_take_the_steps_of_whole_ones(count, micro_batch):
    """40 images in steps of 16, 16 and 8, or 33 in steps of 16 and 17: same weights."""
    data, whole, parts = brightness(count), linear(), linear()
    history = training.fit(whole, data, recipe=RECIPE, **CPU)
    recipe = replace(RECIPE, micro_batch=micro_batch)
    for one, other in zip(
        history, training.fit(parts, data, recipe=recipe, **CPU), strict=True
    ):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert other["train_accuracy"] == one["train_accuracy"]
        assert other["learning_rate"] == one["learning_rate"]
    torch.testing.assert_close(parts[1].weight, whole[1].weight, rtol=1e-3, atol=1e-4)


def on_one_pixel() -> nn.Module:
    """A network whose BatchNorm sees one value for each image and channel."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())
    return nn.Sequential(pool, nn.Linear(3, 6))


@pytest.mark.parametrize(
    ("count", "micro_batch", "expected"),
    [(33, 0, [16, 17]), (33, 4, [4] * 7 + [5]), (37, 4, [4] * 8 + [5])],
)
def test_a_last_batch_of_one_image_belongs_to_the_one_before(
    count, micro_batch, expected
):
    """BatchNorm on a map of one pixel would refuse it, at the end of the epoch."""
    model, sizes = on_one_pixel(), []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    recipe = replace(RECIPE, learning_rate=1e-3, micro_batch=micro_batch)
    history = training.fit(model, brightness(count), recipe=recipe, **CPU)
    assert len(history) == 3
    assert sizes == [2] + 3 * expected  # a look at the size, three epochs
    assert all(0 <= record["train_accuracy"] <= 1 for record in history)
    seen = round(history[0]["train_accuracy"] * count, 6)
    assert seen == int(seen)  # of all images


def test_a_batch_of_one_image_is_for_networks_that_take_it(tmp_path):
    """One line before anything runs, or a training like any other."""
    one, options = brightness(1), {"checkpoint": tmp_path / "run", **CPU}
    with pytest.raises(InputError, match="16x16, 1 at a time") as caught:
        training.fit(on_one_pixel(), one, recipe=RECIPE, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert len(training.fit(linear(), one, recipe=RECIPE, **CPU)) == 3
    frozen = replace(RECIPE, frozen_until="0")
    assert len(training.fit(on_one_pixel(), one, recipe=frozen, **CPU)) == 3
    two = replace(RECIPE, micro_batch=1)
    with pytest.raises(InputError, match="1 at a time"):
        training.fit(on_one_pixel(), brightness(32), recipe=two, **CPU)


def test_only_whole_batches_are_compiled(data, monkeypatch):
    """Steps of 16, 16 and 8 images: the compiled network sees one shape."""
    shapes = []

    def compiling(model, **_):
        def run(pixels):
            shapes.append(len(pixels))
            return model(pixels)

        return run

    plain, compiled = tiny(), tiny()
    expected = training.fit(plain, data, recipe=RECIPE, **CPU)
    monkeypatch.setattr(torch, "compile", compiling)
    history = training.fit(compiled, data, recipe=RECIPE, compiled=True, **CPU)
    assert shapes == [16] * 6
    assert numbers(history) == numbers(expected)
    assert same(plain, compiled)


@pytest.mark.slow
def test_a_compiled_network_trains_like_the_plain_one(data, monkeypatch):
    """Traced by torch.compile, though not translated: no compiler is needed."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compiler(model, backend="eager")
    )
    plain, compiled = tiny(dropout=0), tiny(dropout=0)
    expected = training.fit(plain, data, recipe=RECIPE, **CPU)
    history = training.fit(compiled, data, recipe=RECIPE, compiled=True, **CPU)
    for one, other in zip(expected, history, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)


def test_float16_scales_the_loss(tmp_path, data):
    """The scaler's factor is part of the checkpoint; without float16 there is none."""
    for precision in ("float16", "float32"):
        path = tmp_path / precision
        options = {"recipe": RECIPE, "device": "cpu", "precision": precision}
        history = training.fit(tiny(), data, checkpoint=path, **options)
        assert history[-1]["train_loss"] < history[0]["train_loss"]
        (found,) = tmp_path.glob(f"{precision}-*.pt")
        scaler = artifacts.load_checkpoint(found)["scaler"]
        assert scaler.get("scale", 1) > 1 if precision == "float16" else scaler == {}


# --- what is refused ---


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine"},
        {"epochs": -1},
        {"epochs": 1.5},
        {"batch_size": -1},
        {"batch_size": "64"},
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"learning_rate": "5e-05"},
        {"weight_decay": -1},
        {"weight_decay": math.nan},
        {"label_smoothing": 1},
        {"label_smoothing": 2},
        {"label_smoothing": -0.1},
        {"layer_decay": 1.5},
        {"layer_decay": math.nan},
        {"crop": -1},
        {"crop": 1.5},
        {"epochs": True},
        {"epochs": [3]},
        {"epochs": "three"},
        {"batch_size": 1},
        {"flip": 1},
        {"flip": "false"},
        {"frozen_until": 4},
        {"micro_batch": 5},
        {"micro_batch": 32},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 1.5},
        {"seed": None},
    ],
)
def test_a_recipe_refuses_nonsense_in_one_line(options):
    (name,) = options
    with pytest.raises(InputError, match=name) as error:
        replace(RECIPE, **options)
    assert "\n" not in str(error.value)


def test_a_recipe_is_taken_from_a_chapters_parameters():
    values = {field: getattr(RECIPE, field) for field in vars(RECIPE)}
    assert training.Recipe.from_parameters(values | {"run": "sample"}) == RECIPE


def test_a_crop_moves_no_image_out_of_its_window(data):
    side = min(data.images.shape[1:3])
    with pytest.raises(InputError, match="crop"):
        training.fit(tiny(), data, recipe=replace(RECIPE, crop=side), device="cpu")


def test_what_cannot_end_well_does_not_begin(data):
    empty = data._replace(rows=data.rows[:0], labels=data.labels[:0])
    with pytest.raises(InputError, match="train"):
        training.fit(tiny(), empty, recipe=RECIPE, device="cpu")
    with pytest.raises(InputError):
        training.predict(tiny(), empty, device="cpu")


def test_a_loss_that_is_not_finite_is_not_written(tmp_path, data, monkeypatch):
    """The first update is so large that the second step's loss is not finite."""
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 1)
    recipe = replace(RECIPE, learning_rate=1e20, schedule="constant")
    path = tmp_path / "run"
    with pytest.raises(InputError, match="learning_rate"):
        training.fit(tiny(), data, recipe=recipe, checkpoint=path, **CPU)
    (path,) = tmp_path.glob("run-*.pt")
    state = artifacts.load_checkpoint(path)
    assert state["step"] == 1
    assert torch.isfinite(state["totals"]).all()


def test_first_weights_that_are_not_finite_are_not_said_to_be_a_learning_rate(data):
    model = tiny()
    nn.init.constant_(model[0].weight, math.nan)
    with pytest.raises(InputError, match="after 0 steps") as caught:
        training.fit(model, data, recipe=RECIPE, **CPU)
    assert "learning_rate" not in str(caught.value)


class Shallow(nn.Module):
    """Two halvings and a layer for maps of 4x4: images of 16x16 and no others."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(4), nn.Dropout())
        self.head = nn.Linear(48, 6)

    def forward(self, pixels):
        return self.head(self.body(pixels).flatten(1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"crop": 16}, "16x16"),
        ({"crop": 40}, "crop"),
        ({"frozen_until": "a"}, "none, body;"),
    ],
)
def test_a_size_that_cannot_be_trained_on_is_refused_before_anything_runs(
    tmp_path, data, monkeypatch, options, expected
):
    """Nothing is written, drawn or changed: not even BatchNorm's statistics."""
    model, started = Shallow(), []
    monkeypatch.setattr(models, "set_head_to_probe", lambda *_, **__: started.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    where = {"checkpoint": tmp_path / "run", "probe_first": True}
    with pytest.raises(InputError, match=expected) as caught:
        training.fit(model, data, recipe=replace(RECIPE, **options), **where, **CPU)
    assert "\n" not in str(caught.value)
    assert (started, list(tmp_path.iterdir())) == ([], [])
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert len(training.fit(model, data, recipe=RECIPE, **where, **CPU)) == 3
    assert started == [1]


def test_predict_says_which_size_a_network_cannot_take(data):
    with pytest.raises(InputError, match="8x8") as caught:
        training.predict(Shallow(), data._replace(images=data.images[:, ::2, ::2]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stopped", [False, True])
def test_fit_leaves_the_callers_numbers_and_settings_as_they_were(
    tmp_path, data, monkeypatch, stopped
):
    """Whether it trains, fails, or finds a finished checkpoint."""
    for benchmark in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
        rate = 1e20 if stopped else 1e-2
        recipe = replace(RECIPE, learning_rate=rate, schedule="constant")
        options = {"recipe": recipe, "checkpoint": tmp_path / "run", **CPU}
        torch.manual_seed(3)
        expected = torch.rand(2)
        for _ in range(2):
            model = tiny()
            torch.manual_seed(3)
            with pytest.raises(InputError) if stopped else contextlib.nullcontext():
                training.fit(model, data, **options)
            assert torch.equal(torch.rand(2), expected)
            assert torch.backends.cudnn.benchmark == benchmark


class Memory(nn.Module):
    """A stand-in for a GPU: a network that takes at most five images."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(768, 6)

    def forward(self, pixels):
        if len(pixels) > 5:
            raise torch.OutOfMemoryError
        return self.head(pixels.flatten(1))


def test_a_batch_that_is_too_large_names_micro_batch(data):
    with pytest.raises(InputError, match="micro_batch"):
        training.fit(Memory(), data, recipe=RECIPE, **CPU)
    training.fit(Memory(), data, recipe=replace(RECIPE, micro_batch=4), **CPU)


# --- resume ---


class Stop(Exception):
    """The reader presses stop."""


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("saves", [1, 2, 4, 5, 9])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    tmp_path, data, monkeypatch, saves, precision
):
    """Stopped after a save; they come before each step and after each epoch."""
    recipe = replace(RECIPE, layer_decay=0.7, micro_batch=8)
    recipe = replace(recipe, label_smoothing=0.1, weight_decay=0.05)
    options = {"recipe": recipe, "device": "cpu", "precision": precision}
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 1)
    whole, resumed, save = Pooled(), Pooled(), artifacts.save_checkpoint
    expected = training.fit(whole, data, data, **options)
    left = [None] * saves

    def save_and_stop(*arguments):
        save(*arguments)
        left.pop()
        if not left:
            raise Stop

    path = tmp_path / "run"
    monkeypatch.setattr(artifacts, "save_checkpoint", save_and_stop)
    with pytest.raises(Stop):
        training.fit(Pooled(), data, data, checkpoint=path, **options)
    monkeypatch.setattr(artifacts, "save_checkpoint", save)
    for parameter in resumed.parameters():  # without the file it would end elsewhere
        nn.init.zeros_(parameter)
    history = training.fit(resumed, data, data, checkpoint=path, **options)
    assert numbers(history) == numbers(expected)
    assert same(whole, resumed)


class Pooled(nn.Module):
    """BatchNorm, dropout and channels_last, for images of any size."""

    def __init__(self):
        super().__init__()
        self.body = tiny()[:4]
        self.head = nn.Linear(8, 6)

    def forward(self, pixels):
        return self.head(self.body(pixels).mean((2, 3)))


def test_moments_keep_their_memory_format(tmp_path, data):
    """In another layout the optimizer would be slower."""
    made = trainer(tiny(), data, RECIPE)
    made.train_step(made.batches())
    artifacts.save_checkpoint(tmp_path / "run.pt", made.state_dict())
    loaded = trainer(tiny(), data, RECIPE)
    loaded.load_state_dict(artifacts.load_checkpoint(tmp_path / "run.pt"))
    weight = loaded.model[0].weight
    moments = loaded.optimizer.state[weight]
    for tensor in (weight, moments["exp_avg"], moments["exp_avg_sq"]):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_a_finished_run_returns_at_once_and_other_settings_have_another_file(
    tmp_path, data, monkeypatch
):
    recipe = RECIPE
    options = {"recipe": recipe, "device": "cpu", "checkpoint": tmp_path / "run"}
    model, again, starts = tiny(), tiny(seed=1), []
    monkeypatch.setattr(models, "set_head_to_probe", lambda *_, **__: starts.append(1))
    options["probe_first"] = True
    first = training.fit(model, data, settings={"data": "a"}, **options)
    (path,) = tmp_path.glob("run-*.pt")
    written = path.stat().st_mtime_ns
    assert training.fit(again, data, settings={"data": "a"}, **options) == first
    assert same(model, again)
    assert path.stat().st_mtime_ns == written
    assert starts == [1]
    training.fit(tiny(), data, settings={"data": "b"}, **options)
    options["recipe"] = replace(recipe, micro_batch=8)
    training.fit(tiny(), data, settings={"data": "a"}, **options)
    assert len(list(tmp_path.glob("run-*.pt"))) == 3
    assert starts == [1, 1, 1]
    path.write_bytes(b"neither")
    options["recipe"] = recipe
    with pytest.raises(InputError, match=path.name):
        training.fit(tiny(), data, settings={"data": "a"}, **options)


JOB = Path(__file__).parent / "training_job.py"


def finished(folder: Path) -> tuple[dict, list[dict]]:
    """Weights and records that a job left."""
    history = json.loads((folder / "history.json").read_text())
    return torch.load(folder / "weights-0.pt"), history


@pytest.mark.slow
def test_a_run_that_was_killed_ends_like_one_that_was_not(tmp_path):
    """Three real SIGKILLs at random moments; the weights agree to the last bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, JOB, whole], check=True)
    rng = random.Random(0)
    for _ in range(3):
        before = latest(killed)
        process = subprocess.Popen([sys.executable, JOB, killed])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if latest(killed) != before:
                break
            time.sleep(0.01)
        time.sleep(rng.random() / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # it was killed before its end, or the test shows nothing
    assert not (killed / "history.json").exists()
    subprocess.run([sys.executable, JOB, killed], check=True)
    assert len(latest(killed)) == 1, "the library was edited during this test"
    (weights, history), (expected, records) = finished(killed), finished(whole)
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert numbers(history) == numbers(records)


def latest(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in folder.glob("job-*.pt")]


# --- several processes ---


@pytest.mark.slow
@pytest.mark.parametrize("network", ["plain", "frozen", "batch_norm"])
def test_two_processes_train_like_one(tmp_path, network):
    """On the CPU, launched by torchrun; same global batches, of which the last is odd.

    With BatchNorm each process sees its own images: no equal curve, but one network.
    """
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    subprocess.run([sys.executable, JOB, alone, network], check=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", JOB, pair, network]
    subprocess.run(launch, check=True, env=environment, cwd=runtime.project_root())
    (weights, history), (expected, records) = finished(pair), finished(alone)
    other = torch.load(pair / "weights-1.pt")
    assert all(torch.equal(value, other[name]) for name, value in weights.items())
    if network == "batch_norm":
        return
    for one, two in zip(records, history, strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["train_accuracy"] == one["train_accuracy"]
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-4)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    moments = []
    for folder in (alone, pair):
        (path,) = folder.glob("job-*.pt")
        moments.append(artifacts.load_checkpoint(path)["optimizer"]["state"])
    for key, one in moments[0].items():  # Adam hides a wrong scale of the gradients
        two = moments[1][key]["exp_avg"]
        torch.testing.assert_close(two, one["exp_avg"], rtol=1e-2, atol=1e-5)


# --- predict ---


def test_predict_keeps_order_mode_and_statistics(data):
    model = tiny().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, labels = training.predict(model, data, batch_size=7, **CPU)
    assert (model.training, model[1].training) == (True, False)
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert torch.equal(labels, torch.from_numpy(data.labels))
    alone = images.ImageSet(data.images, data.rows[13:14], data.labels[13:14])
    expected, _ = training.predict(model, alone, **CPU)
    torch.testing.assert_close(logits[13:14], expected)


def test_test_time_flip_is_the_mean_of_both_sides(data):
    model = tiny().eval()
    noise = np.random.default_rng(0).integers(0, 256, data.images.shape, np.uint8)
    data = data._replace(images=noise)
    pixels, _ = next(images.batches(data, batch_size=40))
    with torch.no_grad():
        expected = (model(pixels) + model(pixels.flip(3))) / 2
    logits, _ = training.predict(model, data, flip=True, **CPU)
    torch.testing.assert_close(logits, expected)


# --- the classifier of a run ---


@pytest.fixture
def prepared(tmp_path) -> images.Prepared:
    """36 images of 32x32 noise, six a class, of which four train and one validates."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images_32x32.npy", rng.integers(0, 256, (36, 32, 32, 3), "u1"))
    split = np.array(["train"] * 4 + ["validation", "test"])
    index = {
        "id": np.arange(36),
        "label": np.arange(36) // 6,
        "split": np.tile(split, 6),
    }
    settings = {"resize_mode": "pad", "sizes": ["32x32"], "version": prepare.VERSION}
    name = "images_32x32.npy"
    checksums = {name: artifacts.checksum(tmp_path / name)}
    manifest = {"settings": settings, "checksums": checksums}
    artifacts.write_json(tmp_path / "manifest.json", prepare.sealed(manifest))
    return images.Prepared(tmp_path, pd.DataFrame(index), manifest)


NETWORK = {"architecture": "resnet10", "size": 32, "stem": "small", "weights": "none"}
NETWORK = {"network": NETWORK, **CPU}
SHORT = training.Recipe(epochs=1, batch_size=24, learning_rate=1e-3)


def test_a_trained_classifier_leaves_weights_that_load(tmp_path, prepared):
    model, history = training.train_classifier(prepared, tmp_path, SHORT, **NETWORK)
    loaded, settings = models.load(tmp_path, "cpu")
    assert same(model, loaded)
    assert (settings["size"], settings["resize_mode"]) == ([32, 32], "pad")
    assert training.train_classifier(prepared, tmp_path, SHORT, **NETWORK)[1] == history
    assert len(list(tmp_path.glob("classifier-*.pt"))) == 1


def test_a_training_may_begin_with_a_probe(tmp_path, prepared):
    """It is epoch 0. The weights hardly move, so that the head stays the probe's."""
    options = {**NETWORK, "probe_first": True}
    still = replace(SHORT, learning_rate=1e-30, label_smoothing=0.1)
    model, history = training.train_classifier(prepared, tmp_path, still, **options)
    train, validation = (prepared.subset(s, 32) for s in ("train", "validation"))
    runtime.seed_everything(still.seed)
    expected = models.build("resnet10", stem="small")
    answers = models.set_head_to_probe(expected, train, **CPU)
    torch.testing.assert_close(model.fc.weight, expected.fc.weight)
    logits, labels = training.predict(expected, train, **CPU)
    torch.testing.assert_close(answers, logits, atol=1e-4, rtol=1e-4)
    loss = F.cross_entropy(answers, labels, label_smoothing=0.1).item()
    logits, labels = training.predict(expected, validation, **CPU)
    correct = (logits.argmax(1) == labels).float().mean().item()
    assert [record["epoch"] for record in history] == [0, 1]
    assert history[0]["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert history[0]["validation_accuracy"] == pytest.approx(correct)
    assert history[0]["seconds"] > 0


def test_no_epochs_leave_the_probe_alone(tmp_path, prepared):
    options = {**NETWORK, "probe_first": True}
    none = replace(SHORT, epochs=0)
    model, history = training.train_classifier(prepared, tmp_path, none, **options)
    assert [record["epoch"] for record in history] == [0]
    runtime.seed_everything(none.seed)
    expected = models.build("resnet10", stem="small")
    models.set_head_to_probe(expected, prepared.subset("train", 32), **CPU)
    assert same(model, expected)
    again = training.train_classifier(prepared, tmp_path, none, **options)
    assert again[1] == history  # from its checkpoint, seconds and all
    with pytest.raises(InputError, match="probe_first"):
        training.train_classifier(prepared, tmp_path, none, **NETWORK)


# --- GPUs ---


@pytest.mark.gpu
def test_a_gpu_trains_like_the_cpu(data):
    histories = []
    for device in ("cpu", "cuda"):
        options = {"recipe": RECIPE, "precision": "float32"}
        model = tiny(dropout=0)
        histories.append(training.fit(model, data, data, device=device, **options))
    for on_cpu, on_gpu in zip(*histories, strict=True):
        assert on_gpu["train_loss"] == pytest.approx(on_cpu["train_loss"], rel=1e-3)
    training.predict(model, data, device="cuda")
    training.fit(model, data, recipe=RECIPE, device="cuda")  # predict leaves it able to


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_trains_in_float16_with_a_scaler(tmp_path, data, compiled):
    options = {"device": "cuda", "precision": "float16", "compiled": compiled}
    recipe = replace(RECIPE, epochs=20)
    path = tmp_path / "run"
    history = training.fit(tiny(), data, recipe=recipe, checkpoint=path, **options)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    (path,) = tmp_path.glob("run-*.pt")
    assert artifacts.load_checkpoint(path)["scaler"]["scale"] > 1


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_names_micro_batch(data):
    large = [nn.Upsample(4096), nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*large, nn.Flatten(), nn.Linear(64, 6))
    recipe = replace(RECIPE, batch_size=40)
    with pytest.raises(InputError, match="micro_batch"):
        training.fit(model, data, recipe=recipe, device="cuda")
