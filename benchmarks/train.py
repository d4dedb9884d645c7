"""Training side by side: our `fit` against torchvision's reference loop.

    python benchmarks/train.py    # 8 minutes on 2 cores

Same model, batch, data and optimizer. The peer is the usual loop: ImageFolder and
DataLoader over JPEGs of the final size, float32, NCHW; a second peer reads our prepared
arrays. Each candidate runs in a process of its own, since memory that one keeps would
serve the others, too; they take turns. Also: where the time goes, and how it grows.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measuring
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from fashionlib import cpu, images, runtime, training

SIDE, BATCH, ROUNDS = 80, 64, 5
IMAGES = {"resnet18": 1024, "resnet152": 256}  # of one round, 5 to 15 seconds
GROWN = (1_000, 10_000, 40_000)  # images of an epoch whose memory is measured
RECIPE = training.Recipe(
    epochs=1,
    batch_size=BATCH,
    learning_rate=1e-4,
    schedule="constant",
    flip=True,
    crop=4,
)


class Arrays(Dataset):
    """The prepared array as a Dataset: one image at a time, as most would write it."""

    def __init__(self, data: images.ImageSet, transform):
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data.rows)

    def __getitem__(self, i: int):
        image = Image.fromarray(self.data.images[i])
        return self.transform(image), int(self.data.labels[i])


# --- candidates: each returns a function that trains one epoch ------------------------


def network(architecture: str) -> nn.Module:
    return torchvision.models.get_model(architecture, num_classes=6)


def ours(folder: Path, architecture: str):
    data = measuring.read_pictures(folder, IMAGES[architecture])
    model = network(architecture).to(memory_format=torch.channels_last)
    return partial(training.fit, model, data, recipe=RECIPE, device="cpu")


def reference(
    folder: Path, architecture: str, *, arrays: bool = False, workers: int = 2
):
    """The loop of torchvision's references, without what it prints."""
    steps = [
        transforms.RandomCrop(SIDE, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(images.MEAN, images.STD),
    ]
    transform, count = transforms.Compose(steps), IMAGES[architecture]
    if arrays:
        dataset = Arrays(measuring.read_pictures(folder, count), transform)
    else:
        dataset = datasets.ImageFolder(folder / "jpeg", transform)
        dataset.samples = dataset.samples[:: len(dataset) // count]  # of every class
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(dataset, BATCH, shuffle=True, **options)
    model, criterion = network(architecture), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def epoch() -> None:
        model.train()
        for pixels, labels in loader:
            loss = criterion(model(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def one_thread(folder: Path, architecture: str):
    torch.set_num_threads(1)
    return ours(folder, architecture)


def memory_given_back(folder: Path, architecture: str):
    """The C library's own way: memory that is freed goes back to the system."""
    cpu.keep_freed_memory = lambda device: contextlib.nullcontext()
    return ours(folder, architecture)


def convolutions_by_the_library(folder: Path, architecture: str):
    cpu.gemm_convolutions = lambda device: contextlib.nullcontext()
    return ours(folder, architecture)


def denormals_flushed(folder: Path, architecture: str):
    torch.set_flush_denormal(True)
    return ours(folder, architecture)


def in_float32(folder: Path, architecture: str):
    return partial(ours(folder, architecture), precision="float32")


VARIANTS = {
    "ours, one thread": one_thread,
    "ours, memory given back to the system": memory_given_back,
    "ours, all convolutions by the library": convolutions_by_the_library,
    "ours, denormals flushed": denormals_flushed,
    "ours, float32": in_float32,
}
CANDIDATES = {"ours": ours} | VARIANTS
for _workers in (0, 1, 2):
    CANDIDATES[f"reference, {_workers} workers"] = partial(reference, workers=_workers)
for _workers in (0, 1):
    _on_arrays = partial(reference, arrays=True, workers=_workers)
    CANDIDATES[f"same arrays, {_workers} workers"] = _on_arrays


def compare(
    folder: Path, architecture: str, names: list[str], rounds: int
) -> dict[str, list[dict]]:
    """Rounds of all candidates in turn: seconds, page faults and images/s of each."""
    command = [sys.executable, __file__, "--serve", str(folder), architecture]
    commands = {name: [*command, name] for name in names}
    found = measuring.in_processes(commands, rounds)
    for answers in found.values():
        for answer in answers:
            answer["rate"] = IMAGES[architecture] / answer["seconds"]
    return found


def best_peers(folder: Path, architecture: str) -> dict[str, str]:
    """The best number of workers of each kind of peer, of those tried.

    The peer on our arrays is measured with ResNet18 only.
    """
    kinds = ["reference"] + ["same arrays"] * (architecture == "resnet18")
    peers = [name for name in CANDIDATES if name.split(",")[0] in kinds]
    rates = {}
    for name, answers in compare(folder, architecture, peers, rounds=1).items():
        rates[name] = answers[0]["rate"]
    best = {}
    for kind in kinds:
        best[kind] = max((name for name in rates if kind in name), key=rates.get)
    return best


def measure(folder: Path, architecture: str) -> tuple[list[dict], dict[str, float]]:
    """Rows and ratios of one network; what changes ours is tried with ResNet18 only."""
    best = best_peers(folder, architecture)
    variants = list(VARIANTS) if architecture == "resnet18" else []
    names = ["ours", *best.values(), *variants]
    found = compare(folder, architecture, names, ROUNDS)
    rows, rates, ratios = [], {}, {}
    name = f"{architecture} at {SIDE}x{SIDE}, batch {BATCH}"
    for what, answers in found.items():
        rates[what] = [answer["rate"] for answer in answers]
        rows.append(measuring.row(f"{name}: {what}", rates[what]))
    steps = IMAGES[architecture] / BATCH
    for what in found:
        if what in ("ours", best["reference"]) or "given back" in what:
            faults = [answer["faults"] / steps for answer in found[what]]
            label = f"{name}: page faults a step, {what}"
            rows.append(measuring.row(label, faults, "", digits=0))
    for kind, peer in best.items():
        label = f"train_vs_{kind.replace(' ', '_')}_{architecture}"
        ratios[label] = measuring.ratio(rates, "ours", peer)
    return rows, ratios


# --- where the time goes --------------------------------------------------------------


def seconds_of(run: Callable, rounds: int = ROUNDS) -> list[float]:
    """Seconds of each round, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times[1:]


def matrix_rate(dtype: torch.dtype) -> list[float]:
    """TFLOP/s of a plain product of two matrices of 2,048."""
    matrix = torch.ones(2048, 2048, dtype=dtype)
    times = seconds_of(lambda: matrix @ matrix)
    return [2 * 2048**3 / seconds / 1e12 for seconds in times]


@cpu.keep_freed_memory(torch.device("cpu"))  # as in the training
def parts_of_a_step(folder: Path, architecture: str, rate: float) -> list[dict]:
    """The limit (matrix products alone), and what data and optimizer take of a step.

    rate: of the whole training, images/s.
    """
    device = runtime.device("cpu")
    precision = runtime.resolve_precision(device)
    dtype = getattr(torch, precision)
    data = measuring.read_pictures(folder, IMAGES[architecture])
    model = network(architecture).to(memory_format=torch.channels_last)
    options = {"batch_size": BATCH, "epoch": 0, "flip": True, "crop": 4, "dtype": dtype}
    feed = partial(images.batches, data, **options)
    pixels, labels = next(feed())
    with FlopCounterMode(display=False) as counter, runtime.autocast(device):
        nn.functional.cross_entropy(model(pixels), labels).backward()
    work = counter.get_total_flops() / BATCH * rate / 1e12
    peak = statistics.median(matrix_rate(dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    batches = IMAGES[architecture] / BATCH
    epochs = seconds_of(lambda: sum(len(labels) for _, labels in feed()))
    reading = [1000 * seconds / batches for seconds in epochs]
    updating = [1000 * seconds for seconds in seconds_of(optimizer.step)]
    figures = {
        f"work done by ours, {precision}": ([work], "TFLOP/s", 3),
        "fraction of a plain matrix product's rate": ([100 * work / peak], "%"),
        "the whole": ([1000 * BATCH / rate], "ms"),
        "data": (reading, "ms"),
        "optimizer": (updating, "ms"),
    }
    name = f"{architecture}, of a step"
    return [measuring.row(f"{name}: {what}", *each) for what, each in figures.items()]


# --- growth ---------------------------------------------------------------------------


def grow(count: int) -> None:
    """One epoch of ResNet18 over `count` images of 32x32; prints rate and memory."""
    with tempfile.TemporaryDirectory() as folder:
        path, shape = Path(folder) / "images.npy", (count, 32, 32, 3)
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for start in range(0, count, 1000):
            part = array[start : start + 1000]
            part[:] = np.random.default_rng(start).integers(0, 256, part.shape)
        array, rows = np.load(path, mmap_mode="r"), np.arange(count)
        data = images.ImageSet(array, rows, rows % 6)
        few = images.ImageSet(array, rows[:512], rows[:512] % 6)
        model = network("resnet18").to(memory_format=torch.channels_last)
        training.fit(model, few, recipe=RECIPE, device="cpu")  # warms up
        (record,) = training.fit(model, data, recipe=RECIPE, device="cpu")
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon"):  # freed memory is kept: this is the peak
            memory = int(line.split()[1]) / 1024
    print(json.dumps({"rate": count / record["seconds"], "memory": memory}))


def measure_growth() -> list[dict]:
    """Rows of rate and memory, each count in a process of its own."""
    rows = []
    for count in GROWN:
        command = [sys.executable, __file__, "--grow", str(count)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(answer.stdout.splitlines()[-1])
        name = f"an epoch of {count:,} images of 32x32, resnet18"
        rows.append(measuring.row(name, [found["rate"]]))
        name = f"its memory beside the images, {count:,} images"
        rows.append(measuring.row(name, [found["memory"]], "MiB"))
    return rows


# --- all of it ------------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        _, _, folder, architecture, name = sys.argv
        torch.manual_seed(0)
        measuring.serve(CANDIDATES[name](Path(folder), architecture))
        return
    if sys.argv[1:2] == ["--grow"]:
        grow(int(sys.argv[2]))
        return
    rows, ratios = [], {}
    for name in ("float32", "bfloat16"):
        rate, label = matrix_rate(getattr(torch, name)), f"plain matrix product, {name}"
        rows.append(measuring.row(label, rate, "TFLOP/s", digits=3))
    with tempfile.TemporaryDirectory() as temporary:
        folder, (_, chosen) = Path(temporary), measuring.photographs(40)
        measuring.write_pictures(folder, chosen, SIDE, max(IMAGES.values()))
        for architecture in IMAGES:
            found, more = measure(folder, architecture)
            rows, ratios = rows + found, ratios | more
            rows += parts_of_a_step(folder, architecture, found[0]["value"])
    measuring.save("train", rows + measure_growth(), ratios)


if __name__ == "__main__":
    main()
