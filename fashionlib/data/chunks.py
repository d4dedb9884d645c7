"""The pictures of a catalogue decoded into rows of arrays: a chunk of products at a time, by all cores, resumable.

    job = chunks.Job(folder, opened.reader(), shapes, "squash", masks=False)
    chunks.allocate(job, len(products))
    facts, images_per_second = chunks.decode(job, products, workers=-1)

A chunk is done when its note lies in `<folder>/facts`; a call that was killed is taken up at those without one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fashionlib import artifacts, runtime
from fashionlib.data import decoding, duplicates, sources, staging
from fashionlib.images import size_name

CHUNK = 32  # products a worker takes at a time
BLOCK = (
    2 * 2**20
)  # bytes of decoded pictures that are resized together: some eight, within a core's cache
FACTS = [
    "width",
    "height",
    "digest",
    "problem",
]  # of a file: original size, digest of its pixels, or what is wrong


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: where to write, where to read, and the sizes to make. Taught in: chapter 1."""

    folder: Path
    source: sources.Source
    shapes: tuple[tuple[int, int], ...]  # (height, width)
    fit: str
    masks: bool  # a drawn catalogue has ground truth beside its pictures

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of one row of every array."""
        pictures = {f"images_{size_name(shape)}": (*shape, 3) for shape in self.shapes}
        masks = {
            f"masks_{size_name(shape)}": shape for shape in self.shapes if self.masks
        }
        return pictures | masks | {"thumbnails": (*duplicates.THUMBNAIL, 3)}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def allocate(job: Job, count: int) -> None:
    """Reserve the space of all arrays for `count` products: a full disk is an OSError now, not after hours of work.

    Taught in: chapter 1.
    """
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
        staging.discard(
            job.folder
        )  # gives the space back; nothing has been decoded yet
        raise


def decode(
    job: Job, products: pd.DataFrame, workers: int
) -> tuple[pd.DataFrame, float]:
    """Decode what is not decoded yet, in chunks on all cores (the decoder releases the interpreter's lock).

    products: their members of the source, columns `file` and `mask`. workers: threads, -1 for one per core.
    Returns the FACTS of each file, and images/s over all chunks, those of an earlier, killed call included. Raises
    InputError for a source that cannot be read. Taught in: chapter 1.
    """
    from joblib import Parallel, delayed, effective_n_jobs

    members = list(zip(products["file"], products["mask"], strict=True))
    chunks = {
        first: members[first : first + CHUNK] for first in range(0, len(members), CHUNK)
    }
    todo = [
        first
        for first, chunk in chunks.items()
        if _note(job, first, len(chunk)) is None
    ]
    done = len(members) - sum(len(chunks[first]) for first in todo)
    tasks = (delayed(_decode_chunk)(job, chunks[first], first) for first in todo)
    threads = runtime.use_threads(1)
    try:
        with runtime.progress(
            None, "decoding", total=len(members), initial=done, unit="img"
        ) as bar:
            for count in Parallel(
                n_jobs=workers, prefer="threads", return_as="generator"
            )(tasks):
                bar.update(count)
    finally:
        runtime.use_threads(threads)
    notes = [_note(job, first, len(chunk)) for first, chunk in chunks.items()]
    seconds = sum(note["seconds"] for note in notes) / min(
        effective_n_jobs(workers), len(chunks)
    )
    facts = pd.DataFrame(
        [fact for note in notes for fact in note["facts"]], columns=FACTS
    )
    return facts.astype({"width": "int32", "height": "int32"}), round(
        len(members) / seconds, 1
    )


def _note_path(job: Job, first: int, count: int) -> Path:
    return job.folder / "facts" / f"{first:09d}-{count}.json"


def _note(job: Job, first: int, count: int) -> dict | None:
    """What a finished chunk says of its files; None where it is not finished."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(_note_path(job, first, count).read_text())


def _decode_chunk(job: Job, members: list, first: int) -> int:
    """Write rows first, first + 1, ... of every array, then the note that says so; returns the number of rows."""
    started = time.perf_counter()
    runtime.use_threads(1)  # the chunks are what runs in parallel
    facts = []
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(job.path(name).open("r+b"))
            for name in job.arrays()
        }
        for (
            name,
            file,
        ) in (
            files.items()
        ):  # written, not mapped: a disk that fails is an error, not a crash
            file.seek(
                np.load(job.path(name), mmap_mode="r").offset
                + first * math.prod(job.arrays()[name])
            )
        for block in _blocks(_decode_one(job, member) for member in members):
            for name, rows in _rows(job, block).items():
                files[name].write(rows)
            facts += [decoded.fact for decoded in block]
    note = {"seconds": time.perf_counter() - started, "facts": facts}
    artifacts.write_json(_note_path(job, first, len(members)), note)
    return len(members)


class _Decoded(NamedTuple):
    """One product: its FACTS and, where the file can be read, its picture uint8 (H, W, 3), its mask uint8 (H, W)."""

    fact: tuple
    picture: np.ndarray | None = None
    mask: np.ndarray | None = None


def _decode_one(job: Job, member: tuple[str, str | None]) -> _Decoded:
    """What is wrong with the file itself is noted; a source that cannot be read ends the run, to be taken up later."""
    try:
        data, mask = (job.source.read(name) if name else None for name in member)
    except OSError as error:
        raise sources.unreadable(job.source.path, error) from error
    except ValueError as error:
        return _Decoded((0, 0, "", f"{type(error).__name__}: {error}"))
    wanted = (*job.shapes, duplicates.THUMBNAIL)
    try:
        picture, original = decoding.decode(
            data, tuple(max(shape[axis] for shape in wanted) for axis in (0, 1))
        )
        mask = decoding.decode_mask(mask) if mask else None
    except decoding.UNREADABLE as error:
        return _Decoded((0, 0, "", f"{type(error).__name__}: {error}"))
    return _Decoded(
        (*original, decoding.digest(picture, original), None), picture, mask
    )


def _blocks(decoded: Iterable[_Decoded]) -> Iterator[list[_Decoded]]:
    """Cut where the pictures would no longer fit into a processor's cache together: a huge one ends its block."""
    block, held = [], 0
    for each in decoded:
        block.append(each)
        held += 0 if each.picture is None else each.picture.nbytes
        if held >= BLOCK:
            yield block
            block, held = [], 0
    if block:
        yield block


def _rows(job: Job, block: list[_Decoded]) -> dict[str, np.ndarray]:
    """Rows of every array, by its name; zeros for what cannot be read. Pictures of one shape are resized together."""
    rows = {
        name: np.zeros((len(block), *shape), np.uint8)
        for name, shape in job.arrays().items()
    }
    alike = defaultdict(list)
    for i, (fact, picture, mask) in enumerate(block):
        if picture is not None:
            alike[fact[:2], picture.shape].append(i)
        for shape in job.shapes if mask is not None else ():
            rows[f"masks_{size_name(shape)}"][i] = decoding.resize_mask(
                mask, shape, job.fit
            )
    for (original, _), places in alike.items():
        pictures = np.stack([block[i].picture for i in places])
        rows["thumbnails"][places] = decoding.resize(
            pictures, duplicates.THUMBNAIL, original=original
        )
        for shape in job.shapes:
            rows[f"images_{size_name(shape)}"][places] = decoding.resize(
                pictures, shape, job.fit, original=original
            )
    return rows


def keep_rows(path: Path, rows: np.ndarray, count: int, shape: tuple[int, ...]) -> None:
    """Rewrite an array of `count` rows with some of them, a chunk at a time; done already where it has no more.

    Taught in: chapter 1.
    """
    if len(rows) == count or len(np.load(path, mmap_mode="r")) == len(rows):
        return
    kept = path.with_suffix(".kept")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
    with kept.open(
        "wb"
    ) as file:  # written, not mapped: a full disk is then an error, not a crash
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), CHUNK):
            file.write(np.load(path, mmap_mode="r")[rows[start : start + CHUNK]])
    kept.replace(path)
