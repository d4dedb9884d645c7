"""The catalogue's pictures, decoded once into memory-mapped uint8 arrays, with an index and a manifest.

    folder = preparation.prepare("fashion-product-images-small.zip", artifacts.folder("small") / "prepared", sizes=[64])
    prepared = images.load(folder)

Work goes on in `<folder>.partial`, a chunk of products at a time, by all cores. Killed at any moment, it is taken up by
the next call and ends with the same bytes. An earlier result is replaced only by a finished one.
joblib's Dask backend takes the same call to a cluster whose workers see the same files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fashionlib import artifacts, catalogue, decoding, duplicates, runtime, sources
from fashionlib.images import Size, size_name
from fashionlib.runtime import InputError

VERSION = 2  # of the prepared layout: raise it when prepared arrays or the split would differ
CHUNK = 128  # products a worker takes at a time
FACTS = ["width", "height", "digest", "problem"]  # of a file: original size, SHA-256 of its pixels, or what is wrong


def prepare(
    source: str | Path,
    folder: Path,
    *,
    sizes: Sequence[Size],
    fit: str = "squash",
    seed: int = 0,
    group_names: bool = False,
    previous: str | Path = "",
    workers: int = -1,
) -> Path:
    """Decode every Men/Women product of `source` once, write each size, the index and the manifest into `folder`.

    source: what `sources.open_source` takes. sizes: squares or (height, width), pixels. fit: `decoding.resize`.
    group_names: keep products of one exact name in the same part, too. previous: index.parquet of an earlier
    preparation whose products keep their part. workers: threads, -1 for one per core.
    A folder already prepared from the same source with the same settings is returned at once. A file that cannot be
    read is listed in the manifest and left out.
    Raises InputError for settings or a source that cannot be used, a folder that cannot be written, a full disk.
    Taught in: chapter 1.
    """
    shapes = _shapes(sizes, fit)
    old_parts = _old_parts(previous)
    opened = sources.open_source(source)
    settings = {"version": VERSION, "sizes": [size_name(shape) for shape in shapes], "fit": fit, "seed": seed}
    settings |= {"group_names": group_names, "source": opened.path.name, "source_fingerprint": opened.fingerprint()}
    settings |= {"previous": _sha256(Path(previous)) if previous else None}
    if _settings(folder / "manifest.json") == settings:
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    with _plain_errors(folder), _alone(folder):
        if _settings(folder / "manifest.json") == settings:  # another process was faster
            return folder
        if _settings(partial / "manifest.json") != settings:
            _begin(partial, folder, settings)
            products, counts = _products(opened)
            job = _Job(partial, opened.reader(), tuple(shapes), fit, masks=bool(counts["drawn"]))
            _allocate(job, len(products))
            facts, speed = _decode(job, products, workers)
            _check_unchanged(source, opened, partial)
            manifest = _finish(job, products, facts, settings, old_parts)
            manifest["counts"] = counts | manifest["counts"] | {"images_per_second": speed}
            artifacts.write_json(partial / "manifest.json", {"settings": settings, **manifest})
        _replace(folder, partial)
    return folder


def _shapes(sizes: Sequence[Size], fit: str) -> list[tuple[int, int]]:
    """(height, width) of each size, checked."""
    if fit not in decoding.FITS:
        raise InputError(f"fit must be one of {', '.join(decoding.FITS)}; found {fit!r}.")
    shapes = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise InputError(f"sizes must be sides like 224 or pairs [height, width], at least one; found {sizes!r}.")
    return shapes


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know: where to write, where to read, and the sizes to make."""

    folder: Path
    source: sources.Source
    shapes: tuple[tuple[int, int], ...]  # (height, width)
    fit: str
    masks: bool  # a drawn catalogue has ground truth beside its pictures

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of one row of every array."""
        pictures = {f"images_{size_name(shape)}": (*shape, 3) for shape in self.shapes}
        masks = {f"masks_{size_name(shape)}": shape for shape in self.shapes if self.masks}
        return pictures | masks | {"thumbnails": (*duplicates.THUMBNAIL, 3)}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def _products(source: sources.Source) -> tuple[pd.DataFrame, dict]:
    """The Men/Women products that have a file, in the order of their ids, with the members to read; and the counts."""
    table, malformed = catalogue.read_styles(source)
    files, masks = source.members("images", ".jpg"), source.members("masks", ".png")
    table["label"] = catalogue.labels(table)
    products = table[(table["label"] >= 0) & table["id"].isin(files.keys())].sort_values("id", ignore_index=True)
    if products.empty:
        raise InputError(f"source {source.path} has no Men or Women product with an image.")
    products["file"], products["mask"] = products["id"].map(files), [masks.get(i) for i in products["id"]]
    counts = {
        "rows": len(table),
        "malformed_rows": malformed,
        "images": len(files),
        "rows_without_image": int((~table["id"].isin(files.keys())).sum()),
        "images_without_row": len(files.keys() - set(table["id"])),
        "nested_copies_ignored": source.ignored_copies,
        "source": source.path.name,
        "drawn": bool(masks),
    }
    return products, counts


def _check_unchanged(source: str | Path, opened: sources.Source, partial: Path) -> None:
    if sources.open_source(source).fingerprint() != opened.fingerprint():
        shutil.rmtree(partial)
        raise InputError(f"source {opened.path} was changed while it was read: run again when it is complete.")


# --- decoding ---------------------------------------------------------------------------------------------------------


def _allocate(job: _Job, count: int) -> None:
    """Reserve the space of all arrays: a full disk is an error now, not a crash of the memory map later."""
    if (job.folder / "facts").exists():
        return
    try:
        for name, shape in job.arrays().items():
            np.lib.format.open_memmap(job.path(name), "w+", np.uint8, (count, *shape))
            with job.path(name).open("r+b") as file:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, job.path(name).stat().st_size)
        (job.folder / "facts").mkdir()
    except OSError:
        shutil.rmtree(job.folder)  # gives the space back; nothing has been decoded yet
        raise


def _decode(job: _Job, products: pd.DataFrame, workers: int) -> tuple[pd.DataFrame, float]:
    """Decode what is not decoded yet, in chunks on all cores (the decoder releases the interpreter's lock).

    Returns what was found in each file, and images/s over all chunks, those of an earlier, killed call included.
    """
    from joblib import Parallel, delayed, effective_n_jobs

    members = list(zip(products["file"], products["mask"], strict=True))
    chunks = {first: job.folder / "facts" / f"{first:09d}.json" for first in range(0, len(members), CHUNK)}
    todo = [first for first, path in chunks.items() if not path.exists()]
    done = len(members) - sum(len(members[first : first + CHUNK]) for first in todo)
    tasks = (delayed(_decode_chunk)(job, members[first : first + CHUNK], first) for first in todo)
    with runtime.progress(None, "decoding", total=len(members), initial=done, unit="img") as bar:
        for count in Parallel(n_jobs=workers, prefer="threads", return_as="generator")(tasks):
            bar.update(count)
    notes = [json.loads(path.read_text()) for path in chunks.values()]
    seconds = sum(note["seconds"] for note in notes) / min(effective_n_jobs(workers), len(chunks))
    facts = pd.DataFrame([fact for note in notes for fact in note["facts"]], columns=FACTS)
    return facts.astype({"width": "int32", "height": "int32"}), round(len(members) / seconds, 1)


def _decode_chunk(job: _Job, members: list, first: int) -> int:
    """Write rows first, first + 1, ... of every array, then the note that says so; returns the number of rows."""
    started = time.perf_counter()
    arrays = {name: np.load(job.path(name), mmap_mode="r+") for name in job.arrays()}
    largest = tuple(max(shape[axis] for shape in job.shapes) for axis in (0, 1))
    facts = []
    for row, (name, mask_name) in enumerate(members, start=first):
        try:
            picture, (width, height) = decoding.decode(job.source.read(name), largest)
            mask = decoding.decode_mask(job.source.read(mask_name)) if mask_name else None
        except decoding.UNREADABLE as error:
            facts.append((0, 0, "", f"{type(error).__name__}: {error}"))
            continue
        for shape in job.shapes:
            arrays[f"images_{size_name(shape)}"][row] = decoding.resize(
                picture, shape, job.fit, original=(width, height)
            )
            if mask is not None:
                arrays[f"masks_{size_name(shape)}"][row] = decoding.resize_mask(mask, shape, job.fit)
        arrays["thumbnails"][row] = decoding.resize(picture, duplicates.THUMBNAIL, original=(width, height))
        facts.append((width, height, decoding.digest(picture, (width, height)), None))
    seconds = time.perf_counter() - started
    artifacts.write_json(job.folder / "facts" / f"{first:09d}.json", {"seconds": seconds, "facts": facts})
    return len(members)


# --- index and manifest -----------------------------------------------------------------------------------------------


def _finish(job: _Job, products: pd.DataFrame, facts: pd.DataFrame, settings: dict, old: pd.Series | None) -> dict:
    """Leave out what cannot be read, find duplicates, split, write the index; returns the manifest's entries."""
    readable = facts["problem"].isna()
    if not readable.any():
        raise InputError(f"none of the {len(facts)} pictures of the source can be read ({facts['problem'][0]}).")
    for name, shape in job.arrays().items():
        _keep_rows(job.path(name), np.flatnonzero(readable), len(facts), shape)
    index = pd.concat([products, facts], axis=1)[readable].reset_index(drop=True)
    index = _group_and_split(index, job.path("thumbnails"), settings, old)
    index.to_parquet(job.folder / "index.parquet", index=False)
    unreadable = pd.DataFrame({"id": products["id"], "reason": facts["problem"]})[~readable]
    counts = {
        "unreadable_images": len(unreadable),
        "products": len(index),
        "duplicate_groups": int((index["exact_group"].value_counts() > 1).sum()),
        "duplicate_label_conflicts": duplicates.label_conflicts(index["exact_group"], index["label"]),
        "near_duplicate_groups": int((index["near_group"].value_counts() > 1).sum()),
        "near_duplicate_label_conflicts": duplicates.label_conflicts(index["near_group"], index["label"]),
        "class_counts": np.bincount(index["label"], minlength=6).tolist(),
        "split_counts": {name: int((index["split"] == name).sum()) for name in catalogue.SPLITS},
        "set_aside": int((index["split"] == catalogue.ASIDE).sum()),
    }
    return {
        "counts": counts,
        "unreadable": unreadable.to_dict("records"),
        "set_aside": index.loc[index["split"] == catalogue.ASIDE, "id"].tolist(),
        "sha256": {name: _sha256(job.path(name)) for name in job.arrays() if name != "thumbnails"},
    }


def _group_and_split(index: pd.DataFrame, thumbnails: Path, settings: dict, old: pd.Series | None) -> pd.DataFrame:
    """Add the groups and the split to the rows; returns the columns of index.parquet."""

    def read(rows: np.ndarray) -> np.ndarray:
        return np.load(thumbnails, mmap_mode="r")[rows]  # mapped for one read: its pages do not pile up

    index["perceptual_hash"] = duplicates.perceptual_hashes(read, len(index))
    exact = duplicates.equal_pairs(index["digest"])
    near = np.concatenate([exact, duplicates.near_pairs(index["perceptual_hash"].to_numpy(), read)])
    pairs = near
    if settings["group_names"]:
        pairs = np.concatenate([near, duplicates.equal_pairs(index["productDisplayName"])])
    index["exact_group"], index["near_group"] = (
        duplicates.groups(index["id"], exact),
        duplicates.groups(index["id"], near),
    )
    index["group"] = duplicates.groups(index["id"], pairs)
    parts = (index["id"].map(old) if old is not None else pd.Series(pd.NA, index.index)).astype("string")
    aside = duplicates.bridges(index["group"], parts)
    if aside.any():  # without them, the groups that they link are apart again
        index["group"] = duplicates.groups(index["id"], pairs[~aside[pairs].any(axis=1)])
    index["split"] = catalogue.split(index["label"], index["group"], seed=settings["seed"], previous=parts)
    index.loc[aside, "split"] = catalogue.ASIDE
    first = ["id", "label", "split", "group", "exact_group", "near_group", "perceptual_hash", "width", "height"]
    return index[[*first, *catalogue.COLUMNS[1:]]]


def _old_parts(previous: str | Path) -> pd.Series | None:
    """Part of each product, by id, of an earlier index.parquet."""
    if not previous:
        return None
    try:
        parts = pd.read_parquet(previous, columns=["id", "split"]).set_index("id")["split"]
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(
            f"previous must be the index.parquet of an earlier preparation; {previous}: {error}"
        ) from error
    return parts[parts.isin(list(catalogue.SPLITS))]


def _keep_rows(path: Path, rows: np.ndarray, count: int, shape: tuple[int, ...]) -> None:
    """Rewrite an array of `count` rows with some of them, a chunk at a time; done already where it has no more."""
    if len(rows) == count or len(np.load(path, mmap_mode="r")) == len(rows):
        return
    kept = path.with_suffix(".kept")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
    with kept.open("wb") as file:  # written, not mapped: a full disk is then an error, not a crash
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), CHUNK):
            file.write(np.load(path, mmap_mode="r")[rows[start : start + CHUNK]])
    kept.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- one at a time, resumable, and clear about what went wrong --------------------------------------------------------


def _settings(path: Path) -> dict | None:
    """The settings that a manifest (or the note of an unfinished preparation) was made with."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads(path.read_text())["settings"]


@contextlib.contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk and a folder that cannot be written into one line. What was finished stays as it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing(folder)).free / 2**20
            reason = f"the disk is full ({free:,.0f} MiB free): make room"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = (
                f"{error.filename or folder} cannot be written ({error.strerror}): change its mode or FASHION_BUILD"
            )
        else:
            raise
        raise InputError(
            f"{folder} was not prepared: {reason} and run again. Earlier results are as they were."
        ) from error


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare `folder`; the system frees the lock of a process that was killed."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name}: another process is preparing it; waiting for that")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _begin(partial: Path, folder: Path, settings: dict) -> None:
    """Make the folder to work in: an unfinished one with the same settings is taken up, another one is thrown away."""
    for path in (folder / "manifest.json", partial / "settings.json"):
        found = _settings(path)
        if found and found != settings:
            changed = ", ".join(key for key in settings if found.get(key) != settings[key])
            print(f"{path.parent.name}: {changed} changed since; preparing again")
    if _settings(partial / "settings.json") != settings:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        artifacts.write_json(partial / "settings.json", {"settings": settings})


def _replace(folder: Path, partial: Path) -> None:
    """Put the finished folder in the place of an earlier one, which stays until then."""
    shutil.rmtree(partial / "facts", ignore_errors=True)
    for name in ("settings.json", "thumbnails.npy"):
        (partial / name).unlink(missing_ok=True)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
