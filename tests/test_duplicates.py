"""Duplicates: hashes and groups by hand, the pair search against all pairs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fashionlib.data import duplicates


def noise(seed: int) -> np.ndarray:
    """A thumbnail in which all frequencies occur, uint8 (40, 30, 3)."""
    return np.random.default_rng(seed).integers(0, 246, (40, 30, 3), dtype=np.uint8)


def reader(images):
    stacked = np.stack(images)
    return lambda rows: stacked[rows]


def test_the_hash_survives_brightness_and_changes_with_the_image():
    images = [noise(0), noise(0) + 9, noise(1)]
    hashes = duplicates.perceptual_hashes(reader(images), 3)
    assert hashes.dtype == np.uint64
    # half of 64 frequencies lie above their median
    assert np.bitwise_count(hashes).tolist() == [32, 32, 32]
    assert np.bitwise_count(hashes[0] ^ hashes[1]) <= 1
    assert np.bitwise_count(hashes[0] ^ hashes[2]) > 10


def test_the_hash_does_not_depend_on_the_block(monkeypatch):
    read = reader([noise(i) for i in range(11)])
    whole = duplicates.perceptual_hashes(read, 11)
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    assert (duplicates.perceptual_hashes(read, 11) == whole).all()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 60),
    bits=st.sampled_from([3, 8, 63]),
    distance=st.integers(0, 6),
)
def test_close_hashes_are_those_that_comparing_all_pairs_finds(
    seed, count, bits, distance
):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**bits, count, dtype=np.uint64)
    if count > 3:
        hashes[1] = hashes[0] ^ np.uint64(0b1001 << 40)  # two bits apart
    expected = []
    for i in range(count):
        for j in range(i + 1, count):
            if int(hashes[i] ^ hashes[j]).bit_count() <= distance:
                expected.append([i, j])
    assert duplicates.close_hashes(hashes, distance).tolist() == expected


def test_close_hashes_do_not_depend_on_the_block(monkeypatch):
    hashes = np.arange(40, dtype=np.uint64)
    whole = duplicates.close_hashes(hashes)
    monkeypatch.setattr(duplicates, "COMPARED", 70)
    assert (duplicates.close_hashes(hashes) == whole).all()


def test_distances_by_hand(monkeypatch):
    images = [np.full((40, 30, 3), grey, np.uint8) for grey in (10, 13, 250)]
    pairs = np.array([[0, 1], [1, 2], [0, 2], [0, 0]])
    for block in (4096, 1):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        found = duplicates.distances(pairs, reader(images))
        assert found.tolist() == [3, 237, 240, 0]
    images[1][:20] = 10  # half of the pixels differ by 3
    found = duplicates.distances(pairs[:1], reader(images))
    assert found[0] == pytest.approx(3 / 2**0.5)
    assert duplicates.distances(pairs[:0], reader(images)).shape == (0,)


def test_a_close_hash_alone_links_nothing():
    """One structure at two contrasts: equal for the hash, not for the thumbnail."""
    strong, weak = noise(3), 100 + noise(3) // 4
    read = reader([strong, weak, strong + 3])
    hashes = duplicates.perceptual_hashes(read, 3)
    assert len(duplicates.close_hashes(hashes)) == 3
    assert duplicates.near_pairs(hashes, read).tolist() == [[0, 2]]


def test_equal_pairs_and_groups_by_hand():
    ids = pd.Series([12, 5, 9, 3, 7, 1])
    pairs = duplicates.equal_pairs(pd.Series(["a", "b", "a", "c", "b", "a"]))
    assert duplicates.groups(ids, pairs).tolist() == [1, 5, 1, 3, 5, 1]
    chain = np.array([[0, 1], [1, 2]])  # 12-5, 5-9: linked over 5
    assert duplicates.groups(ids, chain).tolist() == [5, 5, 5, 3, 7, 1]
    both = np.concatenate([pairs, chain])
    assert duplicates.groups(ids, both).tolist() == [1, 1, 1, 3, 1, 1]
    none = np.empty((0, 2), int)
    assert duplicates.groups(ids, none).tolist() == ids.tolist()


def test_missing_values_are_equal_to_nothing():
    values = pd.Series(["a", None, "b", None, "a"])
    assert duplicates.equal_pairs(values).tolist() == [[0, 4]]


def test_conflicts_by_hand():
    # group 9 is both 0 and 1, 5 is twice 2, and -1 is no class
    group, label = pd.Series([9, 5, 9, 3, 5, 3]), pd.Series([0, 2, 1, 4, 2, -1])
    assert duplicates.label_conflicts(group, label) == 1
