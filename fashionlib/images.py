"""Prepared pictures: memory-mapped uint8 arrays with their index, and batches of them on a device.

    prepared = images.load(artifacts.require("small", "prepared"))
    train = prepared.subset("train", 64)
    for pixels, labels in images.batches(train, batch_size=128, device=device, epoch=0, flip=True, crop=4): ...

The arrays are NHWC uint8: on disk that *is* torch's channels_last, so a batch is one gather and a permute without a
copy. Shifts and flips move whole lines of bytes; normalising writes the floats once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from fashionlib import runtime
from fashionlib.runtime import InputError

if TYPE_CHECKING:
    import torch

VERSION = (
    3  # of the prepared layout: raised when prepared arrays or the split would differ
)
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet, RGB in [0, 1]: what torchvision's weights expect
NEAR_WHITE = 240  # of 255: the background of most product photographs
CACHE = (
    2**18
)  # numbers that are normalised at a time: 1 MiB of float32, about one core's L2 cache
Size = int | Sequence[int]  # side of a square, or (height, width)


def size_name(size: Size) -> str:
    """`224x224` for 224, `80x60` for (80, 60): height x width, as in the names of the arrays.

    Taught in: chapter 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height}x{width}"


class ImageSet(NamedTuple):
    """Some rows of a prepared array: images uint8 (N, H, W, 3), rows int64 (M,) into it, labels int64 (M,).

    `resident` makes `images` a tensor in the memory of a device. Taught in: chapter 2.
    """

    images: np.ndarray | torch.Tensor
    rows: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made: `index` (one row per product, in the order of the arrays) and `manifest`.

    Taught in: chapter 1.
    """

    folder: Path
    index: pd.DataFrame
    manifest: dict

    def array(self, size: Size, kind: str = "images") -> np.ndarray:
        """Memory-mapped uint8: images (N, H, W, 3), or with kind="masks" (N, H, W).

        Raises InputError where it is not there, is damaged, or was made anew since `load`. Taught in: chapter 1.
        """
        name = f"{kind}_{size_name(size)}"
        if name not in self.manifest["checksums"]:
            there = ", ".join(self.manifest["settings"]["sizes"])
            raise InputError(
                f"{kind} of {size_name(size)} were not prepared; there are: {there}. Add the size to chapter 1."
            )
        with contextlib.suppress(
            OSError, ValueError
        ):  # a mapping of a file that is too short is a ValueError
            array = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            if (
                len(array) == len(self.index)
                and _manifest(self.folder) == self.manifest
            ):
                return array
        raise InputError(
            f"{name}.npy in {self.folder} is damaged or newer than what was loaded: restart the notebook, and if that "
            f"does not help delete the folder and run chapter 01_data_preparation again."
        )

    def subset(
        self, split: str, size: Size, classes: Sequence[int] | None = None
    ) -> ImageSet:
        """The products of one part (`train`, `validation`, `test`), of some classes only where `classes` is given.

        Taught in: chapter 2.
        """
        chosen = self.index["split"] == split
        if classes is not None:
            chosen &= self.index["label"].isin(classes)
        rows = np.flatnonzero(chosen)
        return ImageSet(
            self.array(size), rows, self.index["label"].to_numpy("int64")[rows]
        )

    def checksum(self, size: Size) -> str:
        """SHA-256 of the pictures of one size, their classes and the split: names the data in a checkpoint.

        Taught in: chapter 2.
        """
        digest = hashlib.sha256(
            self.manifest["checksums"][f"images_{size_name(size)}"].encode()
        )
        digest.update(self.index[["id", "label", "split"]].to_csv(index=False).encode())
        return digest.hexdigest()


def load(folder: Path) -> Prepared:
    """Open what `prepare` finished. Raises InputError for an unfinished or damaged folder. Taught in: chapter 2."""
    folder = Path(folder)
    with contextlib.suppress(OSError, ValueError, KeyError):
        manifest = _manifest(folder)
        if manifest["settings"]["version"] == VERSION:
            return Prepared(folder, pd.read_parquet(folder / "index.parquet"), manifest)
    raise InputError(
        f"{folder} is not a finished preparation of this version: delete it and run chapter 01_data_preparation again."
    )


def _manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(
    data: ImageSet,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    epoch: int | None = None,
    seed: int = 0,
    flip: bool = False,
    crop: int = 0,
    dtype: torch.dtype | None = None,
    first: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (pixels, labels): `dtype` (B, 3, H, W) in channels_last, normalised with MEAN and STD; int64 (B,).

    epoch: None for the given order without augmentation; a number shuffles, and then `flip` mirrors half of the
    pictures and `crop` shifts each by up to that many pixels (edges repeated). What happens to a sample depends only
    on (seed, epoch, sample), so that it is the same on one process and on many.
    first: the batch to begin with. process, processes: the share of each batch that this process gets, at least one
    picture. Pictures of a `resident` set are gathered on their device; others are read, on a GPU, while it computes.
    Taught in: chapter 2.
    """
    import torch

    device, count = torch.device(device), len(data.rows)
    if device.type == "cpu":
        runtime.keep_memory()  # a batch of 224 is 77 MB: fresh pages would take longer than the numbers
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch or 0))
    order = (
        torch.arange(count)
        if epoch is None
        else torch.randperm(count, generator=generator)
    )
    mirrored = torch.rand(count, generator=generator) < (
        0.5 if flip and epoch is not None else 0
    )
    reach = crop if epoch is not None else 0
    shifts = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
    rows, labels = torch.from_numpy(data.rows), torch.from_numpy(data.labels)
    on_device, pinned = isinstance(data.images, torch.Tensor), device.type == "cuda"
    if (
        on_device
    ):  # once an epoch: a copy a step would make the host wait for the device
        order, rows, labels, shifts, mirrored = (
            each.to(device) for each in (order, rows, labels, shifts, mirrored)
        )

    def pictures(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if on_device:
            return _gather_on_device(
                data.images, rows[chosen], shifts[chosen], mirrored[chosen]
            ), labels[chosen]
        place, moves = (
            rows[chosen].numpy(),
            (shifts[chosen].numpy(), mirrored[chosen].numpy()),
        )
        made = (
            torch.from_numpy(_gather(data.images, place, *moves, reach)),
            labels[chosen],
        )
        return tuple(
            (each.pin_memory() if pinned else each).to(device, non_blocking=pinned)
            for each in made
        )

    chosen = (
        order[start : start + batch_size]
        for start in range(first * batch_size, count, batch_size)
    )
    shares = (batch[min(process, len(batch) - 1) :: processes] for batch in chosen)
    read = _one_ahead if pinned and not on_device else map
    for pixels, answers in read(pictures, shares):
        yield normalise(pixels, dtype), answers


def _one_ahead(function: Callable, items: Iterator) -> Iterator:
    """`map`, with the next result made in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for item in items:
            coming = thread.submit(function, item)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def resident(data: ImageSet, device: torch.device) -> ImageSet:
    """The same set with its pictures in the GPU's memory, where they take at most half of what is free; else `data`.

    Taught in: chapter 2.
    """
    import torch

    size = len(data.rows) * int(np.prod(data.images.shape[1:]))
    if size > runtime.free_memory(device) / 2:
        return data
    pictures = torch.empty(
        (len(data.rows), *data.images.shape[1:]), dtype=torch.uint8, device=device
    )
    for start in range(
        0, len(data.rows), 1024
    ):  # never the whole set twice in the host's memory
        part = slice(start, start + 1024)
        pictures[part] = torch.from_numpy(data.images[data.rows[part]])
    return ImageSet(pictures, np.arange(len(data.rows)), data.labels)


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed from two numbers, so that an epoch's chance depends on both and on nothing before it.

    Taught in: chapter 2.
    """
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _gather(
    images: np.ndarray,
    rows: np.ndarray,
    shifts: np.ndarray,
    mirrored: np.ndarray,
    reach: int,
) -> np.ndarray:
    """Copy `rows` of (N, H, W, 3), each shifted by (down, right) = `shifts` and mirrored first where so asked.

    |shifts| <= reach; beyond an edge the edge is repeated. uint8 (B, H, W, 3). A shift is one copy of each line of
    pixels, from a place that many pixels further on in memory; what comes from the next line is then mended.
    """
    import cv2

    count, (height, width) = len(rows), images.shape[1:3]
    memory = np.empty(
        3 * (count * height * width + 2 * reach), np.uint8
    )  # room to read beyond both ends
    pixels = memory[3 * reach : memory.size - 3 * reach].reshape(
        count, height, width, 3
    )
    np.take(images, rows, axis=0, out=pixels, mode="clip")
    if reach:
        down, right = shifts[:, 0], np.where(mirrored, -shifts[:, 1], shifts[:, 1])
        lines = (
            np.clip(np.arange(height) + down[:, None], 0, height - 1)
            + height * np.arange(count)[:, None]
        )  # (B, H)
        windows = np.lib.stride_tricks.sliding_window_view(memory, 3 * width)
        pixels = windows[3 * (lines * width + right[:, None] + reach)].reshape(
            count, height, width, 3
        )
        for step in range(1, reach + 1):
            for there, edge, inner in (
                (right == step, np.s_[-step:], -step - 1),
                (right == -step, np.s_[:step], step),
            ):
                pixels[there, :, edge] = pixels[there, :, inner, None]
    for i in np.flatnonzero(mirrored):
        cv2.flip(pixels[i], 1, pixels[i])
    return pixels


def _gather_on_device(
    images: torch.Tensor,
    rows: torch.Tensor,
    shifts: torch.Tensor,
    mirrored: torch.Tensor,
) -> torch.Tensor:
    """What `_gather` does, where everything lies on a device: one gather of pixels by their place."""
    import torch

    height, width = images.shape[1:3]
    line = (torch.arange(height, device=images.device) + shifts[:, :1]).clamp(
        0, height - 1
    )  # (B, H)
    column = (torch.arange(width, device=images.device) + shifts[:, 1:]).clamp(
        0, width - 1
    )  # (B, W)
    column = torch.where(mirrored[:, None], width - 1 - column, column)
    return images[rows[:, None, None], line[:, :, None], column[:, None, :]]


def normalise(pixels: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """uint8 (B, H, W, 3) to `dtype` (float32 if None), (B, 3, H, W) in channels_last, with ImageNet's MEAN and STD.

    Works through the batch in blocks that stay in the processor's cache, so that memory is written once.
    Taught in: chapter 2.
    """
    import torch

    count, height, width, _ = pixels.shape
    scale, shift = _line(pixels.device, width)
    result = torch.empty(
        pixels.shape, dtype=dtype or torch.float32, device=pixels.device
    )
    lines, target = (
        array.reshape(count, height, 3 * width) for array in (pixels, result)
    )
    block = (
        max(1, CACHE // (3 * height * width))
        if pixels.device.type == "cpu"
        else max(count, 1)
    )
    for start in range(0, count, block):
        part = slice(start, start + block)
        torch.addcmul(shift, lines[part].float(), scale, out=target[part])
    return result.permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _line(device: torch.device, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a line of `width` pixels is multiplied by, and what is added; made once for a device."""
    import torch

    mean, std = (
        torch.tensor(values, device=device).repeat(width) for values in (MEAN, STD)
    )
    return 1 / (255 * std), -mean / std


def white(pixels: torch.Tensor) -> torch.Tensor:
    """Normalised white, the background of this catalogue, in the shape of `pixels` (B, 3, H, W).

    Taught in: chapter 3.
    """
    import torch

    point = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8, device=pixels.device)
    return normalise(point).to(pixels.dtype).expand_as(pixels)


def blurred(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Pictures (B, 3, H, W) through a Gaussian of `sigma` pixels, cut off at twice that.

    Always in float32: in bfloat16 a CPU was seen not to come back from a kernel of 21x21. Taught in: chapter 4.
    """
    import torch
    from torchvision.transforms.functional import gaussian_blur

    with torch.autocast(pixels.device.type, enabled=False):
        return gaussian_blur(
            pixels.float(), [2 * round(2 * sigma) + 1] * 2, [sigma, sigma]
        ).to(pixels.dtype)


def denormalise(pixels: torch.Tensor) -> torch.Tensor:
    """float (B, 3, H, W) as `normalise` made it, back to uint8 (B, H, W, 3).

    Taught in: chapter 2.
    """
    import torch

    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return (
        ((pixels.permute(0, 2, 3, 1) * std + mean) * 255)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )
