"""Preparing pictures, feeding them, and the memory it takes: python benchmarks/prepare.py (about 6 minutes on 2 cores).

Preparation: JPEGs of 1080x1440 and 1800x2400 into arrays of 224 and 64, against the ways that people usually write it.
Feeding: shuffled, cropped, flipped, normalised batches of 128, against torchvision's ImageFolder with DataLoader.
No large originals can be had here: pictures of 224 pixels are enlarged and get the noise of a sensor, and so are
scikit-learn's two photographs.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

os.environ.setdefault(
    "VIPS_CONCURRENCY", "1"
)  # its pool of 2 below is faster than threads within a picture

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

from fashionlib import images
from fashionlib.catalogue import COLUMNS
from fashionlib.data import decoding, prepare

CORES = joblib.cpu_count()
SIZES = (224, 64)
ROUNDS = 3
PICTURES = 2048  # of a round: what a catalogue costs once (table, listing, threads) is 2 % of it
LIMIT = "limit: decoding alone, threads"
EIGHTH = "OpenCV 1/8 imread, threads"  # shown and not counted: at 224 it errs by more than the grey level that is allowed


# --- preparation ------------------------------------------------------------------------------------------------------


def write_catalogue(
    folder: Path, pictures: list[Image.Image], size: tuple[int, int], count: int
) -> Path:
    """A catalogue of `count` products; its files repeat as often as it takes."""
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        path = folder / "images" / f"{i + 1}.jpg"
        if i < len(pictures):
            measuring.enlarged(pictures[i], size, path, seed=i)
        else:
            os.link(folder / "images" / f"{i % len(pictures) + 1}.jpg", path)
    lines = (
        f"{i + 1},Men,Apparel,Topwear,Shirts,Blue,Fall,2011,Casual,Shirt {i}"
        for i in range(count)
    )
    (folder / "styles.csv").write_text("\n".join([",".join(COLUMNS), *lines]))
    return folder


def notebook(path: Path) -> None:
    """As found in many notebooks: open, shrink, save; and once more for the other size."""
    for side in SIZES:
        picture = Image.open(path)
        picture.resize((side, side)).save(path.parents[1] / f"{side}" / path.name)


def thumbnail(path: Path) -> list[np.ndarray]:
    large = pyvips.Image.thumbnail(
        str(path), SIZES[0], height=SIZES[0], size="force"
    ).copy_memory()
    return [
        large.numpy(),
        large.thumbnail_image(SIZES[1], height=SIZES[1], size="force").numpy(),
    ]


def reduced(scale: int):
    """OpenCV's scaled imread; 1/8 has just enough pixels of 1800x2400 for 224."""

    def shrink(path: Path) -> list[np.ndarray]:
        pixels = cv2.cvtColor(cv2.imread(str(path), scale), cv2.COLOR_BGR2RGB)
        return [
            cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
            for side in SIZES
        ]

    return shrink


def prepared(folder: Path) -> Path:
    shutil.rmtree(folder.parent / "prepared", ignore_errors=True)
    return prepare.prepare(folder, folder.parent / "prepared", sizes=SIZES)


def ours(path: Path) -> list[np.ndarray]:
    pixels, original = decoding.decode(path.read_bytes(), (max(SIZES), max(SIZES)))
    return [decoding.resize(pixels, (side, side), original=original) for side in SIZES]


def decode_only(path: Path) -> list[np.ndarray]:
    """The limit: what any way of preparing has to do at least."""
    return [
        decoding.decode(path.read_bytes(), (max(SIZES), max(SIZES)))[0][:1, :1]
    ] * len(SIZES)


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
        arrays = {
            side: np.empty((len(files), side, side, 3), np.uint8) for side in SIZES
        }
        for i, made in enumerate(threads.map(shrink, files)):
            for side, pixels in zip(SIZES, made, strict=True):
                arrays[side][i] = pixels
        return len(files)

    with (
        multiprocessing.get_context("forkserver").Pool(CORES) as pool,
        ThreadPoolExecutor(CORES) as threads,
    ):
        pool.map(notebook, few)  # start-up is not counted
        candidates = {
            "ours": lambda: len(images.load(prepared(catalogue)).index),
            "notebook loop": lambda: sum(1 for path in few if notebook(path) is None),
            "notebook loop, multiprocessing": lambda: len(pool.map(notebook, more)),
        }
        candidates[LIMIT] = partial(in_threads, decode_only)
        peers = {
            name: partial(in_threads, shrink)
            for name, shrink in shrinkers.items()
            if name != "ours"
        }
        return measuring.in_turn(candidates | peers, ROUNDS)


def differences(shrink, files: list[Path]) -> dict[int, list[float]]:
    """Mean absolute difference (grey levels) of each file to decoding at full resolution and Lanczos, by size."""
    found = {side: [] for side in SIZES}
    for path in files:
        whole = Image.open(path).convert("RGB")
        for side, made in zip(SIZES, shrink(path), strict=True):
            exact = np.asarray(
                whole.resize((side, side), Image.Resampling.LANCZOS), float
            )
            found[side].append(float(np.abs(made - exact).mean()))
    return found


def measure_preparation(
    base: Path, pictures: dict[str, list[Image.Image]]
) -> tuple[list[dict], dict[str, float]]:
    """All kinds of pictures in both sizes: rows, and of every ratio the least."""
    rows, found = [], {}
    for (kind, chosen), (width, height) in product(
        pictures.items(), ((1080, 1440), (1800, 2400))
    ):
        size = (
            (height, width) if chosen[0].width > chosen[0].height else (width, height)
        )
        name = f"{kind} enlarged to {size[0]}x{size[1]}"
        catalogue = write_catalogue(
            base / name / "catalogue", chosen, size, count=PICTURES
        )
        shrinkers = dict(SHRINKERS)
        if width < 8 * max(SIZES):
            del shrinkers[EIGHTH]  # it would leave too few pixels
        rates = compare_preparation(catalogue, shrinkers)
        rows += [
            measuring.row(f"{name}: {what}", values) for what, values in rates.items()
        ]
        files = [catalogue / "images" / f"{i + 1}.jpg" for i in range(len(chosen))]
        for what, shrink in shrinkers.items():
            for side, values in differences(shrink, files).items():
                what_differs = f"{name}: difference to full resolution at {side}, {what.removesuffix(', threads')}"
                rows.append(
                    measuring.row(what_differs, values, "grey levels", digits=2)
                )
        peers = [
            what
            for what in rates
            if what not in ("ours", "notebook loop", EIGHTH, LIMIT)
        ]
        found.setdefault("prepare_vs_notebook_loop", []).append(
            measuring.ratio(rates, "ours", "notebook loop")
        )
        found.setdefault("prepare_vs_best_peer", []).append(
            measuring.ratio(rates, "ours", *peers)
        )
        if EIGHTH in rates:
            found.setdefault("prepare_vs_opencv_eighth", []).append(
                measuring.ratio(rates, "ours", EIGHTH)
            )
        shutil.rmtree(base / name)
    return rows, {ratio: min(values) for ratio, values in found.items()}


# --- feeding ----------------------------------------------------------------------------------------------------------


def loader(folder: Path, side: int, workers: int) -> DataLoader:
    """The peer, as torchvision's users write it."""
    steps = [
        transforms.RandomCrop(side, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    steps.append(transforms.Normalize(images.MEAN, images.STD))
    dataset = datasets.ImageFolder(folder, transforms.Compose(steps))
    return DataLoader(
        dataset, 128, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def write_floats(side: int, count: int) -> int:
    """The limit: writing the floats of every batch once, and nothing else."""
    for start in range(0, count, 128):
        torch.empty(min(128, count - start), side, side, 3).fill_(1)
    return count


def compare_batches(
    folder: Path, pictures: list[Image.Image], side: int, count: int
) -> dict[str, list[float]]:
    """One epoch each; the peer's number of workers is the best of four."""
    folder.mkdir()
    measuring.write_pictures(folder, pictures, side, count)
    data = measuring.read_pictures(folder, count)

    def epoch(batches: Callable) -> Callable[[], int]:
        return lambda: sum(len(labels) for _, labels in batches())

    loaders = {
        workers: loader(folder / "jpeg", side, workers) for workers in (0, 1, 2, 4)
    }
    loaded = {workers: epoch(partial(iter, each)) for workers, each in loaders.items()}
    tried = measuring.in_turn(loaded, rounds=2)
    best = max(tried, key=lambda workers: max(tried[workers]))
    fed = partial(images.batches, data, batch_size=128, epoch=0, flip=True, crop=4)
    candidates = {
        "ours, float32": epoch(fed),
        "ours, bfloat16": epoch(partial(fed, dtype=torch.bfloat16)),
    }
    candidates |= {
        "limit: writing the float32 once": partial(write_floats, side, count)
    }
    return measuring.in_turn(
        candidates | {f"DataLoader, {best} workers": loaded[best]}, ROUNDS
    )


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_memory(folder: Path, pictures: list[Image.Image], count: int) -> float:
    """MiB that a process of its own needs at most to prepare `count` pictures of 60x80 as 96 and 64."""
    catalogue = write_catalogue(
        folder / f"catalogue-{count}", pictures, (60, 80), count
    )
    command = [
        sys.executable,
        __file__,
        "--prepare",
        str(catalogue),
        str(folder / f"prepared-{count}"),
    ]
    return float(
        subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
    )


def main() -> None:
    if sys.argv[1:2] == ["--prepare"]:
        prepare.prepare(sys.argv[2], Path(sys.argv[3]), sizes=[96, 64])
        status = (
            Path("/proc/self/status").read_text().splitlines()
        )  # getrusage would give the parent's peak, too
        print(
            int(next(line.split()[1] for line in status if line.startswith("VmHWM")))
            / 1024
        )
        return
    cv2.setNumThreads(1)
    kind, pictures = measuring.photographs(40)
    samples = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        rows, ratios = measure_preparation(
            base, {kind: pictures, "scikit-learn's photographs": samples}
        )
        for side, count in ((64, 6144), (224, 2048)):
            rates = compare_batches(base / f"batches-{side}", pictures, side, count)
            rows += [
                measuring.row(f"batches of 128 at {side}: {what}", values)
                for what, values in rates.items()
            ]
            (peer,) = (what for what in rates if what.startswith("DataLoader"))
            ratios[f"batches_vs_dataloader_{side}"] = measuring.ratio(
                rates, "ours, float32", peer
            )
        for count in (1_000, 10_000, 40_000):
            peak = peak_memory(base, pictures, count)
            rows.append(
                measuring.row(
                    f"peak memory of preparing {count:,} pictures", [peak], "MiB"
                )
            )
    measuring.save(
        "prepare",
        rows,
        ratios,
        packages=("pillow", "opencv-python-headless", "simplejpeg", "pyvips"),
    )


if __name__ == "__main__":
    main()
