"""A catalogue to memory-mapped arrays, an index and a manifest; resumable.

    folder = prepare.prepare("fashion-product-images-small.zip", folder, sizes=[64])
    prepared = images.load(folder)

Every file is decoded once, by all cores, into every size that is asked for:

    images_64x64.npy   uint8 (N, H, W, 3)
    masks_64x64.npy    uint8 (N, H, W), of a synthetic catalogue
    index.parquet      N rows: id, label, split, groups, the columns of styles.csv
    manifest.json      settings, counts, unreadable files, checksums; written last

The work lies in `<folder>.partial` until one rename at the end. A chunk of products is
done when its note exists: killed at any moment, the next call goes on from the notes
and ends with the same bytes. joblib's Dask backend takes the same call to a cluster
whose workers see the same files. All of it has checksums, compared before it is used.
Measured against the usual loop: `benchmarks/results/prepare.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash

from fashionlib import artifacts, catalogue, runtime
from fashionlib.data import decoding, duplicates, sources
from fashionlib.runtime import InputError

VERSION = 5  # of the layout of folder and manifest
CODE = ("catalogue", "data.sources", "data.decoding", "data.duplicates", "data.prepare")
CHUNK = 32  # products that a worker takes at a time
THUMBNAILS = "work/thumbnails"  # the name of an array that is not kept
OURS = re.compile(  # what a killed call leaves, too
    r"(images|masks)_\d+x\d+\.(npy|kept)|index\.parquet|manifest\.json(\.\d+\.tmp)?|work"
)
Size = int | Sequence[int]  # side of a square, or (height, width), pixels
# a file's width, height, digest and the reason why it cannot be read (or None); its
# image uint8 (H, W, 3) and its mask uint8 (H, W), if it has them
Decoded = tuple[dict, np.ndarray | None, np.ndarray | None]


def sealed(content: dict) -> dict:
    """What is written of a manifest or a note: with a checksum of itself.

    Taught in: chapter 1
    """
    text = json.dumps(content, sort_keys=True)
    return content | {"seal": xxhash.xxh3_128_hexdigest(text.encode())}


def read_sealed(path: Path) -> dict:
    """A manifest or a note; empty where there is none, or one that is not as written.

    Taught in: chapter 1
    """
    with contextlib.suppress(InputError, RecursionError):
        found = artifacts.read_json(path)
        content = {key: found[key] for key in found if key != "seal"}
        if found == sealed(content):
            return content
    return {}


def size_name(size: Size) -> str:
    """`224x224` for 224, `80x60` for (80, 60): height x width, as in the files' names.

    Taught in: chapter 1
    """
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height}x{width}"


def prepare(
    source: str | Path,
    folder: Path,
    *,
    sizes: Sequence[Size],
    resize_mode: str = "squash",
    seed: int = 0,
    group_names: bool = False,
    all_genders: bool = False,
    workers: int = -1,
) -> Path:
    """Decode every Men/Women product of `source` once; write arrays, index, manifest.

    source: what `sources.open_source` takes. sizes: squares or (height, width), pixels.
    resize_mode: as in `decoding.resize`. seed: of the split. group_names: keep products
    of one exact name in the same set, too. all_genders: take those of other genders as
    well, with label -1. workers: threads, -1 for one per core.
    A folder already prepared from the same source, settings and code is returned at
    once; another one is replaced when the new one is finished. A file that cannot be
    decoded is listed in the manifest and left out.
    Raises InputError for settings or a source that cannot be used, a folder that cannot
    be written or holds files of others, a full disk.
    Taught in: chapter 1
    """
    folder = Path(folder).resolve()
    shapes = _shapes(sizes)
    decoding.check_resize_mode(resize_mode)
    if {type(seed), type(workers)} != {int} or seed < 0 or workers == 0:
        expected = "seed must be 0 or more, workers -1 or 1 or more"
        raise InputError(f"{expected}; found {seed!r} and {workers!r}.")
    opened = sources.open_source(source)
    settings = {
        "version": VERSION,
        "sizes": [size_name(shape) for shape in shapes],
        "resize_mode": resize_mode,
        "resized_by": decoding.resized_by(),
        "seed": seed,
        "group_names": group_names,
        "all_genders": all_genders,
        "source": opened.path.name,
        "source_fingerprint": opened.fingerprint(),
        "code": artifacts.code_digest(*CODE),
    }
    if _finished(folder, settings):
        return folder
    with artifacts.locked(folder):
        if not _finished(folder, settings):  # another process may have been faster
            unfinished = folder.with_name(f"{folder.name}.partial")
            _check_ours(folder)
            _check_ours(unfinished)
            _say_what_changed(folder, folder / "manifest.json", settings)
            masks = bool(opened.members("masks", ".png"))
            job = Job(unfinished, opened, shapes, resize_mode, masks)
            _make(job, settings, workers)
            _discard(folder)
            unfinished.rename(folder)
    return folder


def _shapes(sizes: Sequence[Size]) -> list[tuple[int, int]]:
    """(height, width) of each size."""
    listed = sizes if isinstance(sizes, list | tuple) else ()
    pairs = [(size, size) if type(size) is int else size for size in listed]
    if not pairs or not all(map(_is_shape, pairs)):
        expected = "sizes must be sides like 224 or pairs [height, width], at least one"
        raise InputError(f"{expected}; found {sizes!r:.200}.")
    return [tuple(pair) for pair in pairs]


def _is_shape(pair: object) -> bool:
    sides = pair if isinstance(pair, list | tuple) else ()
    return [type(side) for side in sides] == [int, int] and min(sides) > 0


# --- one folder, whole or not at all --------------------------------------------------


def _finished(folder: Path, settings: dict) -> bool:
    """Whether the folder holds what these settings make, every byte of it."""
    manifest = read_sealed(folder / "manifest.json")
    if manifest.get("settings") == settings:
        with contextlib.suppress(OSError):
            return _checksums(folder, manifest["checksums"]) == manifest["checksums"]
    return False


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: artifacts.checksum(folder / name) for name in names}


def _check_ours(folder: Path) -> None:
    """What is not ours is never replaced."""
    for path in folder.glob("*"):
        if not OURS.fullmatch(path.name):
            message = f"{folder} would be replaced, and holds {path.name!r}"
            raise InputError(f"{message}, which no preparation made: give another one.")


def _say_what_changed(folder: Path, noted: Path, settings: dict) -> None:
    """`noted`: its manifest, or the note that unfinished work was begun with."""
    found = read_sealed(noted).get("settings")
    if found:
        keys = [key for key in settings if found.get(key) != settings[key]]
        what = ", ".join(keys) or "its content"
        print(f"{folder.name}: {what} changed since; preparing again")


def _discard(folder: Path) -> None:
    """Delete a folder, first what it is trusted by: a kill leaves no half of one."""
    for name in ("manifest.json", "work/settings.json"):
        (folder / name).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _make(job: Job, settings: dict, workers: int) -> None:
    """All files, the manifest last. Nothing where a call was killed after that."""
    if not _finished(job.folder, settings):
        products, members, counts = find_products(job.source, settings["all_genders"])
        _begin(job, len(products), settings)
        notes, speed = _decode(job, members, workers)
        if sources.open_source(job.source.path) != job.source:
            _discard(job.folder)
            changed = f"source {job.source.path} was changed while it was read"
            raise InputError(f"{changed}: run again when it is complete.")
        manifest = _finish(job, products, notes, settings)
        manifest["counts"] = counts | manifest["counts"] | {"images_per_second": speed}
        artifacts.write_json(job.folder / "manifest.json", sealed(manifest))
    shutil.rmtree(job.folder / "work", ignore_errors=True)


# --- products and their arrays --------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: where to write, where to read, the sizes to make.

    Taught in: chapter 1
    """

    folder: Path  # <folder>.partial; its folder `work` does not outlive the work
    source: sources.Source
    shapes: list[tuple[int, int]]  # (height, width)
    resize_mode: str
    masks: bool  # a synthetic catalogue has ground truth beside its images

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of one row of every array."""
        arrays = {f"images_{size_name(shape)}": (*shape, 3) for shape in self.shapes}
        if self.masks:
            arrays |= {f"masks_{size_name(shape)}": shape for shape in self.shapes}
        return arrays | {THUMBNAILS: (*duplicates.THUMBNAIL, 3)}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def note(self, first: int) -> Path:
        """The note that the chunk which begins at product `first` is done."""
        return self.folder / "work" / "notes" / f"{first:09d}.json"


def find_products(
    source: sources.Source, all_genders: bool = False
) -> tuple[pd.DataFrame, list[tuple[str, str | None]], dict]:
    """The products with a file, by id; the file and mask of each; what was counted.

    Raises InputError as `catalogue.read_styles`, and where there is none.
    Taught in: chapter 1
    """
    table, malformed = catalogue.read_styles(source)
    files, masks = source.members("images", ".jpg"), source.members("masks", ".png")
    table["label"] = catalogue.labels(table)
    has_file = table["id"].isin(files.keys())
    products = table[has_file & (all_genders | (table["label"] >= 0))]
    products = products.sort_values("id", ignore_index=True)
    if products.empty:
        raise InputError(
            f"{source.path} has no Men or Women product with an image: expected files "
            f"images/<id>.jpg, found {len(files)}, and {len(table)} rows."
        )
    counts = {
        "rows": len(table),
        "malformed_rows": malformed,
        "images": len(files),
        "rows_without_image": int((~has_file).sum()),
        "images_without_row": len(files.keys() - set(table["id"])),
        "rows_without_year": int(table["year"].isna().sum()),
        "rows_not_utf8": sum("\ufffd" in line for line in catalogue.read_lines(source)),
        "other_files": sum("images/" in name for name in source.files) - len(files),
        "nested_copies_ignored": source.ignored_copies,
        "source": source.path.name,
        "synthetic": bool(masks),
    }
    members = [(files[product], masks.get(product)) for product in products["id"]]
    return products, members, counts


def _begin(job: Job, count: int, settings: dict) -> None:
    """Reserve the space of all arrays: a full disk is an error now, not after hours.

    What a killed call with the same settings left is gone on from.
    """
    begun = job.folder / "work" / "settings.json"
    if read_sealed(begun) == {"settings": settings} and _reserved(job):
        return
    _say_what_changed(job.folder, begun, settings)
    _discard(job.folder)
    job.note(0).parent.mkdir(parents=True)
    try:
        for name, shape in job.arrays().items():
            _reserve(job.path(name), (count, *shape))
        artifacts.write_json(begun, sealed({"settings": settings}))
    except (OSError, InputError):
        _discard(job.folder)  # gives the space back
        raise


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """An array of zeros on disk, uint8, with all of its space."""
    np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _reserved(job: Job) -> bool:
    """Whether all arrays are there, with their headers: another turns every image."""
    try:
        arrays = [np.load(job.path(name), mmap_mode="r") for name in job.arrays()]
    except (OSError, ValueError, EOFError):
        return False
    found = [(each.dtype, each.shape[1:], each.flags.c_contiguous) for each in arrays]
    return found == [(np.uint8, shape, True) for shape in job.arrays().values()]


def _write(path: Path, first: int, rows: np.ndarray) -> None:
    """Put rows into an array on disk, from row `first` on.

    Written, not mapped: a disk that fails is then an error, not a crash.
    """
    with path.open("r+b") as file:
        file.seek(np.load(path, mmap_mode="r").offset + first * rows[0].nbytes)
        file.write(rows)


def _read(path: Path, rows: np.ndarray) -> np.ndarray:
    """Rows of an array, mapped for this one read: mapped pages do not pile up."""
    return np.load(path, mmap_mode="r")[rows]


def _keep_rows(path: Path, readable: np.ndarray) -> None:
    """Rewrite an array with some of its rows; a killed call may have done it."""
    shape, kept = np.load(path, mmap_mode="r").shape, np.flatnonzero(readable)
    if readable.all() or shape[0] != len(readable):
        return
    shorter = path.with_suffix(".kept")
    _reserve(shorter, (len(kept), *shape[1:]))
    for start in range(0, len(kept), CHUNK):
        _write(shorter, start, _read(path, kept[start : start + CHUNK]))
    shorter.replace(path)


# --- decoding, a chunk at a time ------------------------------------------------------


def _decode(job: Job, members: list, workers: int) -> tuple[list[dict], float]:
    """Decode the chunks that have no note; the notes of all, and images/s.

    Threads suffice: decoding and resizing release the interpreter's lock.
    """
    import torch
    from joblib import Parallel, delayed, effective_n_jobs

    light = replace(job, source=job.source.reader())  # travels with every task
    firsts = range(0, len(members), CHUNK)
    notes = {first: read_sealed(job.note(first)) for first in firsts}
    todo = [first for first in firsts if not notes[first]]
    decode = delayed(_decode_chunk)
    tasks = (decode(light, first, members[first : first + CHUNK]) for first in todo)
    made = Parallel(n_jobs=workers, prefer="threads", return_as="generator")(tasks)
    made = runtime.progress(made, "decoding", total=len(todo), unit_scale=CHUNK)
    threads = torch.get_num_threads()
    try:
        notes |= zip(todo, made, strict=True)
    finally:
        torch.set_num_threads(threads)
    seconds = sum(note["seconds"] for note in notes.values())
    seconds /= min(effective_n_jobs(workers), len(notes))
    return list(notes.values()), round(len(members) / seconds, 1)


def _decode_chunk(job: Job, first: int, members: list) -> dict:
    """Write the rows `first`, `first` + 1, ... of every array, then the note."""
    import torch

    torch.set_num_threads(1)  # the chunks are what runs in parallel
    started = time.perf_counter()
    chunk = [_decode_one(job, *member) for member in members]
    facts, digests = [decoded[0] for decoded in chunk], {}
    readable = [i for i, fact in enumerate(facts) if fact["reason"] is None]
    for name, rows in _resize(job, chunk).items():
        _write(job.path(name), first, rows)
        digests[name] = xxhash.xxh3_128_hexdigest(rows[readable])
    note = {"facts": facts, "digests": digests}
    note["seconds"] = time.perf_counter() - started
    job.note(first).write_text(json.dumps(sealed(note)), "utf-8")
    return note


def _decode_one(job: Job, file: str, mask: str | None) -> Decoded:
    """One product. A source that cannot be read ends the run, to be gone on with."""
    heights, widths = zip(*job.shapes, duplicates.THUMBNAIL, strict=True)
    smallest, mask_pixels = (max(heights), max(widths)), None
    try:
        image, (width, height) = decoding.decode(job.source.read(file), smallest)
        if mask:
            mask_pixels = decoding.decode_mask(job.source.read(mask))
    except decoding.UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}"
        return {"width": 0, "height": 0, "digest": "", "reason": reason}, None, None
    digest = decoding.digest(image, (width, height))
    facts = {"width": width, "height": height, "digest": digest, "reason": None}
    return facts, image, mask_pixels


def _resize(job: Job, chunk: list[Decoded]) -> dict[str, np.ndarray]:
    """Rows of every array, by its name; zeros for what cannot be read."""
    shapes = job.arrays().items()
    rows = {name: np.zeros((len(chunk), *shape), np.uint8) for name, shape in shapes}
    alike = defaultdict(list)  # images of one shape are resized together
    for i, (facts, image, mask) in enumerate(chunk):
        if image is not None:
            alike[facts["width"], facts["height"], image.shape].append(i)
        if mask is not None:
            for shape in job.shapes:
                resized = decoding.resize_mask(mask, shape, job.resize_mode)
                rows[f"masks_{size_name(shape)}"][i] = resized
    for (width, height, _), places in alike.items():
        images = np.stack([chunk[i][1] for i in places])  # (B, H, W, 3)
        resize = partial(decoding.resize, images, original=(width, height))
        rows[THUMBNAILS][places] = resize(duplicates.THUMBNAIL)
        for shape in job.shapes:
            rows[f"images_{size_name(shape)}"][places] = resize(shape, job.resize_mode)
    return rows


# --- index and manifest ---------------------------------------------------------------


def _finish(
    job: Job, products: pd.DataFrame, notes: list[dict], settings: dict
) -> dict:
    """Leave out what cannot be read, split, write the index; returns the manifest."""
    facts = pd.DataFrame(each for note in notes for each in note["facts"])
    facts = facts.astype({"width": "int32", "height": "int32"})
    products = pd.concat([products, facts], axis=1)
    readable = products["reason"].isna()
    if not readable.any():
        _discard(job.folder)
        raise InputError(
            f"none of the {len(products)} images of the source can be read "
            f"({products['reason'][0]})."
        )
    for name in job.arrays():
        _keep_rows(job.path(name), readable.to_numpy())
        _check_rows(job, name, notes)
    index = products[readable].reset_index(drop=True)
    index = _group_and_split(index, job.path(THUMBNAILS), settings)
    index.to_parquet(job.folder / "index.parquet", index=False)
    unreadable = products.loc[~readable, ["id", "reason"]]
    arrays = [f"{name}.npy" for name in job.arrays() if name != THUMBNAILS]
    return {
        "settings": settings,
        "counts": {"unreadable_images": len(unreadable), **_counts(index)},
        "unreadable": unreadable.to_dict("records"),
        "checksums": _checksums(job.folder, [*arrays, "index.parquet"]),
    }


def _check_rows(job: Job, name: str, notes: list[dict]) -> None:
    """Compare an array with the digests of its chunks, taken when they were decoded."""
    import xxhash

    first = 0
    for note in notes:
        end = first + sum(fact["reason"] is None for fact in note["facts"])
        rows = _read(job.path(name), slice(first, end))
        if xxhash.xxh3_128_hexdigest(rows) != note["digests"][name]:
            _discard(job.folder)
            raise InputError(f"{job.path(name)} was damaged; it is deleted: run again.")
        first = end


def _group_and_split(index: pd.DataFrame, path: Path, settings: dict) -> pd.DataFrame:
    """Find duplicates and split; returns the columns of index.parquet.

    path: of the thumbnails.
    """
    read = partial(_read, path)
    index["perceptual_hash"] = duplicates.perceptual_hashes(read, len(index))
    exact = duplicates.equal_pairs(index["digest"])
    # equal images are linked: of each, one is compared with the others
    one_each = np.flatnonzero(~index["digest"].duplicated())
    hashes = index["perceptual_hash"].to_numpy()[one_each]
    close = duplicates.near_pairs(hashes, lambda rows: read(one_each[rows]))
    near = linked = np.concatenate([exact, one_each[close]])
    if settings["group_names"]:
        names = index["productDisplayName"].replace("", pd.NA)
        linked = np.concatenate([near, duplicates.equal_pairs(names)])
    index["exact_group"] = duplicates.groups(index["id"], exact)
    index["near_group"] = duplicates.groups(index["id"], near)
    index["group"] = duplicates.groups(index["id"], linked)
    seed = settings["seed"]
    index["split"] = catalogue.split(index["label"], index["group"], seed=seed)
    columns = ["id", "label", "split", "group", "exact_group", "near_group"]
    columns += ["perceptual_hash", "width", "height", *catalogue.COLUMNS[1:]]
    return index[columns]


def _counts(index: pd.DataFrame) -> dict:
    exact, near, label = index["exact_group"], index["near_group"], index["label"]
    classes = np.bincount(label[label >= 0], minlength=len(catalogue.CLASS_NAMES))
    sets = index["split"].value_counts()
    return {
        "products": len(index),
        "duplicate_groups": int((exact.value_counts() > 1).sum()),
        "duplicate_label_conflicts": duplicates.label_conflicts(exact, label),
        "near_duplicate_groups": int((near.value_counts() > 1).sum()),
        "near_duplicate_label_conflicts": duplicates.label_conflicts(near, label),
        "class_counts": classes.tolist(),
        "split_counts": {name: int(sets.get(name, 0)) for name in catalogue.SPLITS},
    }
