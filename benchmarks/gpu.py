"""The course's GPU code at the study's size.

    python benchmarks/gpu.py                        # at most ten minutes on one GPU
    python benchmarks/gpu.py --minutes 4 --out here # keeps here/gpu.json, not results/

The parts come in the order of their worth: training ResNet152 through `fit`, guided
maps of ResNet18 and ResNet152, DCGAN, and the same training compiled. Each figure is
written as soon as it exists; a part that would not end within the minutes is left out
and named. With a real catalogue the study's own recipe is trained and tested, too, if
there is time for it:

    python benchmarks/gpu.py --minutes 60 --source fashion-product-images.zip \\
        --weights resnet152-394f9c45.pth

The project need not be installed. Needs torch, torchvision, numpy, pandas, pyarrow,
pillow, opencv-python-headless, safetensors, filelock, psutil and tqdm; with --source
also what chapters 1 and 2 need. Without a GPU every part runs once at a toy size, but
the compiled training and the study's: no typing mistake waits there. Nothing is kept.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import measuring
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fashionlib import (
    catalogue,
    dcgan,
    evaluation,
    images,
    models,
    runtime,
    saliency,
    training,
)
from fashionlib.data import prepare, sources
from fashionlib.runtime import InputError

ROUNDS = 5
STUDY = training.Recipe(
    epochs=25, batch_size=256, learning_rate=1e-4, schedule="constant"
)


class Sizes(NamedTuple):
    """How large each part is; a dry run's where nothing else is said."""

    trained: str = "resnet10"
    explained: tuple[str, ...] = ("resnet10",)  # the networks of the guided maps
    side: int = 32
    batch: int = 4
    images: int = 8  # of an epoch: whole batches, so that the compiler sees one shape
    matrix: int = 128  # side of the product that is the limit
    maps: int = 2  # in a batch
    gan_batch: int = 4
    gan_images: int = 8


REAL = Sizes(
    trained="resnet152",
    explained=("resnet18", "resnet152"),
    side=224,
    batch=256,
    images=20 * 256,
    matrix=8192,
    maps=64,
    gan_batch=128,
    gan_images=40 * 128,
)


class Part(NamedTuple):
    """rows: yields the rows of its figures. seconds: that it takes on an H200."""

    name: str
    seconds: float
    rows: Callable[[], Iterator[dict]]


# --- figures --------------------------------------------------------------------------


def random_set(count: int, side: int) -> images.ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return images.from_array(pixels, np.arange(count) % 6)


def rates(run: Callable[[], int], device: torch.device) -> list[float]:
    """Things a second over the rounds; the first call, which warms up, is left out."""
    found = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        count = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(count / (time.perf_counter() - started))
    return found[1:]


def matrix_rate(device: torch.device, side: int) -> float:
    """TFLOP/s of a plain bfloat16 product: no network can be faster."""
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=device)

    def product() -> int:
        matrix @ matrix
        return 2 * side**3

    return statistics.median(rates(product, device)) / 1e12


def work_of(model: nn.Module, side: int) -> float:
    """TFLOP of one image's forward and backward pass."""
    device = next(model.parameters()).device
    pixels, _ = next(images.batches(random_set(2, side), batch_size=2, device=device))
    with FlopCounterMode(display=False) as counter:
        model(pixels).sum().backward()
    return counter.get_total_flops() / 2 / 1e12


def train(device: torch.device, sizes: Sizes, compiled: bool) -> Iterator[dict]:
    """Training through `fit`: images/s, fraction of the matrix rate, memory."""
    peak = matrix_rate(device, sizes.matrix)
    model = models.build(sizes.trained).to(device)
    work, data = work_of(model, sizes.side), random_set(sizes.images, sizes.side)
    recipe = replace(STUDY, epochs=1 + ROUNDS, batch_size=sizes.batch)
    options = {"recipe": recipe, "device": device, "compiled": compiled}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    history = training.fit(model, data, **options)
    precision = runtime.resolve_precision(device)
    name = f"{sizes.trained} at {sizes.side}, batch {sizes.batch}, {precision}"
    name += ", compiled" * compiled
    # the first epoch chooses kernels, or compiles
    measured = [sizes.images / record["seconds"] for record in history[1:]]
    yield measuring.row(f"{name}: training", measured)
    if not compiled:
        yield measuring.row("plain bfloat16 matrix product", [peak], "TFLOP/s")
    reached = [100 * work * rate / peak for rate in measured]
    label = f"{name}: fraction of the matrix product's rate"
    yield measuring.row(label, reached, "%")
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
        yield measuring.row(f"{name}: memory", [memory], "GiB")


def explain(device: torch.device, sizes: Sizes) -> Iterator[dict]:
    """Guided backpropagation in float32: maps/s of each network."""
    data = random_set(sizes.maps, sizes.side)
    pixels, targets = next(images.batches(data, batch_size=sizes.maps, device=device))
    for name in sizes.explained:
        model = models.build(name).to(device).eval().requires_grad_(False)
        guided = partial(saliency.guided_backprop, model, pixels, targets)
        measured = rates(lambda guided=guided: len(guided()), device)
        label = f"guided backpropagation, {name} at {sizes.side}, batch {sizes.maps}"
        yield measuring.row(label, measured, "maps/s")


def generate(device: torch.device, sizes: Sizes) -> Iterator[dict]:
    """DCGAN's training: images/s of the second of two, as the first one warms up."""
    data = random_set(sizes.gan_images, dcgan.SIZE)
    recipe = dcgan.Recipe(epochs=2, batch_size=sizes.gan_batch)
    dcgan.fit(data, recipe=recipe, device=device)
    result = dcgan.fit(data, recipe=recipe, device=device)
    name = f"DCGAN at {dcgan.SIZE}, batch {sizes.gan_batch}: training"
    yield measuring.row(name, [result.images_per_second])


def study(
    device: torch.device, source: str, weights: str, epochs: int
) -> Iterator[dict]:
    """Chapter 2 with the study's recipe on real images; the test set is used once."""
    folder = runtime.build_root() / "benchmarks" / "gpu"
    prepared = images.load(prepare.prepare(source, folder / "prepared", sizes=[224]))
    network = {"architecture": "resnet152", "weights": weights, "size": 224}
    recipe = replace(STUDY, epochs=epochs)
    model, history = training.train_classifier(
        prepared, folder, recipe, network=network, device=device
    )
    name = f"the study's recipe, {epochs} epochs, weights {Path(weights).name}"
    seconds = [record["seconds"] for record in history]
    yield measuring.row(f"{name}: an epoch", seconds, "s")
    test = prepared.subset("test", 224)
    result = evaluation.evaluate(*training.predict(model, test, device=device))
    correct = evaluation.accuracy_row(result)["accuracy %"]
    row = {"what": f"{name}: test accuracy", "value": correct.value, "unit": "%"}
    yield row | {"spread": correct.ci95}


# --- in the time that there is --------------------------------------------------------


def measure(
    parts: list[Part], minutes: float, keep: Callable[[list[dict], list[str]], None]
) -> tuple[list[dict], list[str]]:
    """Rows of the parts that fit into the time, and what is left out, with the reason.

    keep(rows, left_out) is called after each figure. The slowest part so far tells how
    much longer than on an H200 the others take here.
    """
    end, pace = time.monotonic() + 60 * minutes, 1.0
    rows, left_out = [], []
    for part in parts:
        started, expected = time.monotonic(), pace * part.seconds
        if started + expected > end:
            left_out.append(f"{part.name}: takes about {expected:.0f} s")
            continue
        try:
            for row in part.rows():
                rows.append(row)
                print(f"{row['what']}: {row['value']:,} {row['unit']}", flush=True)
                keep(rows, left_out)
        except (InputError, torch.OutOfMemoryError) as error:
            left_out.append(f"{part.name}: {str(error).splitlines()[0]}")
        pace = max(pace, (time.monotonic() - started) / part.seconds)
    for reason in left_out:
        print(f"left out: {reason}")
    keep(rows, left_out)
    return rows, left_out


def all_parts(device: torch.device, options: argparse.Namespace) -> list[Part]:
    """What there is to measure on this device, in the order of its worth."""
    gpu = device.type == "cuda"
    sizes = REAL if gpu else Sizes()
    parts = [
        Part("training", 60, partial(train, device, sizes, compiled=False)),
        Part("guided maps", 20, partial(explain, device, sizes)),
        Part("DCGAN", 20, partial(generate, device, sizes)),
    ]
    if gpu and options.source:
        own = partial(study, device, options.source, options.weights, options.epochs)
        parts.append(Part("the study's recipe", 120 + 18 * options.epochs, own))
    if gpu:
        compiled = partial(train, device, sizes, compiled=True)
        parts.append(Part("compiled training", 180, compiled))
    return parts


def check(options: argparse.Namespace) -> None:
    """Raise InputError for options that cannot be used, before anything is measured."""
    if not (options.minutes > 0 and options.epochs > 0):
        found = f"{options.minutes} and {options.epochs}"
        raise InputError(f"minutes and epochs must be above 0; found {found}.")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out must name a folder; {options.out} is a file.")
    if options.source:
        catalogue.read_styles(sources.open_source(options.source))
        models.build("resnet152", weights=options.weights)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="GPU code at the study's size.")
    parser.add_argument("--minutes", type=float, default=10, help="at most; 10")
    out = {"type": Path, "default": measuring.RESULTS}
    parser.add_argument("--out", help="folder of gpu.json; benchmarks/results", **out)
    parser.add_argument("--source", help="a real catalogue: folder or zip")
    weights = "imagenet, none, or the path of a file"
    parser.add_argument("--weights", default="imagenet", help=weights)
    parser.add_argument("--epochs", type=int, default=25, help="of the study's recipe")
    options = parser.parse_args(arguments)
    try:
        check(options)
    except InputError as error:
        sys.exit(f"error: {error}")
    device = runtime.device()

    def keep(rows: list[dict], left_out: list[str]) -> None:
        if rows and device.type == "cuda":
            more = {"folder": options.out, "left_out": left_out}
            measuring.write("gpu", rows, {}, **more)

    rows, _ = measure(all_parts(device, options), options.minutes, keep)
    if device.type != "cuda":
        print(f"no GPU here: a dry run, {len(rows)} figures at toy sizes, none kept")


if __name__ == "__main__":
    main()
