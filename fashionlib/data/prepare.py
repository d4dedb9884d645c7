"""The catalogue's pictures, decoded once into memory-mapped uint8 arrays, with an index and a manifest.

    folder = prepare.prepare("fashion-product-images-small.zip", artifacts.folder("small") / "prepared", sizes=[64])
    prepared = images.load(folder)

Work goes on in `<folder>.partial` (`staging`), a chunk of products at a time, by all cores (`chunks`). Killed at any
moment, it is taken up by the next call and ends with the same bytes. An earlier result is replaced only by a finished
one.
joblib's Dask backend takes the same call to a cluster whose workers see the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash

from fashionlib import artifacts, catalogue, images
from fashionlib.data import chunks, decoding, duplicates, sources, staging
from fashionlib.images import VERSION, Size, size_name
from fashionlib.runtime import InputError


def prepare(
    source: str | Path,
    folder: Path,
    *,
    sizes: Sequence[Size],
    fit: str = "squash",
    seed: int = 0,
    group_names: bool = False,
    all_genders: bool = False,
    previous: str | Path = "",
    workers: int = -1,
) -> Path:
    """Decode every Men/Women product of `source` once, write each size, the index and the manifest into `folder`.

    source: what `sources.open_source` takes. sizes: squares or (height, width), pixels. fit: `decoding.resize`.
    group_names: keep products of one exact name in the same part, too. all_genders: take those of the other genders
    as well, with label -1. previous: index.parquet of an earlier preparation, outside of `folder`, whose products keep
    their part. workers: threads, -1 for one per core.
    A folder already prepared from the same source with the same settings is returned at once. A file that cannot be
    decoded is listed in the manifest and left out. Duplicates are sought in pictures as they were decoded, and that
    scale depends on the largest of `sizes`.
    Raises InputError for settings or a source that cannot be used, a folder that cannot be written, a full disk.
    Taught in: chapter 1.
    """
    folder = Path(folder).resolve()
    shapes = _shapes(sizes, fit, seed, workers)
    old_parts = _old_parts(previous, folder)
    opened = sources.open_source(source)
    settings = {
        "version": VERSION,
        "sizes": [size_name(shape) for shape in shapes],
        "fit": fit,
        "seed": seed,
    }
    settings |= {"group_names": group_names, "all_genders": all_genders}
    settings |= {"source": opened.path.name, "source_fingerprint": opened.fingerprint()}
    settings |= {
        "previous": _checksum(Path(previous).expanduser()) if previous else None
    }
    if _finished(folder, settings):
        return folder
    with staging.alone(folder):
        staging.recover(folder)
        if _finished(folder, settings):  # another process was faster
            return folder
        partial = staging.begin(folder, settings)
        if staging.settings_of(partial / "manifest.json") != settings:
            _make(partial, opened, source, shapes, settings, old_parts, workers)
        _tidy(partial)
        staging.replace(folder, partial)
    return folder


def _make(
    partial: Path,
    opened: sources.Source,
    source,
    shapes: list,
    settings: dict,
    old_parts,
    workers: int,
) -> None:
    """All files of the folder; the manifest comes last."""
    products, counts = _products(opened, settings["all_genders"])
    job = chunks.Job(
        partial,
        opened.reader(),
        tuple(shapes),
        settings["fit"],
        masks=bool(counts["drawn"]),
    )
    chunks.allocate(job, len(products))
    facts, speed = chunks.decode(job, products, workers)
    if sources.open_source(source).fingerprint() != opened.fingerprint():
        staging.discard(partial)
        raise InputError(
            f"source {opened.path} was changed while it was read: run again when it is complete."
        )
    manifest = _finish(job, products, facts, settings, old_parts)
    manifest["counts"] = counts | manifest["counts"] | {"images_per_second": speed}
    artifacts.write_json(partial / "manifest.json", {"settings": settings, **manifest})


def _finished(folder: Path, settings: dict) -> bool:
    """Whether the folder holds what these settings make, all arrays whole."""
    if staging.settings_of(folder / "manifest.json") != settings:
        return False
    with contextlib.suppress(InputError):
        prepared = images.load(folder)
        for name in prepared.manifest["checksums"]:
            kind, size = name.split("_")
            prepared.array([int(side) for side in size.split("x")], kind)
        return True
    return False


def _tidy(partial: Path) -> None:
    shutil.rmtree(partial / "facts", ignore_errors=True)
    for name in ("settings.json", "thumbnails.npy"):
        (partial / name).unlink(missing_ok=True)


def _shapes(
    sizes: Sequence[Size], fit: str, seed: int, workers: int
) -> list[tuple[int, int]]:
    """(height, width) of each size; and all settings checked before hours of work depend on them."""
    if fit not in decoding.FITS:
        raise InputError(
            f"fit must be one of {', '.join(decoding.FITS)}; found {fit!r}."
        )
    if (
        not isinstance(seed, int)
        or seed < 0
        or not isinstance(workers, int)
        or workers == 0
    ):
        raise InputError(
            f"seed must be 0 or more and workers -1 or 1 or more; found {seed!r} and {workers!r}."
        )
    pairs = (
        [[size, size] if isinstance(size, int) else size for size in sizes]
        if isinstance(sizes, list | tuple)
        else []
    )
    if not pairs or any(not _is_pair(pair) for pair in pairs):
        raise InputError(
            f"sizes must be sides like 224 or pairs [height, width], at least one; found {sizes!r}."
        )
    return [tuple(pair) for pair in pairs]


def _is_pair(pair: object) -> bool:
    whole = isinstance(pair, list | tuple) and all(
        isinstance(side, int) and side > 0 for side in pair
    )
    return whole and len(pair) == 2


def _products(source: sources.Source, all_genders: bool) -> tuple[pd.DataFrame, dict]:
    """The products (Men/Women, or all) that have a file, by their ids, with the members to read; and the counts."""
    table, malformed = catalogue.read_styles(source)
    files, masks = source.members("images", ".jpg"), source.members("masks", ".png")
    table["label"] = catalogue.labels(table)
    wanted = table["id"].isin(files.keys()) & (all_genders | (table["label"] >= 0))
    products = table[wanted].sort_values("id", ignore_index=True)
    if products.empty:
        raise InputError(
            f"source {source.path} has no Men or Women product with an image."
        )
    products["file"] = products["id"].map(files)
    products["mask"] = pd.Series(
        [masks.get(i) for i in products["id"]], products.index, dtype=object
    )  # keeps None
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


# --- index and manifest -----------------------------------------------------------------------------------------------


def _finish(
    job: chunks.Job,
    products: pd.DataFrame,
    facts: pd.DataFrame,
    settings: dict,
    old: pd.Series | None,
) -> dict:
    """Leave out what cannot be read, find duplicates, split, write the index; returns the manifest's entries."""
    readable = facts["problem"].isna()
    if not readable.any():
        raise InputError(
            f"none of the {len(facts)} pictures of the source can be read ({facts['problem'][0]})."
        )
    for name, shape in job.arrays().items():
        chunks.keep_rows(job.path(name), np.flatnonzero(readable), len(facts), shape)
    index = pd.concat([products, facts], axis=1)[readable].reset_index(drop=True)
    index = _group_and_split(index, job.path("thumbnails"), settings, old)
    index.to_parquet(job.folder / "index.parquet", index=False)
    unreadable = pd.DataFrame({"id": products["id"], "reason": facts["problem"]})[
        ~readable
    ]
    counts = {
        "unreadable_images": len(unreadable),
        "products": len(index),
        "duplicate_groups": int((index["exact_group"].value_counts() > 1).sum()),
        "duplicate_label_conflicts": duplicates.label_conflicts(
            index["exact_group"], index["label"]
        ),
        "near_duplicate_groups": int((index["near_group"].value_counts() > 1).sum()),
        "near_duplicate_label_conflicts": duplicates.label_conflicts(
            index["near_group"], index["label"]
        ),
        "class_counts": np.bincount(
            index["label"][index["label"] >= 0], minlength=6
        ).tolist(),
        "split_counts": {
            name: int((index["split"] == name).sum()) for name in catalogue.SPLITS
        },
        "set_aside": int((index["split"] == catalogue.ASIDE).sum()),
    }
    return {
        "counts": counts,
        "unreadable": unreadable.to_dict("records"),
        "set_aside": index.loc[index["split"] == catalogue.ASIDE, "id"].tolist(),
        "checksums": {
            name: _checksum(job.path(name))
            for name in job.arrays()
            if name != "thumbnails"
        },
    }


def _group_and_split(
    index: pd.DataFrame, thumbnails: Path, settings: dict, old: pd.Series | None
) -> pd.DataFrame:
    """Add the groups and the split to the rows; returns the columns of index.parquet."""

    def read(rows: np.ndarray) -> np.ndarray:
        return np.load(thumbnails, mmap_mode="r")[
            rows
        ]  # mapped for one read: its pages do not pile up

    index["perceptual_hash"] = duplicates.perceptual_hashes(read, len(index))
    exact, near, pairs = _links(
        index, np.arange(len(index)), read, settings["group_names"]
    )
    for name, links in (("exact_group", exact), ("near_group", near), ("group", pairs)):
        index[name] = duplicates.groups(index["id"], links)
    parts = (
        index["id"].map(old) if old is not None else pd.Series(pd.NA, index.index)
    ).astype("string")
    aside = np.zeros(len(index), bool)
    while (found := duplicates.bridges(pairs, index["group"], parts)).any():
        aside |= found  # without them, the groups that they link are apart again; what is equal is still linked
        *_, pairs = _links(index, np.flatnonzero(~aside), read, settings["group_names"])
        index["group"] = duplicates.groups(index["id"], pairs)
    rest = index[~aside]
    index["split"] = catalogue.split(
        rest["label"], rest["group"], seed=settings["seed"], previous=parts[~aside]
    )
    index["split"] = index["split"].fillna(catalogue.ASIDE)
    first = [
        "id",
        "label",
        "split",
        "group",
        "exact_group",
        "near_group",
        "perceptual_hash",
        "width",
        "height",
    ]
    return index[[*first, *catalogue.COLUMNS[1:]]]


def _links(
    index: pd.DataFrame, rows: np.ndarray, read: duplicates.Reader, group_names: bool
) -> list[np.ndarray]:
    """Pairs among these rows, int64 (M, 2): of equal pictures, of close ones as well, and of equal names as well."""
    products = index.iloc[rows]
    exact = duplicates.equal_pairs(products["digest"])
    one_each = np.flatnonzero(
        ~products["digest"].duplicated()
    )  # equal pictures are linked already
    hashes = products["perceptual_hash"].to_numpy()[one_each]
    close = one_each[
        duplicates.near_pairs(hashes, lambda chosen: read(rows[one_each[chosen]]))
    ]
    names = (
        products["productDisplayName"].replace("", pd.NA)
        if group_names
        else pd.Series([], dtype=object)
    )
    near = np.concatenate([exact, close])
    return [
        rows[pairs]
        for pairs in (
            exact,
            near,
            np.concatenate([near, duplicates.equal_pairs(names)]),
        )
    ]


def _old_parts(previous: str | Path, folder: Path) -> pd.Series | None:
    """Part of each product, by id, of an earlier index.parquet."""
    if not previous:
        return None
    path, wanted = (
        Path(previous).expanduser(),
        "previous must be the index.parquet of an earlier preparation",
    )
    if path.resolve().parent == folder:
        raise InputError(
            f"{wanted} elsewhere; {path} would be replaced by this one: copy it to another folder first."
        )
    try:
        parts = pd.read_parquet(path, columns=["id", "split"]).set_index("id")["split"]
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{wanted}; {path}: {error}") from error
    if not parts.index.is_unique:
        raise InputError(f"{wanted}; in {path} an id comes twice.")
    return parts[parts.isin(list(catalogue.SPLITS))]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
