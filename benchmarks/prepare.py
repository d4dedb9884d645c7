"""Preparing pictures, feeding them, and the memory it takes: python benchmarks/prepare.py (about 6 minutes on 2 cores).

Preparation: JPEGs of 1080x1440 and 1800x2400 into arrays of 224 and 64, against the ways that people usually write it.
Feeding: shuffled, cropped, flipped, normalised batches of 128, against torchvision's ImageFolder with DataLoader.
No large originals can be had here: pictures of 224 pixels are enlarged and get the noise of a sensor, and so are
scikit-learn's two photographs.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("VIPS_CONCURRENCY", "1")  # its pool of 2 below is faster than threads within a picture

import cv2
import measuring
import numpy as np
import pyvips
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from fashionlib import decoding, images, preparation
from fashionlib.catalogue import COLUMNS

CORES = len(os.sched_getaffinity(0))
SIZES = (224, 64)
ROUNDS = 5


# --- preparation ------------------------------------------------------------------------------------------------------


def write_catalogue(folder: Path, pictures: list[Image.Image], size: tuple[int, int], count: int) -> Path:
    """A catalogue of `count` products; its files repeat as often as it takes."""
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        path = folder / "images" / f"{i + 1}.jpg"
        if i < len(pictures):
            measuring.enlarged(pictures[i], size, path, seed=i)
        else:
            os.link(folder / "images" / f"{i % len(pictures) + 1}.jpg", path)
    lines = (f"{i + 1},Men,Apparel,Topwear,Shirts,Blue,Fall,2011,Casual,Shirt {i}" for i in range(count))
    (folder / "styles.csv").write_text("\n".join([",".join(COLUMNS), *lines]))
    return folder


def notebook(path: Path) -> None:
    """As found in many notebooks: open, shrink, save; and once more for the other size."""
    for side in SIZES:
        picture = Image.open(path)
        picture.resize((side, side)).save(path.parents[1] / f"{side}" / path.name)


def thumbnail(path: Path) -> list[np.ndarray]:
    return [pyvips.Image.thumbnail(str(path), side, height=side, size="force").numpy() for side in SIZES]


def reduced(scale: int):
    """OpenCV's scaled imread; 1/8 has just enough pixels of 1800x2400 for 224, and too few of 1080x1440."""

    def shrink(path: Path) -> list[np.ndarray]:
        pixels = cv2.cvtColor(cv2.imread(str(path), scale), cv2.COLOR_BGR2RGB)
        return [cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA) for side in SIZES]

    return shrink


def prepared(folder: Path) -> Path:
    shutil.rmtree(folder.parent / "prepared", ignore_errors=True)
    return preparation.prepare(folder, folder.parent / "prepared", sizes=SIZES)


def compare_preparation(folder: Path, pictures: list[Image.Image], size: tuple[int, int]) -> dict[str, list[float]]:
    catalogue = write_catalogue(folder / "catalogue", pictures, size, count=480)
    for side in SIZES:
        (catalogue / f"{side}").mkdir()
    files = sorted((catalogue / "images").iterdir(), key=lambda path: int(path.stem))
    few, scale = files[:24], cv2.IMREAD_REDUCED_COLOR_8 if min(size) >= 8 * 224 else cv2.IMREAD_REDUCED_COLOR_4

    def in_threads(shrink) -> int:
        arrays = {side: np.empty((len(files), side, side, 3), np.uint8) for side in SIZES}
        for i, made in enumerate(threads.map(shrink, files)):
            for side, pixels in zip(SIZES, made, strict=True):
                arrays[side][i] = pixels
        return len(files)

    with multiprocessing.get_context("forkserver").Pool(CORES) as pool, ThreadPoolExecutor(CORES) as threads:
        pool.map(notebook, few)  # start-up is not counted
        candidates = {
            "ours": lambda: len(images.load(prepared(catalogue)).index),
            "notebook loop": lambda: sum(1 for path in few if notebook(path) is None),
            "notebook loop, multiprocessing": lambda: len(pool.map(notebook, few * 2)),
            "pyvips thumbnail, threads": lambda: in_threads(thumbnail),
            "OpenCV 1/4 imread, threads": lambda: in_threads(reduced(cv2.IMREAD_REDUCED_COLOR_4)),
        }
        if scale != cv2.IMREAD_REDUCED_COLOR_4:
            candidates["OpenCV 1/8 imread, threads"] = lambda: in_threads(reduced(scale))
        return measuring.in_turn(candidates, ROUNDS)


def difference(files: list[Path]) -> dict[int, float]:
    """Mean absolute difference (grey levels) to decoding at full resolution and Lanczos; the worst of `files`."""
    worst = dict.fromkeys(SIZES, 0.0)
    for path in files:
        pixels, original = decoding.decode(path.read_bytes(), (max(SIZES), max(SIZES)))
        for side in SIZES:
            whole = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            ours = decoding.resize(pixels, (side, side), original=original).astype(float)
            worst[side] = max(worst[side], float(np.abs(ours - np.asarray(whole)).mean()))
    return worst


# --- feeding ----------------------------------------------------------------------------------------------------------


def compare_batches(folder: Path, pictures: list[Image.Image], side: int, count: int) -> dict[str, list[float]]:
    """One epoch each. The peer's files have their final size already; its number of workers is the best of four."""
    (folder / "jpeg" / "one").mkdir(parents=True)
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, side, side, 3))
    for i in range(count):
        picture = pictures[i % len(pictures)].resize((side, side))
        picture.save(folder / "jpeg" / "one" / f"{i}.jpg", quality=90)
        array[i] = np.asarray(picture)
    steps = [transforms.RandomCrop(side, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize(images.MEAN, images.STD))
    dataset = datasets.ImageFolder(folder / "jpeg", transforms.Compose(steps))
    data = images.ImageSet(np.load(folder / "images.npy", mmap_mode="r"), np.arange(count), np.zeros(count, np.int64))

    def loader(workers: int) -> DataLoader:
        return DataLoader(dataset, 128, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def loaded(batches: DataLoader):
        return lambda: sum(len(labels) for _, labels in batches)

    def ours(dtype: torch.dtype):
        options = {"batch_size": 128, "epoch": 0, "flip": True, "crop": 4, "dtype": dtype}
        return lambda: sum(len(labels) for _, labels in images.batches(data, **options))

    loaders = {workers: loader(workers) for workers in (0, 1, 2, 4)}
    tried = measuring.in_turn({workers: loaded(batches) for workers, batches in loaders.items()}, rounds=2)
    best = max(tried, key=lambda workers: max(tried[workers]))
    candidates = {"ours, float32": ours(torch.float32), "ours, bfloat16": ours(torch.bfloat16)}
    return measuring.in_turn(candidates | {f"DataLoader, {best} workers": loaded(loaders[best])}, ROUNDS)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_memory(folder: Path, pictures: list[Image.Image], count: int) -> float:
    """MiB that a process of its own needs at most to prepare `count` pictures of 60x80 as 96 and 64."""
    catalogue = write_catalogue(folder / f"catalogue-{count}", pictures, (60, 80), count)
    command = [sys.executable, __file__, "--prepare", str(catalogue), str(folder / f"prepared-{count}")]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--prepare"]:
        preparation.prepare(sys.argv[2], Path(sys.argv[3]), sizes=[96, 64])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    cv2.setNumThreads(1)
    kind, pictures = measuring.photographs(40)
    samples = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rows, best, worst = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        sets = [(f"{kind} enlarged to {w}x{h}", pictures, (w, h)) for w, h in ((1080, 1440), (1800, 2400))]
        sets += [(f"scikit-learn's photographs enlarged to {w}x{h}", samples, (w, h)) for w, h in ((2400, 1800),)]
        for number, (name, chosen, size) in enumerate(sets):
            rates = compare_preparation(base / f"{number}", chosen, size)
            rows += [measuring.row(f"{name}: {what}", values) for what, values in rates.items()]
            peers = [what for what in rates if what not in ("ours", "notebook loop")]
            worst.append(measuring.ratio(rates, "ours", "notebook loop"))
            best.append(measuring.ratio(rates, "ours", *peers))
            files = sorted((base / f"{number}" / "catalogue" / "images").iterdir())[: len(chosen)]
            for side, value in difference(files).items():
                rows.append(
                    measuring.row(f"{name}: difference to full resolution at {side}, worst", [value], "grey levels")
                )
            shutil.rmtree(base / f"{number}")
        ratios = {"prepare_vs_notebook_loop": min(worst), "prepare_vs_best_peer": min(best)}
        for side, count in ((64, 6144), (224, 2048)):
            rates = compare_batches(base / f"batches-{side}", pictures, side, count)
            rows += [measuring.row(f"batches of 128 at {side}: {what}", values) for what, values in rates.items()]
            (peer,) = (what for what in rates if what.startswith("DataLoader"))
            ratios[f"batches_vs_dataloader_{side}"] = measuring.ratio(rates, "ours, float32", peer)
        for count in (1_000, 10_000, 40_000):
            peak = peak_memory(base, pictures, count)
            rows.append(measuring.row(f"peak memory of preparing {count:,} pictures", [peak], "MiB"))
    measuring.save("prepare", rows, ratios, packages=("pillow", "opencv-python-headless", "simplejpeg", "pyvips"))


if __name__ == "__main__":
    main()
