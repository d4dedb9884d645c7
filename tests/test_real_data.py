"""Facts of the real catalogue, on the real zips.

Deselected by name where a machine has none (conftest.py).
"""

import io

import pandas as pd
import pytest
from conftest import real_data_folder

from fashionlib import catalogue, images
from fashionlib.data import decoding, duplicates, prepare, sources

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="session")
def small() -> sources.Source:
    return sources.open_source(real_data_folder() / "fashion-product-images-small.zip")


@pytest.fixture(scope="session")
def prepared(small, tmp_path_factory) -> images.Prepared:
    """The small edition at its own size, prepared once (15 s on 2 quiet cores)."""
    folder = tmp_path_factory.mktemp("small") / "prepared"
    return images.load(prepare.prepare(small.path, folder, sizes=[[80, 60]]))


def test_rows_and_malformed_rows(small):
    table, malformed = catalogue.read_styles(small)
    assert (len(table), malformed) == (44446, 22)
    assert table["id"].is_unique
    genders = {"Men": 22165, "Women": 18632, "Unisex": 2164, "Boys": 830, "Girls": 655}
    assert table["gender"].value_counts().to_dict() == genders
    # inches, kept as they are
    assert table["productDisplayName"].str.count('"').sum() == 2


def test_a_careless_reader_loses_22_products(small, recwarn):
    skipping = pd.read_csv(io.BytesIO(small.read("styles.csv")), on_bad_lines="skip")
    table, _ = catalogue.read_styles(small)
    lost = table[~table["id"].isin(skipping["id"])]
    assert len(lost) == 22
    assert (catalogue.labels(lost) == 0).sum() == 14  # Men/Accessories
    assert not recwarn.list  # pandas says nothing


def test_the_edition_at_224():
    source = sources.open_source(real_data_folder() / "fashion-product-images-224.zip")
    table, malformed = catalogue.read_styles(source)
    files = source.members("images", ".jpg")
    used = table["id"].isin(files) & (catalogue.labels(table) >= 0)
    assert (len(table), malformed, len(files), used.sum()) == (44446, 22, 4856, 4555)
    assert files.keys() <= set(table["id"])
    _, size = decoding.decode(source.read(files[10001]), (224, 224))
    assert size == (224, 224)


@pytest.mark.slow
def test_counts_of_the_small_edition(prepared):
    counts = prepared.manifest["counts"]
    expected = {
        "rows": 44446,
        "malformed_rows": 22,
        "images": 44072,
        "rows_without_image": 374,
        "images_without_row": 0,
        "unreadable_images": 0,
        "products": 40461,
        "duplicate_groups": 371,
        "duplicate_label_conflicts": 6,
        "class_counts": [4402, 5318, 11336, 8614, 6366, 4425],
    }
    assert {key: counts[key] for key in expected} == expected
    assert prepared.array([80, 60]).shape == (40461, 80, 60, 3)
    sizes = prepared.index["exact_group"].value_counts()
    assert sizes[sizes > 1].sum() == 746  # images that have a twin


@pytest.mark.slow
def test_the_split_of_the_small_edition(prepared):
    index = prepared.index
    assert (index.groupby("group")["split"].nunique() == 1).all()
    found = pd.crosstab(index["label"], index["split"], normalize="index")
    for name, fraction in catalogue.SPLITS.items():
        assert (found[name] - fraction).abs().max() < 0.005


@pytest.mark.slow
def test_twins_really_have_the_same_pixels(prepared):
    pixels, index = prepared.array([80, 60]), prepared.index
    for rows in index.groupby("exact_group").indices.values():
        if len(rows) > 1:
            assert (pixels[rows] == pixels[rows[0]]).all()


@pytest.mark.slow
def test_a_hash_alone_links_far_too_much(prepared):
    index = prepared.index
    pairs = duplicates.close_hashes(index["perceptual_hash"].to_numpy())
    sizes = duplicates.groups(index["id"], pairs).value_counts()
    assert sizes[sizes > 1].sum() / len(index) > 0.3
    assert sizes.max() > 1000
    confirmed = index["near_group"].value_counts()
    assert 0.03 < confirmed[confirmed > 1].sum() / len(index) < 0.07
    assert confirmed.max() < 50
    # equal pixels are near, too
    assert (index.groupby("exact_group")["near_group"].nunique() == 1).all()
