"""Products that show the same image: equal pixels, or a close hash and thumbnail.

    hashes = duplicates.perceptual_hashes(thumbnails, len(ids))   # uint64 (N,)
    pairs = duplicates.near_pairs(hashes, thumbnails)             # int64 (M, 2)
    group = duplicates.groups(ids, pairs)                         # (N,)

The hash alone is not enough for products before a white page: at a distance of 4 of its
64 bits it links two fifths of the real catalogue, shoes with shirts. Confirmed by
thumbnails it links one image in twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

THUMBNAIL = (40, 30)  # height and width, pixels
BLOCK = 4096  # thumbnails in memory at a time
COMPARED = 2**22  # pairs of hashes in memory at a time
# positions, int64 (B,), to their thumbnails, uint8 (B, H, W, 3): these may lie on disk
Reader = Callable[[np.ndarray], np.ndarray]


def perceptual_hashes(thumbnails: Reader, count: int) -> np.ndarray:
    """64 bits for each of `count` thumbnails, uint64 (N,): a hash of its coarse shapes.

    Bit i says whether the i-th of the 8x8 lowest frequencies lies above their median:
    pHash of Zauner (2010), "Implementation and benchmarking of perceptual image hash
    functions".
    Taught in: chapter 1
    """
    from scipy.fft import dctn

    hashes = np.empty(count, np.uint64)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        red, green, blue = np.moveaxis(thumbnails(rows).astype(np.float32), 3, 0)
        grey = (red + green + blue) / 3  # (B, H, W), five times as fast as mean(axis=3)
        low = dctn(grey, axes=(1, 2))[:, :8, :8].reshape(-1, 64)
        bits = low > np.median(low, axis=1, keepdims=True)
        hashes[rows] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return hashes


def close_hashes(hashes: np.ndarray, distance: int = 4) -> np.ndarray:
    """Pairs of positions whose hashes differ in at most `distance` bits: int64 (M, 2).

    hashes: uint64 (N,). Each pair comes once, the smaller position first, in order.
    The 64 bits are cut into distance + 1 bands. Two hashes that differ in `distance`
    bits agree in at least one band, so that only hashes with an equal band need to be
    compared: all pairs of a large catalogue would be too many.
    Taught in: chapter 1
    """
    found = [np.empty((0, 2), np.int64)]
    for bits in np.array_split(np.arange(64, dtype=np.uint64), distance + 1):
        mask = np.bitwise_or.reduce(np.uint64(1) << bits)
        band = pd.Series(hashes & mask)
        for bucket in band.groupby(band).indices.values():  # positions, (B,)
            found.extend(_close_in(bucket, hashes, distance))
    pairs = pd.DataFrame(np.concatenate(found)).drop_duplicates()
    return pairs.sort_values([0, 1]).to_numpy()


def _close_in(
    bucket: np.ndarray, hashes: np.ndarray, distance: int
) -> Iterator[np.ndarray]:
    """All pairs of a bucket of positions, compared some rows at a time."""
    step = max(1, COMPARED // len(bucket))
    for start in range(0, len(bucket), step):
        rows = bucket[start : start + step]
        differing = np.bitwise_count(hashes[rows, None] ^ hashes[bucket])  # (rows, B)
        left, right = np.nonzero(differing <= distance)
        pairs = np.stack([rows[left], bucket[right]], axis=1)
        yield pairs[pairs[:, 0] < pairs[:, 1]]  # once, and none with itself


def distances(pairs: np.ndarray, thumbnails: Reader) -> np.ndarray:
    """Root mean squared difference (grey levels) of each pair's thumbnails.

    pairs: positions, int64 (M, 2). Returns float32 (M,).
    Taught in: chapter 1
    """
    found = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), BLOCK):
        some = pairs[start : start + BLOCK]
        left = thumbnails(some[:, 0]).astype(np.float32)
        right = thumbnails(some[:, 1]).astype(np.float32)
        found.append(np.sqrt(((left - right) ** 2).mean(axis=(1, 2, 3))))
    return np.concatenate(found)


def near_pairs(
    hashes: np.ndarray, thumbnails: Reader, *, distance: int = 4, difference: float = 5
) -> np.ndarray:
    """Pairs of positions, int64 (M, 2), that are close by hash and by thumbnail.

    distance: bits that differ at most; difference: grey levels (`distances`), below.
    Taught in: chapter 1
    """
    pairs = close_hashes(hashes, distance)
    return pairs[distances(pairs, thumbnails) < difference]


def equal_pairs(values: pd.Series) -> np.ndarray:
    """Pairs of positions with an equal value, int64 (M, 2): what links all equal ones.

    Three equal values give two pairs. Missing values are equal to nothing.
    Taught in: chapter 1
    """
    codes = values.factorize()[0]  # equal numbers for equal values, -1 for missing ones
    order = np.argsort(codes, kind="stable")  # equal values stand beside each other
    first, second = order[:-1], order[1:]
    equal = (codes[first] == codes[second]) & (codes[first] >= 0)
    return np.stack([first[equal], second[equal]], axis=1)


def groups(ids: pd.Series, pairs: np.ndarray) -> pd.Series:
    """For each product the smallest id among those it is linked to, itself included.

    ids: N different ids; pairs: positions, int64 (M, 2). A link may lead over others.
    Taught in: chapter 1
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = np.ones(len(pairs), bool)
    graph = coo_array((links, (pairs[:, 0], pairs[:, 1])), shape=(len(ids), len(ids)))
    _, component = connected_components(graph, directed=False)
    return ids.groupby(component).transform("min")


def label_conflicts(group: pd.Series, label: pd.Series) -> int:
    """How many groups carry more than one class: a floor for any error rate.

    group, label: one of each product, (N,). Labels below 0 are no class.
    Taught in: chapter 1
    """
    classes = label.where(label >= 0).groupby(group).nunique()
    return int((classes > 1).sum())
