"""The course's GPU code at the study's size: python benchmarks/gpu.py (some minutes on one GPU; a dry run without).

Needs torch, torchvision, numpy, pandas, pyarrow, pillow, opencv-python-headless, simplejpeg, xxhash, safetensors,
filelock, pyyaml, tqdm, joblib, scipy, scikit-learn, torchmetrics; no Jupyter, no Captum. With a real catalogue it also
trains chapter 2 with the study's recipe:

    python benchmarks/gpu.py --source fashion-product-images.zip --weights resnet152-394f9c45.pth --epochs 25

Without a GPU every part but that training runs once at a toy size, so that a machine with one meets no typing mistake;
nothing is kept.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fashionlib import artifacts, dcgan, evaluation, images, models, runtime, saliency
from fashionlib.data import prepare
from fashionlib.runtime import InputError

STUDY = models.Recipe(
    epochs=25, batch_size=256, learning_rate=1e-4, optimizer="adam", schedule="constant"
)
ROUNDS = 5


def random_set(count: int, side: int) -> images.ImageSet:
    pixels = np.random.default_rng(0).integers(
        0, 256, (count, side, side, 3), dtype=np.uint8
    )
    return images.ImageSet(pixels, np.arange(count), np.arange(count) % 6)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rates(run: Callable[[], int], device: torch.device) -> list[float]:
    """Things a second over the rounds; the first call, which compiles and chooses kernels, is not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        wait(device)
        started = time.perf_counter()
        count = run()
        wait(device)
        found.append(count / (time.perf_counter() - started))
    return found[1:]


def matrix_rate(device: torch.device, side: int) -> float:
    """TFLOP/s of a plain bfloat16 product: what a network's share of the peak is taken of."""
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=device)

    def product() -> int:
        matrix @ matrix
        return 2 * side**3

    return statistics.median(rates(product, device)) / 1e12


def training(device: torch.device, sizes: dict) -> list[dict]:
    """ResNet152 at the study's size, plain and compiled: images/s, share of the matrix rate, memory."""
    data = random_set(sizes["pictures"], sizes["side"])
    recipe = replace(STUDY, epochs=1 + ROUNDS, batch_size=sizes["batch"])
    peak, rows = matrix_rate(device, sizes["matrix"]), []
    rows.append(measuring.row("plain bfloat16 matrix product", [peak], "TFLOP/s"))
    for compiled in (False, True) if device.type == "cuda" else (False,):
        model = models.build(sizes["network"]).to(device)
        pixels, labels = next(
            images.batches(data, batch_size=sizes["batch"], device=device)
        )
        with FlopCounterMode(display=False) as counter, runtime.autocast(device):
            nn.functional.cross_entropy(model(pixels), labels).backward()
        work = counter.get_total_flops() / sizes["batch"] / 1e12
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        history = models.fit(
            model, data, recipe=recipe, device=device, compiled=compiled
        )
        measured = [
            len(data.rows) / record["seconds"] for record in history[1:]
        ]  # the first one compiles
        name = f"{sizes['network']} at {sizes['side']}, batch {sizes['batch']}{', compiled' if compiled else ''}"
        rows.append(measuring.row(f"{name}: training", measured))
        rows.append(
            measuring.row(
                f"{name}: share of the matrix rate",
                [100 * work * r / peak for r in measured],
                "%",
            )
        )
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**30
            rows.append(measuring.row(f"{name}: memory", [memory], "GiB"))
    return rows


def attribution(device: torch.device, sizes: dict) -> list[dict]:
    rows = []
    for name in sizes["attributed"]:
        model = models.build(name).to(device).eval()
        pixels, _ = next(
            images.batches(
                random_set(sizes["maps"], sizes["side"]),
                batch_size=sizes["maps"],
                device=device,
            )
        )
        measured = rates(
            lambda model=model, pixels=pixels: len(
                saliency.guided_backprop(model, pixels)
            ),
            device,
        )
        rows.append(
            measuring.row(
                f"guided backpropagation, {name} at {sizes['side']}", measured, "maps/s"
            )
        )
    return rows


def generation(device: torch.device, sizes: dict) -> list[dict]:
    data, results = random_set(sizes["gan"], dcgan.SIZE), []
    for _ in range(2 if device.type == "cuda" else 1):  # the first one warms up
        recipe = dcgan.Recipe(epochs=2, batch_size=min(128, sizes["gan"]))
        results.append(dcgan.fit(data, recipe=recipe, device=device))
    return [
        measuring.row(
            "DCGAN at 64, batch 128: training", [results[-1].images_per_second]
        )
    ]


def study(device: torch.device, source: str, weights: str, epochs: int) -> list[dict]:
    """Chapter 2 with the study's recipe on real pictures; the test part is used once."""
    folder = runtime.build_root() / "benchmarks" / "gpu"
    prepared = images.load(prepare.prepare(source, folder / "prepared", sizes=[224]))
    network = {"architecture": "resnet152", "size": [224, 224], "weights": weights}
    model, history = models.train(
        prepared, folder, replace(STUDY, epochs=epochs), **network, device=device
    )
    found = evaluation.evaluate(
        *models.predict(model, prepared.subset("test", 224), device=device)
    )
    low, high = found["accuracy_ci95"]
    name = f"the study's recipe, {epochs} epochs, weights {Path(weights).name}"
    return [
        {
            "what": f"{name}: test accuracy",
            "value": 100 * found["accuracy"],
            "unit": "%",
            "spread": [100 * low, 100 * high],
        },
        measuring.row(
            f"{name}: an epoch", [record["seconds"] for record in history], "s"
        ),
    ]


REAL = {
    "network": "resnet152",
    "side": 224,
    "batch": 256,
    "pictures": 5000,
    "matrix": 8192,
}
REAL |= {"attributed": ("resnet18", "resnet152"), "maps": 64, "gan": 5120}
TOY = {"network": "resnet18", "side": 64, "batch": 8, "pictures": 16, "matrix": 256}
TOY |= {"attributed": ("resnet18",), "maps": 2, "gan": 16}


def check(source: str | None, weights: str) -> None:
    """Raise InputError for a source or weights that cannot be used, before anything is measured."""
    if source:
        artifacts.check_source(source)
        models.build("resnet152", weights=weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="a real catalogue: folder or zip")
    parser.add_argument(
        "--weights", default="imagenet", help="imagenet, none, or the path of a file"
    )
    parser.add_argument("--epochs", type=int, default=25)
    options = parser.parse_args()
    try:
        check(options.source, options.weights)
    except InputError as error:
        sys.exit(f"error: {error}")
    device = runtime.device()
    sizes = REAL if device.type == "cuda" else TOY
    rows = (
        training(device, sizes) + attribution(device, sizes) + generation(device, sizes)
    )
    if device.type != "cuda":
        print(
            f"no GPU here: a dry run at toy sizes, {len(rows)} figures measured and none kept"
        )
        return
    measuring.save("gpu", rows, {})  # the training takes hours, and may fail
    if options.source:
        measuring.save(
            "gpu",
            rows + study(device, options.source, options.weights, options.epochs),
            {},
        )


if __name__ == "__main__":
    main()
