"""Prepared images: memory-mapped uint8 arrays with their index, and batches of them.

    prepared = images.load(artifacts.require("small", "prepared"))
    train = prepared.subset("train", 64)
    for pixels, labels in images.batches(train, batch_size=128, epoch=0, flip=True): ...

The arrays are NHWC uint8: on disk that *is* torch's channels_last, so a batch is one
gather and a permute without a copy, and normalizing writes the floats once.
Measured against ImageFolder and DataLoader: `benchmarks/results/prepare.json`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from fashionlib import artifacts
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.data.prepare import VERSION, Size, read_sealed, size_name
from fashionlib.runtime import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, RGB in [0, 1]
NEAR_WHITE = 240  # of 255: the background of most product photographs
CACHE = 2**18  # numbers normalized at a time: 1 MiB of float32, one core's L2 cache


class ImageSet(NamedTuple):
    """Some rows of an array of images.

    images: uint8 (N, H, W, 3), an array or, after `to_device`, a tensor; rows: int64
    (M,) into it; labels: int64 (M,).
    Taught in: chapter 2
    """

    images: np.ndarray | torch.Tensor
    rows: np.ndarray
    labels: np.ndarray


def from_array(pixels: np.ndarray, labels: np.ndarray | None = None) -> ImageSet:
    """All images of an array, uint8 (N, H, W, 3); labels 0 where none are given.

    Taught in: chapter 5
    """
    rows = np.arange(len(pixels))
    return ImageSet(pixels, rows, np.zeros_like(rows) if labels is None else labels)


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made: `index` (a row per product, as in the arrays), `manifest`.

    Taught in: chapter 1
    """

    folder: Path
    index: pd.DataFrame
    manifest: dict

    def has_masks(self, size: Size) -> bool:
        """Whether the catalogue came with masks (the synthetic one does)."""
        return f"masks_{size_name(size)}.npy" in self.manifest["checksums"]

    def array(self, size: Size, kind: str = "images") -> np.ndarray:
        """Memory-mapped uint8: images (N, H, W, 3), or with kind="masks" (N, H, W).

        Raises InputError where it is missing, damaged, or was made anew since `load`:
        its checksum is compared, which reads it once in every process.
        """
        name = f"{kind}_{size_name(size)}.npy"
        if name not in self.manifest["checksums"]:
            known = ", ".join(self.manifest["settings"]["sizes"])
            found = f"{kind} of {size_name(size)} were not prepared"
            raise InputError(f"{found}; there are: {known}. Add the size to chapter 1.")
        return np.load(_intact(self.folder, self.manifest, name), mmap_mode="r")

    def subset(self, split: str, size: Size, classes=None) -> ImageSet:
        """The products of one set (`train`, `validation`, `test`), or some classes.

        Raises InputError for a set without any image.
        """
        chosen = self.index["split"] == split
        if classes is not None:
            chosen &= self.index["label"].isin(classes)
        labels = self.index["label"].to_numpy("int64")
        rows = np.flatnonzero(chosen)
        if classes is None and not len(rows):
            raise InputError(
                f"the {split} set has no image: the {len(self.index)} images are too "
                "few, or too many are equal. Prepare a larger catalogue in chapter 1."
            )
        return ImageSet(self.array(size), rows, labels[rows])

    def checksum(self, size: Size) -> str:
        """SHA-256 of the images of one size, their classes and the split."""
        images = self.manifest["checksums"][f"images_{size_name(size)}.npy"]
        table = self.index[["id", "label", "split"]].to_csv(index=False)
        return hashlib.sha256((images + table).encode()).hexdigest()


def load(folder: Path) -> Prepared:
    """Open what `prepare` finished. Raises InputError for any other folder.

    Taught in: chapter 2
    """
    manifest = read_sealed(folder / "manifest.json")
    index = pd.read_parquet(_intact(folder, manifest, "index.parquet"))
    return Prepared(folder, index, manifest)


def _intact(folder: Path, manifest: dict, name: str) -> Path:
    """Path of a file that is as the manifest says. Raises InputError for any other."""
    if manifest.get("settings", {}).get("version") == VERSION:
        with contextlib.suppress(OSError):
            if artifacts.checksum(folder / name) == manifest["checksums"][name]:
                return folder / name
    raise InputError(
        f"{folder} is not a finished preparation of this version ({name} is missing, "
        "damaged, or newer than what was loaded): restart the notebook; if that does "
        "not help, delete the folder and run chapter 01_data_preparation again."
    )


# --- some images of a set -------------------------------------------------------------


def random_subset(data: ImageSet, count: int, seed: int = 0) -> ImageSet:
    """`count` images sampled from the whole set, in sampled order; all if it has fewer.

    Rows lie in the order of ids, and ids cluster by class: the first images of a set
    are no sample of it.
    Taught in: chapter 3
    """
    return _take(data, np.random.default_rng(seed).permutation(len(data.rows))[:count])


def balanced_subset(data: ImageSet, count: int, seed: int = 0) -> ImageSet:
    """About `count` sampled images, as many of each class where it has them.

    Taught in: chapter 2b
    """
    order = np.random.default_rng(seed).permutation(len(data.rows))
    each = math.ceil(count / len(CLASS_NAMES))
    labels = data.labels[order]
    chosen = [order[labels == label][:each] for label in range(len(CLASS_NAMES))]
    return _take(data, np.concatenate(chosen))


def stratified_subset(data: ImageSet, fraction: float, seed: int = 0) -> ImageSet:
    """A sampled fraction of each class, at least one image.

    With one seed, larger fractions hold the smaller ones.
    Taught in: chapter 8
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in range(len(CLASS_NAMES)):
        rows = rng.permutation(np.flatnonzero(data.labels == label))
        chosen.append(rows[: max(1, round(fraction * len(rows)))])
    return _take(data, np.sort(np.concatenate(chosen)))


def _take(data: ImageSet, chosen: np.ndarray) -> ImageSet:
    return data._replace(rows=data.rows[chosen], labels=data.labels[chosen])


# --- batches --------------------------------------------------------------------------


def batches(
    data: ImageSet,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    epoch: int | None = None,
    seed: int = 0,
    flip: bool = False,
    crop: int = 0,
    dtype: torch.dtype = torch.float32,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (pixels, labels): normalized (B, 3, H, W) in channels_last, int64 (B,).

    dtype: of the pixels. epoch: None keeps the order and changes nothing; a number
    shuffles, and then `flip` mirrors half of the images and `crop` takes each from a
    window moved by up to that many pixels, edges repeated (as torchvision's RandomCrop
    with padding). What happens to a sample depends only on (seed, epoch, sample): the
    same in one process and in many. Shuffled ones are those of `batch_bounds`.
    first_batch: where to begin. rank, world_size: this process's images of each batch,
    at least one. Of a set that was moved by `to_device` they are gathered there.
    Taught in: chapter 2
    """
    device, count = torch.device(device), len(data.rows)
    training = epoch is not None
    rng = torch.Generator().manual_seed(epoch_seed(seed, epoch or 0))
    order = torch.randperm(count, generator=rng) if training else torch.arange(count)
    mirrored = torch.rand(count, generator=rng) < (0.5 if flip and training else 0)
    reach = crop if training else 0
    shifts = torch.randint(-reach, reach + 1, (count, 2), generator=rng)
    rows, labels = torch.from_numpy(data.rows), torch.from_numpy(data.labels)
    gather = _gather
    if isinstance(data.images, torch.Tensor):  # one copy an epoch, not one a batch
        gather = _gather_on_device
        order, mirrored, shifts = (x.to(device) for x in (order, mirrored, shifts))
        rows, labels = rows.to(device), labels.to(device)
    bounds = batch_bounds(count, batch_size, fold=training)
    for start, end in bounds[first_batch:]:
        batch = order[start:end]
        mine = batch[rank::world_size] if rank < len(batch) else batch[-1:]
        pixels = gather(data.images, rows[mine], shifts[mine], mirrored[mine])
        yield normalize(pixels.to(device), dtype), labels[mine].to(device)


def batch_bounds(
    count: int, batch_size: int, *, fold: bool = True
) -> list[tuple[int, int]]:
    """Where each batch of `count` images starts and ends.

    fold: one image that is left over belongs to the batch before: BatchNorm may refuse
    a batch of one.
    Taught in: chapter 2
    """
    starts = list(range(0, count, batch_size))
    if fold and len(starts) > 1 and count % batch_size == 1:
        starts.pop()
    return list(itertools.pairwise([*starts, count]))


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed from two numbers, such as a seed and the number of an epoch or step.

    Taught in: chapter 2
    """
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _gather(images: np.ndarray, rows, shifts, mirrored) -> torch.Tensor:
    """Copy rows of (N, H, W, 3), each seen through a window moved (down, right).

    Beyond an edge the edge is repeated. A mirrored image's window moves to the left
    instead, so that `right` means the same in what the network sees.
    """
    import cv2

    height, width = images.shape[1:3]
    batch = np.empty((len(rows), height, width, 3), np.uint8)
    reach = int(shifts.abs().max()) if len(rows) else 0
    changes = zip(rows.tolist(), shifts.tolist(), mirrored.tolist(), strict=True)
    for place, (row, (down, right), mirror) in enumerate(changes):
        image = images[row]
        if reach:
            image = cv2.copyMakeBorder(image, *[reach] * 4, cv2.BORDER_REPLICATE)
            top, left = reach + down, reach + (-right if mirror else right)
            image = image[top : top + height, left : left + width]
        if mirror:
            cv2.flip(image, 1, dst=batch[place])
        else:
            batch[place] = image
    return torch.from_numpy(batch)


def _gather_on_device(images, rows, shifts, mirrored) -> torch.Tensor:
    """What `_gather` does, on a GPU: one look-up of every pixel by its place."""
    height, width = images.shape[1:3]
    y = torch.arange(height, device=images.device) + shifts[:, :1]  # (B, H)
    x = torch.arange(width, device=images.device) + shifts[:, 1:]  # (B, W)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    x = torch.where(mirrored[:, None], width - 1 - x, x)
    return images[rows[:, None, None], y[:, :, None], x[:, None, :]]


def to_device(data: ImageSet, device: torch.device) -> ImageSet:
    """The set with its images in a GPU's memory, if they fit in half of what is free.

    Taught in: chapter 2
    """
    if device.type != "cuda":
        return data
    free, _ = torch.cuda.mem_get_info(device)
    if len(data.rows) * data.images[:1].nbytes > free / 2:
        return data
    pixels = torch.from_numpy(data.images[data.rows]).to(device)
    return from_array(pixels, data.labels)


# --- pixels ---------------------------------------------------------------------------


def normalize(pixels: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """uint8 (B, H, W, 3) to `dtype` (B, 3, H, W) in channels_last, by MEAN and STD.

    Works in blocks that stay in the processor's cache, so that memory is written once.
    Taught in: chapter 2
    """
    count, height, width, _ = pixels.shape
    scale, shift = _scale_and_shift(pixels.device, width)
    result = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
    lines = pixels.reshape(count, height, 3 * width)
    target = result.view(count, height, 3 * width)
    on_cpu = pixels.device.type == "cpu"
    block = max(1, CACHE // (3 * height * width)) if on_cpu else max(1, count)
    for start in range(0, count, block):
        part = slice(start, start + block)
        torch.addcmul(shift, lines[part].float(), scale, out=target[part])
    return result.permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _scale_and_shift(device: torch.device, width: int) -> tuple:
    """Factor and summand of each number in a line of pixels, (3 width,) each."""
    mean, std = (torch.tensor(values, device=device) for values in (MEAN, STD))
    return (1 / (255 * std)).repeat(width), (-mean / std).repeat(width)


def denormalize(pixels: torch.Tensor) -> torch.Tensor:
    """float (B, 3, H, W) as `normalize` made it, back to uint8 (B, H, W, 3).

    Taught in: chapter 2
    """
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    grey_levels = (pixels.permute(0, 2, 3, 1) * std + mean) * 255
    return grey_levels.round().clamp(0, 255).to(torch.uint8)


def white(pixels: torch.Tensor) -> torch.Tensor:
    """Normalized white, this catalogue's background, in the shape of `pixels`.

    Taught in: chapter 3
    """
    point = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8, device=pixels.device)
    return normalize(point).to(pixels.dtype).expand_as(pixels)


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images (B, 3, H, W) through a Gaussian of `sigma` pixels, cut off at twice that.

    In float32: in bfloat16 a CPU was seen not to come back from a 21x21 kernel.
    Taught in: chapter 4
    """
    from torchvision.transforms.functional import gaussian_blur

    with torch.autocast(pixels.device.type, enabled=False):
        side = 2 * round(2 * sigma) + 1
        blurred = gaussian_blur(pixels.float(), [side, side], [sigma, sigma])
    return blurred.to(pixels.dtype)
