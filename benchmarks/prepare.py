"""Preparing images, feeding them, and the memory it takes.

    python benchmarks/prepare.py    # 6 minutes on 2 cores

Preparation: JPEGs of 1080x1440 and 1800x2400 into arrays of 224 and 64, against the
ways that people usually write it. Feeding: shuffled, cropped, flipped, normalized
batches of 128, against torchvision's ImageFolder with DataLoader. No large originals
can be had here: images of 224 pixels are enlarged and get the noise of a sensor, and
so are scikit-learn's two photographs.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

# its pool of 2 below is faster than threads within an image
os.environ.setdefault("VIPS_CONCURRENCY", "1")

import cv2
import joblib
import measuring
import numpy as np
import pyvips
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from fashionlib import cpu, images
from fashionlib.catalogue import COLUMNS
from fashionlib.data import decoding, prepare

CORES = joblib.cpu_count()
SIZES = (224, 64)
SMALLEST = (max(SIZES), max(SIZES))  # (height, width) that decoding must leave
LARGE = ((1080, 1440), (1800, 2400))  # (width, height)
ROUNDS = 3
# of a round: what a catalogue costs once (table, listing, threads) is 2 % of it
IMAGES = 2048
FED = {64: 6144, 224: 2048}  # side: images of an epoch
GROWN = (1_000, 10_000, 40_000)  # images whose preparation's memory is measured
PACKAGES = ("pillow", "opencv-python-headless", "simplejpeg", "pyvips")
LIMIT = "limit: decoding alone, threads"
# shown and not counted: at 224 it errs by more than the gray level that is allowed
EIGHTH = "OpenCV 1/8 imread, threads"


# --- preparation ----------------------------------------------------------------------


def write_catalogue(
    folder: Path, chosen: list[Image.Image], size: tuple[int, int], count: int
) -> Path:
    """A catalogue of `count` products; its files repeat as often as it takes."""
    (folder / "images").mkdir(parents=True)
    lines = [",".join(COLUMNS)]
    for i in range(count):
        path = folder / "images" / f"{i + 1}.jpg"
        if i < len(chosen):
            measuring.enlarged(chosen[i], size, path, seed=i)
        else:
            os.link(folder / "images" / f"{i % len(chosen) + 1}.jpg", path)
        name = "Men,Apparel,Topwear,Shirts,Blue,Fall,2011,Casual,Shirt"
        lines.append(f"{i + 1},{name} {i}")
    (folder / "styles.csv").write_text("\n".join(lines), "utf-8")
    return folder


def notebook(path: Path) -> None:
    """As in many notebooks: open, shrink, save; and once more for the other size."""
    for side in SIZES:
        image = Image.open(path)
        image.resize((side, side)).save(path.parents[1] / f"{side}" / path.name)


def thumbnail(path: Path) -> list[np.ndarray]:
    large, small = SIZES
    first = pyvips.Image.thumbnail(str(path), large, height=large, size="force")
    first = first.copy_memory()
    second = first.thumbnail_image(small, height=small, size="force")
    return [first.numpy(), second.numpy()]


def reduced(scale: int) -> Callable[[Path], list[np.ndarray]]:
    """OpenCV's scaled imread; 1/8 has just enough pixels of 1800x2400 for 224."""

    def shrink(path: Path) -> list[np.ndarray]:
        pixels = cv2.cvtColor(cv2.imread(str(path), scale), cv2.COLOR_BGR2RGB)
        by_area = partial(cv2.resize, pixels, interpolation=cv2.INTER_AREA)
        return [by_area((side, side)) for side in SIZES]

    return shrink


def prepared(folder: Path) -> Path:
    shutil.rmtree(folder.parent / "prepared", ignore_errors=True)
    return prepare.prepare(folder, folder.parent / "prepared", sizes=SIZES)


def ours(path: Path) -> list[np.ndarray]:
    pixels, original = decoding.decode(path.read_bytes(), SMALLEST)
    return [decoding.resize(pixels, (side, side), original=original) for side in SIZES]


def decode_only(path: Path) -> list[np.ndarray]:
    """The limit: what any way of preparing has to do at least."""
    pixels, _ = decoding.decode(path.read_bytes(), SMALLEST)
    return [pixels[:1, :1]] * len(SIZES)


SHRINKERS = {
    "ours": ours,
    "pyvips thumbnail, threads": thumbnail,
    "OpenCV 1/4 imread, threads": reduced(cv2.IMREAD_REDUCED_COLOR_4),
    EIGHTH: reduced(cv2.IMREAD_REDUCED_COLOR_8),
}


def compare_preparation(catalogue: Path, shrinkers: dict) -> dict[str, list[float]]:
    """Images/s of ours and of each peer."""
    for side in SIZES:
        (catalogue / f"{side}").mkdir()
    files = sorted((catalogue / "images").iterdir(), key=lambda path: int(path.stem))
    few, more = files[:24], files[:48]

    def in_threads(shrink) -> int:
        arrays = [np.empty((len(files), side, side, 3), np.uint8) for side in SIZES]
        for i, shrunk in enumerate(threads.map(shrink, files)):
            for array, pixels in zip(arrays, shrunk, strict=True):
                array[i] = pixels
        return len(files)

    with (
        multiprocessing.get_context("forkserver").Pool(CORES) as pool,
        ThreadPoolExecutor(CORES) as threads,
    ):
        pool.map(notebook, few)  # start-up is not counted
        candidates = {
            "ours": lambda: len(images.load(prepared(catalogue)).index),
            "notebook loop": lambda: len([notebook(path) for path in few]),
            "notebook loop, multiprocessing": lambda: len(pool.map(notebook, more)),
            LIMIT: partial(in_threads, decode_only),
        }
        for name, shrink in shrinkers.items():
            if name != "ours":
                candidates[name] = partial(in_threads, shrink)
        return measuring.in_turn(candidates, ROUNDS)


def differences(shrink: Callable, files: list[Path]) -> dict[int, list[float]]:
    """How far each file is from decoding it whole and Lanczos, by size.

    The mean absolute difference, in gray levels.
    """
    found = {side: [] for side in SIZES}
    for path in files:
        whole = Image.open(path).convert("RGB")
        for side, pixels in zip(SIZES, shrink(path), strict=True):
            exact = whole.resize((side, side), Image.Resampling.LANCZOS)
            found[side].append(float(np.abs(pixels - np.asarray(exact, float)).mean()))
    return found


def measure_preparation(
    base: Path, kinds: dict[str, list[Image.Image]]
) -> tuple[list[dict], dict[str, float]]:
    """All kinds of images in both sizes: rows, and of every ratio the least."""
    rows, ratios = [], defaultdict(list)
    for (kind, chosen), (width, height) in product(kinds.items(), LARGE):
        wide = chosen[0].width > chosen[0].height
        size = (height, width) if wide else (width, height)
        name = f"{kind} enlarged to {size[0]}x{size[1]}"
        catalogue = write_catalogue(base / name / "catalogue", chosen, size, IMAGES)
        shrinkers = dict(SHRINKERS)
        if width < 8 * max(SIZES):
            del shrinkers[EIGHTH]  # it would leave too few pixels
        rates = compare_preparation(catalogue, shrinkers)
        for what, values in rates.items():
            rows.append(measuring.row(f"{name}: {what}", values))
        files = [catalogue / "images" / f"{i + 1}.jpg" for i in range(len(chosen))]
        for what, shrink in shrinkers.items():
            for side, values in differences(shrink, files).items():
                where = f"{name}: difference to full resolution at {side}"
                label = f"{where}, {what.removesuffix(', threads')}"
                rows.append(measuring.row(label, values, "gray levels", digits=2))
        peers = rates.keys() - {"ours", "notebook loop", EIGHTH, LIMIT}
        against = {"notebook_loop": ["notebook loop"], "best_peer": peers}
        if EIGHTH in rates:
            against["opencv_eighth"] = [EIGHTH]
        for what, others in against.items():
            ratio = measuring.ratio(rates, "ours", *others)
            ratios[f"prepare_vs_{what}"].append(ratio)
        shutil.rmtree(base / name)
    return rows, {name: min(values) for name, values in ratios.items()}


# --- feeding --------------------------------------------------------------------------


def loader(folder: Path, side: int, workers: int) -> DataLoader:
    """The peer, as torchvision's users write it."""
    steps = [
        transforms.RandomCrop(side, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(images.MEAN, images.STD),
    ]
    dataset = datasets.ImageFolder(folder, transforms.Compose(steps))
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(dataset, 128, shuffle=True, **options)


def write_floats(side: int, count: int) -> int:
    """The limit: writing the floats of every batch once, and nothing else."""
    for start in range(0, count, 128):
        torch.empty(min(128, count - start), side, side, 3).fill_(1)
    return count


@cpu.keep_freed_memory(torch.device("cpu"))  # as in the training; for the peers, too
def compare_batches(
    folder: Path, chosen: list[Image.Image], side: int, count: int
) -> dict[str, list[float]]:
    """One epoch each; the peer's number of workers is the best of four."""
    folder.mkdir()
    measuring.write_pictures(folder, chosen, side, count)
    data = measuring.read_pictures(folder, count)

    def epoch(batches: Callable) -> Callable[[], int]:
        return lambda: sum(len(labels) for _, labels in batches())

    loaded = {}
    for workers in (0, 1, 2, 4):
        loaded[workers] = epoch(partial(iter, loader(folder / "jpeg", side, workers)))
    tried = measuring.in_turn(loaded, rounds=2)
    best = max(tried, key=lambda workers: max(tried[workers]))
    fed = partial(images.batches, data, batch_size=128, epoch=0, flip=True, crop=4)
    candidates = {
        "ours, float32": epoch(fed),
        "ours, bfloat16": epoch(partial(fed, dtype=torch.bfloat16)),
        "limit: writing the float32 once": partial(write_floats, side, count),
        f"DataLoader, {best} workers": loaded[best],
    }
    return measuring.in_turn(candidates, ROUNDS)


# --- memory ---------------------------------------------------------------------------


def peak_memory(folder: Path, chosen: list[Image.Image], count: int) -> float:
    """MiB that a process needs at most to prepare `count` of 60x80 as 96 and 64."""
    catalogue = write_catalogue(folder / f"catalogue-{count}", chosen, (60, 80), count)
    command = [sys.executable, __file__, "--prepare", str(catalogue)]
    command.append(str(folder / f"prepared-{count}"))
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(answer.stdout.split()[-1])


def prepare_and_print_peak(catalogue: str, folder: str) -> None:
    """The other end of `peak_memory`. getrusage would give the parent's peak, too."""
    prepare.prepare(catalogue, Path(folder), sizes=[96, 64])
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM"):
            print(int(line.split()[1]) / 1024)


# --- all of it ------------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["--prepare"]:
        prepare_and_print_peak(*sys.argv[2:])
        return
    cv2.setNumThreads(1)
    kind, chosen = measuring.photographs(40)
    samples = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    kinds = {kind: chosen, "scikit-learn's photographs": samples}
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        rows, ratios = measure_preparation(base, kinds)
        for side, count in FED.items():
            rates = compare_batches(base / f"batches-{side}", chosen, side, count)
            for what, values in rates.items():
                rows.append(measuring.row(f"batches of 128 at {side}: {what}", values))
            peer = list(rates)[-1]
            ratio = measuring.ratio(rates, "ours, float32", peer)
            ratios[f"batches_vs_dataloader_{side}"] = ratio
        for count in GROWN:
            peak = peak_memory(base, chosen, count)
            name = f"peak memory of preparing {count:,} images"
            rows.append(measuring.row(name, [peak], "MiB"))
    measuring.save("prepare", rows, ratios, packages=PACKAGES)


if __name__ == "__main__":
    main()
