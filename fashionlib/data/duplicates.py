"""Products that show the same picture: equal pixels, or a close perceptual hash that a thumbnail confirms.

    hashes = duplicates.perceptual_hashes(thumbnails, len(ids))   # uint64 (N,)
    pairs = duplicates.near_pairs(hashes, thumbnails)             # positions, int64 (M, 2)
    group = duplicates.groups(ids, pairs)                         # the smallest id that a product is linked to

The hash alone is not enough for products before a white page. At a distance of 4 of its 64 bits it links two fifths of
the real catalogue, shoes with shirts; confirmed by thumbnails it links one picture in twenty.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

THUMBNAIL = (40, 30)  # height and width, pixels
BLOCK = 4096  # thumbnails that are held in memory at a time
PAIRS = 2**22  # hashes that are compared at a time
Reader = Callable[
    [np.ndarray], np.ndarray
]  # positions to their thumbnails, uint8 (B, H, W, 3), so that they may lie on disk


def perceptual_hashes(thumbnails: Reader, count: int) -> np.ndarray:
    """64 bits for each of `count` thumbnails: which of the 8x8 lowest frequencies lie above their median; uint64 (N,).

    pHash of Zauner (2010), "Implementation and benchmarking of perceptual image hash functions". Taught in: chapter 1.
    """
    from scipy.fft import dctn

    hashes = np.empty(count, np.uint64)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        red, green, blue = np.moveaxis(thumbnails(rows).astype(np.float32), 3, 0)
        grey = (
            red + green + blue
        ) / 3  # (B, H, W); the mean over an axis of three is five times as slow
        low = dctn(grey, axes=(1, 2))[:, :8, :8].reshape(-1, 64)
        bits = low > np.median(low, axis=1, keepdims=True)
        hashes[rows] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return hashes


def close_hashes(hashes: np.ndarray, distance: int = 4) -> np.ndarray:
    """Pairs of positions whose hashes, uint64 (N,), differ in at most `distance` bits: int64 (M, 2), each pair once.

    Cut into distance + 1 bands, two such hashes have at least one band in common, so only hashes with an equal band
    are compared: all pairs of a catalogue of millions would be too many. Taught in: chapter 1.
    """
    found = [np.empty(0, np.int64)]
    for band in np.array_split(np.arange(64, dtype=np.uint64), distance + 1):
        keys = hashes & np.bitwise_or.reduce(np.uint64(1) << band)
        order = np.argsort(keys, kind="stable")
        buckets = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
        for bucket in (bucket for bucket in buckets if len(bucket) > 1):
            for rows in np.array_split(bucket, -(-(len(bucket) ** 2) // PAIRS)):
                left, right = np.nonzero(
                    np.bitwise_count(hashes[rows, None] ^ hashes[bucket]) <= distance
                )
                left, right = rows[left], bucket[right]
                found.append((left * len(hashes) + right)[left < right])
    return np.stack(
        np.divmod(np.unique(np.concatenate(found)), max(len(hashes), 1)), axis=1
    )


def distances(pairs: np.ndarray, thumbnails: Reader) -> np.ndarray:
    """Root mean squared difference (grey levels) of the thumbnails of each pair, int64 (M, 2): float32 (M,).

    Taught in: chapter 1.
    """
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), BLOCK):
        left, right = (
            thumbnails(side).astype(np.float32)
            for side in pairs[start : start + BLOCK].T
        )
        parts.append(np.sqrt(((left - right) ** 2).mean(axis=(1, 2, 3))))
    return np.concatenate(parts)


def near_pairs(
    hashes: np.ndarray, thumbnails: Reader, *, distance: int = 4, difference: float = 5
) -> np.ndarray:
    """Pairs of positions with close hashes whose thumbnails differ by less than `difference` grey levels: int64 (M, 2).

    Taught in: chapter 1.
    """
    pairs = close_hashes(hashes, distance)
    return pairs[distances(pairs, thumbnails) < difference]


def equal_pairs(values: pd.Series) -> np.ndarray:
    """Pairs of positions with an equal value: int64 (M, 2), enough of them to link all that are equal.

    Missing values are equal to nothing. Taught in: chapter 1.
    """
    order = np.argsort(codes := values.factorize()[0], kind="stable")
    equal = (np.diff(codes[order]) == 0) & (codes[order][1:] >= 0)
    return np.stack([order[:-1][equal], order[1:][equal]], axis=1)


def groups(ids: pd.Series, pairs: np.ndarray) -> pd.Series:
    """For each product the smallest id among those it is linked to, over any number of links; its own without a link.

    ids: N different ids; pairs: int64 (M, 2), positions. Taught in: chapter 1.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array(
        (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])),
        shape=(len(ids), len(ids)),
    )
    return ids.groupby(connected_components(graph, directed=False)[1]).transform("min")


def label_conflicts(group: pd.Series, label: pd.Series) -> int:
    """How many groups carry more than one class: a floor for any error rate. Labels below 0 are no class.

    Taught in: chapter 1.
    """
    return int((label.where(label >= 0).groupby(group).nunique() > 1).sum())


def bridges(pairs: np.ndarray, group: pd.Series, previous: pd.Series) -> np.ndarray:
    """Which new products would link old ones of different parts: bool (N,).

    pairs: int64 (M, 2), positions; group: what they link, all of them. previous: the part of each old product, missing
    for new ones. New products join the old ones in the order of their positions; one that would join two parts does
    not, and those after it are judged as if it was not there. Taught in: chapter 1.
    """
    from scipy.cluster.hierarchy import DisjointSet

    new, aside = previous.isna().to_numpy(), np.zeros(len(group), bool)
    doubtful = (
        previous.groupby(group).transform("nunique") > 1
    ).to_numpy()  # only their groups need a closer look
    links = pd.DataFrame(
        np.concatenate([pairs, pairs[:, ::-1]]), columns=["product", "other"]
    )
    others = links[doubtful[links["product"]]].groupby("product")["other"].agg(list)
    linked, parts = DisjointSet(), {}  # the parts of what hangs together, by its root

    def join(product: int, own: set[str]) -> bool:
        met = {linked[other] for other in others.get(product, []) if other in linked}
        joined = own.union(*(parts[root] for root in met))
        if not own and len(joined) > 1:
            return False
        linked.add(product)
        for root in met:
            linked.merge(product, root)
        parts[linked[product]] = joined
        return True

    for product in np.flatnonzero(doubtful & ~new):
        join(product, {previous.iloc[product]})
    for product in np.flatnonzero(doubtful & new):
        aside[product] = not join(product, set())
    return aside
