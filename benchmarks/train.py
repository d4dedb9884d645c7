"""Training side by side: our `fit` against torchvision's reference loop: python benchmarks/train.py (about 8 minutes).

Same model, batch, data and optimizer. The peer is the usual loop: ImageFolder and DataLoader over JPEGs of the final
size, float32, NCHW; a second peer reads our prepared arrays. Each candidate runs in a process of its own, since memory
that one keeps would serve the others, too; they take turns. Also: where the time goes, and how it grows.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
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
PICTURES = {"resnet18": 1024, "resnet152": 256}  # of one round, 5 to 15 seconds
RECIPE = training.Recipe(
    epochs=1,
    batch_size=BATCH,
    learning_rate=1e-4,
    optimizer="adam",
    schedule="constant",
    flip=True,
    crop=4,
)


class Arrays(Dataset):
    """The prepared array as a Dataset: a picture at a time, as most people would write it."""

    def __init__(self, data: images.ImageSet, transform):
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data.rows)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.data.images[i])), int(
            self.data.labels[i]
        )


# --- candidates: each returns a function that trains one epoch ------------------------------------------------------


def ours(folder: Path, architecture: str):
    data = measuring.read_pictures(folder, PICTURES[architecture])
    model = torchvision.models.get_model(architecture, num_classes=6).to(
        memory_format=torch.channels_last
    )
    return partial(training.fit, model, data, recipe=RECIPE)


def reference(
    folder: Path, architecture: str, *, arrays: bool = False, workers: int = 2
):
    """The loop of torchvision's references, without what it prints."""
    steps = [
        transforms.RandomCrop(SIDE, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    transform = transforms.Compose(
        [*steps, transforms.Normalize(images.MEAN, images.STD)]
    )
    if arrays:
        dataset = Arrays(
            measuring.read_pictures(folder, PICTURES[architecture]), transform
        )
    else:
        dataset = datasets.ImageFolder(folder / "jpeg", transform)
        dataset.samples = dataset.samples[
            :: len(dataset) // PICTURES[architecture]
        ]  # of every class
    loader = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    model = torchvision.models.get_model(architecture, num_classes=6)
    update, criterion = (
        torch.optim.Adam(model.parameters(), lr=1e-4),
        nn.CrossEntropyLoss(),
    )

    def epoch() -> None:
        model.train()
        for pixels, labels in loader:
            loss = criterion(model(pixels), labels)
            update.zero_grad()
            loss.backward()
            update.step()

    return epoch


def one_thread(folder: Path, architecture: str):
    torch.set_num_threads(1)
    return ours(folder, architecture)


def memory_given_back(folder: Path, architecture: str):
    """The C library's own way: memory that is freed goes back to the system."""
    runtime.keep_memory = lambda: None
    return ours(folder, architecture)


def convolutions_by_the_library(folder: Path, architecture: str):
    cpu.as_products = lambda device: contextlib.nullcontext()
    return ours(folder, architecture)


def denormals_flushed(folder: Path, architecture: str):
    torch.set_flush_denormal(True)
    return ours(folder, architecture)


def in_float32(folder: Path, architecture: str):
    return partial(ours(folder, architecture), precision="float32")


CANDIDATES = {"ours": ours}
VARIANTS = {
    "ours, one thread": one_thread,
    "ours, memory given back to the system": memory_given_back,
}
VARIANTS |= {"ours, all convolutions by the library": convolutions_by_the_library}
VARIANTS |= {"ours, denormals flushed": denormals_flushed, "ours, float32": in_float32}
CANDIDATES |= {
    f"reference, {workers} workers": partial(reference, workers=workers)
    for workers in (0, 1, 2)
}
CANDIDATES |= {
    f"same arrays, {workers} workers": partial(reference, arrays=True, workers=workers)
    for workers in (0, 1)
}
CANDIDATES |= VARIANTS


def compare(
    folder: Path, architecture: str, names: list[str], rounds: int
) -> dict[str, list[dict]]:
    """Rounds of all candidates in turn: seconds, page faults and images/s of each round."""
    command = [sys.executable, __file__, "--serve", str(folder), architecture]
    found = measuring.in_processes({name: [*command, name] for name in names}, rounds)
    for answer in (answer for answers in found.values() for answer in answers):
        answer["rate"] = PICTURES[architecture] / answer["seconds"]
    return found


def measure(folder: Path, architecture: str) -> tuple[list[dict], dict[str, float]]:
    """Rows and ratios of one network; the peers' number of workers is the best of those tried."""
    small = (
        architecture == "resnet18"
    )  # what changes ours, and the peer on our arrays, are measured with this one
    peers = [
        name
        for name in CANDIDATES
        if not name.startswith("ours") and (small or "arrays" not in name)
    ]
    tried = compare(folder, architecture, peers, rounds=1)
    best = {
        kind: max(
            (name for name in peers if name.startswith(kind)),
            key=lambda name: tried[name][0]["rate"],
        )
        for kind in {name.split(",")[0] for name in peers}
    }
    found = compare(
        folder,
        architecture,
        ["ours", *sorted(best.values()), *(VARIANTS if small else ())],
        ROUNDS,
    )
    rates = {
        name: [answer["rate"] for answer in answers] for name, answers in found.items()
    }
    name = f"{architecture} at {SIDE}x{SIDE}, batch {BATCH}"
    rows = [measuring.row(f"{name}: {what}", values) for what, values in rates.items()]
    steps = PICTURES[architecture] / BATCH
    for what in (
        "ours",
        best["reference"],
        *(name for name in found if "given back" in name),
    ):
        faults = [answer["faults"] / steps for answer in found[what]]
        rows.append(
            measuring.row(f"{name}: page faults a step, {what}", faults, "", digits=0)
        )
    ratios = {
        f"train_vs_{kind.replace(' ', '_')}_{architecture}": (rates, "ours", best[kind])
        for kind in sorted(best)
    }
    return rows, {ratio: measuring.ratio(*values) for ratio, values in ratios.items()}


# --- where the time goes ----------------------------------------------------------------------------------------------


def seconds_of(run, rounds: int = ROUNDS) -> list[float]:
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times[1:]


def matrix_rate(dtype: torch.dtype) -> list[float]:
    """TFLOP/s of a plain product of two matrices of 2,048."""
    matrix = torch.ones(2048, 2048, dtype=dtype)
    return [
        2 * 2048**3 / seconds / 1e12 for seconds in seconds_of(lambda: matrix @ matrix)
    ]


def parts_of_a_step(folder: Path, architecture: str, rate: float) -> list[dict]:
    """The limit (matrix products alone), and what data and optimizer take of a step."""
    device = runtime.device("cpu")
    precision = runtime.resolve_precision(device)
    dtype = getattr(torch, precision)
    data = measuring.read_pictures(folder, PICTURES[architecture])
    model = torchvision.models.get_model(architecture, num_classes=6).to(
        memory_format=torch.channels_last
    )
    feed = partial(
        images.batches, data, batch_size=BATCH, epoch=0, flip=True, crop=4, dtype=dtype
    )
    pixels, labels = next(feed())
    with FlopCounterMode(display=False) as counter, runtime.autocast(device):
        nn.functional.cross_entropy(model(pixels), labels).backward()
    work = counter.get_total_flops() / BATCH * rate / 1e12
    peak = statistics.median(matrix_rate(dtype))
    update = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    batches = PICTURES[architecture] / BATCH
    reading = [
        1000 * seconds / batches
        for seconds in seconds_of(lambda: sum(len(batch) for batch, _ in feed()))
    ]
    name = f"{architecture}, of a step"
    return [
        measuring.row(
            f"{name}: work done by ours, {precision}", [work], "TFLOP/s", digits=3
        ),
        measuring.row(
            f"{name}: share of the rate of a plain matrix product",
            [100 * work / peak],
            "%",
        ),
        measuring.row(f"{name}: the whole", [1000 * BATCH / rate], "ms"),
        measuring.row(f"{name}: data", reading, "ms"),
        measuring.row(
            f"{name}: optimizer",
            [1000 * seconds for seconds in seconds_of(update.step)],
            "ms",
        ),
    ]


# --- growth -----------------------------------------------------------------------------------------------------------


def grow(count: int) -> None:
    """One epoch of a small network over `count` pictures of 32x32, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        array = np.lib.format.open_memmap(
            Path(folder) / "images.npy", "w+", np.uint8, (count, 32, 32, 3)
        )
        for start in range(0, count, 1000):
            array[start : start + 1000] = np.random.default_rng(start).integers(
                0, 256, array[start : start + 1000].shape
            )
        array = np.load(Path(folder) / "images.npy", mmap_mode="r")
        data = images.ImageSet(array, np.arange(count), np.arange(count) % 6)
        model = torchvision.models.resnet18(num_classes=6).to(
            memory_format=torch.channels_last
        )
        training.fit(
            model,
            images.ImageSet(array, data.rows[:512], data.labels[:512]),
            recipe=RECIPE,
        )  # warms up
        (record,) = training.fit(model, data, recipe=RECIPE)
    status = Path("/proc/self/status").read_text().splitlines()
    own = int(
        next(line.split()[1] for line in status if line.startswith("RssAnon"))
    )  # kept memory: this is the peak
    print(json.dumps({"rate": count / record["seconds"], "memory": own / 1024}))


def measure_growth() -> list[dict]:
    rows = []
    for count in (1_000, 10_000, 40_000):
        command = [sys.executable, __file__, "--grow", str(count)]
        found = json.loads(
            subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
        )
        rows.append(
            measuring.row(
                f"an epoch of {count:,} pictures of 32x32, resnet18", [found["rate"]]
            )
        )
        rows.append(
            measuring.row(
                f"its memory beside the pictures, {count:,} pictures",
                [found["memory"]],
                "MiB",
            )
        )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        torch.manual_seed(0)
        measuring.serve(CANDIDATES[sys.argv[4]](Path(sys.argv[2]), sys.argv[3]))
        return
    if sys.argv[1:2] == ["--grow"]:
        grow(int(sys.argv[2]))
        return
    rows, ratios = [], {}
    rows += [
        measuring.row(
            f"plain matrix product, {name}",
            matrix_rate(getattr(torch, name)),
            "TFLOP/s",
            digits=3,
        )
        for name in ("float32", "bfloat16")
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measuring.write_pictures(
            folder, measuring.photographs(40)[1], SIDE, max(PICTURES.values())
        )
        for architecture in PICTURES:
            found, more = measure(folder, architecture)
            rows, ratios = rows + found, ratios | more
            rows += parts_of_a_step(folder, architecture, found[0]["value"])
    rows += measure_growth()
    names = (
        "train_vs_reference_resnet18",
        "train_vs_reference_resnet152",
        "train_vs_same_arrays_resnet18",
    )
    measuring.save("train", rows, {name: ratios[name] for name in names})


if __name__ == "__main__":
    main()
