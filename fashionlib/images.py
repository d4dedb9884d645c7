"""Pictures: decoded and resized once into memory-mapped uint8 arrays, then fed to a device in batches.

    folder = images.prepare("fashion-product-images-small.zip", artifacts.folder("small") / "prepared", sizes=[64])
    prepared = images.load(folder)
    train = prepared.subset("train", 64)
    for pixels, labels in images.batches(train, batch_size=128, device=device, epoch=0, flip=True, crop=4): ...

The arrays are NHWC uint8: on disk that *is* torch's channels_last, so a batch is one gather and a permute without a
copy; normalising, flipping and cropping are operations on the whole batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fashionlib import artifacts, catalogue, runtime
from fashionlib.runtime import InputError

if TYPE_CHECKING:
    import torch

VERSION = 1  # of the prepared layout: raise it when prepared arrays would differ
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB in [0, 1]: what torchvision's weights expect
FITS = ("squash", "pad", "crop")
CHUNK = 256  # products a worker takes at a time
Size = int | Sequence[int]  # side of a square, or (height, width)


def size_name(size: Size) -> str:
    """`224x224` for 224, `80x60` for (80, 60): height x width, as in the names of the arrays.

    Taught in: chapter 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height}x{width}"


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(data: bytes, smallest: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """Decode to an RGB picture of at least twice `smallest` (height, width), where the file has that many pixels.

    A large JPEG is scaled down by the decoder itself (DCT scaling). Greyscale, CMYK and palette pictures become RGB;
    EXIF rotation is applied. Returns the picture and its original, upright (width, height).
    Raises OSError, ValueError or SyntaxError for a file that cannot be read. Taught in: chapter 1.
    """
    with Image.open(io.BytesIO(data)) as picture:
        sideways = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # width and height change places
        original = picture.size[::-1] if sideways else picture.size
        height, width = smallest[::-1] if sideways else smallest
        picture.draft("RGB", (2 * width, 2 * height))
        upright = ImageOps.exif_transpose(picture)
        return upright.convert("RGB"), original


def resize(picture: Image.Image, size: tuple[int, int], fit: str = "squash") -> np.ndarray:
    """Antialiased (Lanczos) uint8 array (H, W, 3) of `size` = (height, width).

    fit: `squash` ignores the aspect ratio, as the study did; `pad` keeps it and adds white; `crop` keeps it and cuts.
    Taught in: chapter 1.
    """
    height, width = size
    if fit == "pad":
        resized = ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color="white")
    elif fit == "crop":
        resized = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    else:
        resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def resize_mask(mask: Image.Image, size: tuple[int, int], fit: str = "squash") -> np.ndarray:
    """Nearest-neighbour uint8 array (H, W) of a mask: its values are names, not amounts. Padding is background.

    Taught in: chapter 1.
    """
    height, width = size
    if fit == "pad":
        return np.asarray(ImageOps.pad(mask, (width, height), Image.Resampling.NEAREST, color=0))
    if fit == "crop":
        return np.asarray(ImageOps.fit(mask, (width, height), Image.Resampling.NEAREST))
    return np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))


# --- preparation ------------------------------------------------------------------------------------------------------


def prepare(
    source: str | Path, folder: Path, *, sizes: Sequence[Size], fit: str = "squash", seed: int = 0, workers: int = -1
) -> Path:
    """Decode every Men/Women product of `source` once, write each size, the index and the manifest into `folder`.

    source: what `catalogue.open_source` takes. sizes: squares or (height,
    width). workers: threads, -1 for one per core; joblib's Dask backend takes the same call to a cluster.
    A folder already prepared from the same source with the same settings is returned at once; an earlier result is
    replaced only by a finished one. A file that cannot be read is listed in the manifest and left out.
    Raises InputError for settings or a source that cannot be used. Taught in: chapter 1.
    """
    shapes = _shapes(sizes, fit)
    opened = catalogue.open_source(source)
    settings = {"version": VERSION, "sizes": [size_name(shape) for shape in shapes], "fit": fit, "seed": seed}
    settings |= {"source": opened.path.name, "source_fingerprint": opened.fingerprint()}
    if (folder / "manifest.json").exists() and load(folder).manifest["settings"] == settings:
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    manifest = _prepare_into(partial, opened, shapes, fit, seed, workers)
    artifacts.write_json(partial / "manifest.json", {"settings": settings, **manifest})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _shapes(sizes: Sequence[Size], fit: str) -> list[tuple[int, int]]:
    """(height, width) of each size, checked."""
    if fit not in FITS:
        raise InputError(f"fit must be one of {', '.join(FITS)}; found {fit!r}.")
    shapes = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise InputError(f"sizes must be sides like 224 or pairs [height, width], at least one; found {sizes!r}.")
    return shapes


def _prepare_into(
    folder: Path, source: catalogue.Source, shapes: list[tuple[int, int]], fit: str, seed: int, workers: int
) -> dict:
    """Write arrays and index; returns counts, unreadable files and checksums for the manifest."""
    table, malformed = catalogue.read_styles(source)
    files, masks = source.members("images", ".jpg"), source.members("masks", ".png")
    table["label"] = catalogue.labels(table)
    products = table[(table["label"] >= 0) & table["id"].isin(files.keys())].sort_values("id", ignore_index=True)
    if products.empty:
        raise InputError(f"source {source.path} has no Men or Women product with an image.")
    arrays = {f"images_{size_name(shape)}": (*shape, 3) for shape in shapes}
    arrays |= {f"masks_{size_name(shape)}": shape for shape in shapes if masks}
    for name, shape in arrays.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (len(products), *shape)).flush()

    started = time.perf_counter()
    members = [(files[i], masks.get(i)) for i in products["id"]]
    facts = _decode_all(folder, source, members, shapes, fit, workers)
    seconds = time.perf_counter() - started
    facts = pd.DataFrame(facts, columns=["width", "height", "digest", "problem"])
    readable = facts["problem"].isna()
    if not readable.any():
        raise InputError(
            f"source {source.path}: none of the {len(members)} pictures can be read ({facts['problem'][0]})."
        )
    if not readable.all():
        _drop_rows(folder, arrays, readable.to_numpy())
    index = pd.concat([products, facts], axis=1)[readable].reset_index(drop=True)
    index = index.astype({"width": "int32", "height": "int32"})
    index["group"] = catalogue.duplicate_groups(index["id"], index["digest"])
    index["split"] = catalogue.split(index["label"], index["group"], seed=seed)
    first = ["id", "label", "split", "group", "width", "height"]
    index[[*first, *catalogue.COLUMNS[1:]]].to_parquet(folder / "index.parquet", index=False)
    unreadable = [
        {"id": int(i), "reason": reason}
        for i, reason in zip(products["id"][~readable], facts["problem"][~readable], strict=True)
    ]
    counts = {
        "rows": len(table),
        "malformed_rows": malformed,
        "images": len(files),
        "rows_without_image": int((~table["id"].isin(files.keys())).sum()),
        "images_without_row": len(files.keys() - set(table["id"])),
        "unreadable_images": len(unreadable),
        "products": len(index),
        "duplicate_groups": int((index["group"].value_counts() > 1).sum()),
        "duplicate_label_conflicts": catalogue.label_conflicts(index),
        "class_counts": np.bincount(index["label"], minlength=6).tolist(),
        "split_counts": {name: int((index["split"] == name).sum()) for name in catalogue.SPLITS},
        "nested_copies_ignored": source.ignored_copies,
        "images_per_second": round(len(products) / seconds, 1),
        "source": source.path.name,
        "drawn": bool(masks),
    }
    return {
        "counts": counts,
        "unreadable": unreadable,
        "sha256": {name: _sha256(folder / f"{name}.npy") for name in arrays},
    }


def _decode_all(folder: Path, source, members: list, shapes: list, fit: str, workers: int) -> list[tuple]:
    """Decode in chunks on all cores (Pillow releases the interpreter's lock); each worker writes its own rows."""
    from joblib import Parallel, delayed

    chunks = range(0, len(members), CHUNK)
    tasks = (delayed(_decode_chunk)(folder, source, members[i : i + CHUNK], i, shapes, fit) for i in chunks)
    facts = []
    with runtime.progress(description="decoding", total=len(members), unit="img") as bar:
        for part in Parallel(n_jobs=workers, prefer="threads", return_as="generator")(tasks):
            facts += part
            bar.update(len(part))
    return facts


def _decode_chunk(folder: Path, source, members: list, first: int, shapes: list, fit: str) -> list[tuple]:
    """Write rows first, first + 1, ...; returns (width, height, digest, problem) of each."""
    images = {shape: np.load(folder / f"images_{size_name(shape)}.npy", mmap_mode="r+") for shape in shapes}
    largest = tuple(max(shape[axis] for shape in shapes) for axis in (0, 1))
    facts = []
    for row, (name, mask_name) in enumerate(members, start=first):
        try:
            picture, (width, height) = decode(source.read(name), largest)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            facts.append((0, 0, "", f"{type(error).__name__}: {error}"))
            continue
        for shape in shapes:
            images[shape][row] = resize(picture, shape, fit)
        if mask_name:
            _write_masks(folder, source.read(mask_name), row, shapes, fit)
        facts.append((width, height, hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest(), None))
    return facts


def _write_masks(folder: Path, data: bytes, row: int, shapes: list, fit: str) -> None:
    with Image.open(io.BytesIO(data)) as mask:
        for shape in shapes:
            array = np.load(folder / f"masks_{size_name(shape)}.npy", mmap_mode="r+")
            array[row] = resize_mask(mask, shape, fit)


def _drop_rows(folder: Path, arrays: dict[str, tuple], keep: np.ndarray) -> None:
    """Rewrite the arrays without the rows of unreadable files, a chunk at a time."""
    rows = np.flatnonzero(keep)
    for name, shape in arrays.items():
        path, kept = folder / f"{name}.npy", folder / f"{name}.kept.npy"
        old = np.load(path, mmap_mode="r")
        new = np.lib.format.open_memmap(kept, "w+", np.uint8, (len(rows), *shape))
        for start in range(0, len(rows), CHUNK):
            new[start : start + CHUNK] = old[rows[start : start + CHUNK]]
        new.flush()
        kept.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- prepared data ----------------------------------------------------------------------------------------------------


class ImageSet(NamedTuple):
    """Some rows of a prepared array: images uint8 (N, H, W, 3), rows int64 (M,) into it, labels int64 (M,).

    Taught in: chapter 2.
    """

    images: np.ndarray
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
        """Memory-mapped uint8: images (N, H, W, 3), or with kind="masks" (N, H, W). Raises InputError if not there."""
        path = self.folder / f"{kind}_{size_name(size)}.npy"
        if not path.exists():
            there = ", ".join(self.manifest["settings"]["sizes"])
            raise InputError(
                f"{kind} of {size_name(size)} were not prepared; there are: {there}. Add the size to chapter 1."
            )
        return np.load(path, mmap_mode="r")

    def subset(self, split: str, size: Size, classes: Sequence[int] | None = None) -> ImageSet:
        """The products of one part (`train`, `validation`, `test`), of some classes only where `classes` is given."""
        chosen = self.index["split"] == split
        if classes is not None:
            chosen &= self.index["label"].isin(classes)
        rows = np.flatnonzero(chosen)
        return ImageSet(self.array(size), rows, self.index["label"].to_numpy("int64")[rows])

    def checksum(self, size: Size) -> str:
        """SHA-256 of the pictures of one size, their classes and the split: names the data in a checkpoint."""
        digest = hashlib.sha256(self.manifest["sha256"][f"images_{size_name(size)}"].encode())
        digest.update(self.index[["id", "label", "split"]].to_csv(index=False).encode())
        return digest.hexdigest()


def load(folder: Path) -> Prepared:
    """Open what `prepare` finished. Raises InputError for an unfinished or damaged folder. Taught in: chapter 2."""
    folder = Path(folder)
    with contextlib.suppress(OSError, ValueError):
        manifest = json.loads((folder / "manifest.json").read_text())
        return Prepared(folder, pd.read_parquet(folder / "index.parquet"), manifest)
    raise InputError(f"{folder} is not a finished preparation: delete it and run chapter 01_data_preparation again.")


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
    drop_last: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (pixels, labels): float32 (B, 3, H, W) in channels_last, normalised with MEAN and STD; int64 (B,).

    epoch: None for the given order without augmentation; a number shuffles, and then `flip` mirrors half of the
    pictures and `crop` shifts each by up to that many pixels (edges repeated). What happens to a sample depends only
    on (seed, epoch, sample), so that it is the same on one process and on many. Taught in: chapter 2.
    """
    import torch

    count = len(data.rows)
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch or 0))
    order = torch.arange(count) if epoch is None else torch.randperm(count, generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip and epoch is not None else 0)
    reach = crop if epoch is not None else 0
    shifts = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
    labels = torch.from_numpy(data.labels)
    end = count - count % batch_size if drop_last else count
    for start in range(0, end, batch_size):
        chosen = order[start : min(start + batch_size, end)]
        pixels = torch.from_numpy(data.images[data.rows[chosen.numpy()]]).to(device)  # (B, H, W, 3) uint8
        if epoch is not None and (flip or crop):
            pixels = _move(pixels, shifts[chosen].to(device), mirrored[chosen].to(device))
        yield normalise(pixels), labels[chosen].to(device)


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed from two numbers, so that an epoch's chance depends on both and on nothing before it.

    Taught in: chapter 2.
    """
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _move(pixels: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Shift and mirror each picture of (B, H, W, 3) in one gather; indices beyond an edge repeat it."""
    import torch

    count, height, width, _ = pixels.shape
    rows = torch.arange(height, device=pixels.device) + shifts[:, :1]  # (B, H)
    columns = torch.arange(width, device=pixels.device) + shifts[:, 1:]  # (B, W)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    samples = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[samples, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) with ImageNet's mean and deviation, channels_last, without a copy.

    Taught in: chapter 2.
    """
    import torch

    mean, std = (255 * torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return pixels.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def denormalise(pixels: torch.Tensor) -> torch.Tensor:
    """float (B, 3, H, W) as `normalise` made it, back to uint8 (B, H, W, 3).

    Taught in: chapter 2.
    """
    import torch

    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return ((pixels.permute(0, 2, 3, 1) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
