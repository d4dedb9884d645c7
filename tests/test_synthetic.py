"""The synthetic catalogue: same bytes, counts that hold, where the gender shows."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import full_disk
from PIL import Image

from fashionlib.data import synthetic
from fashionlib.runtime import InputError

PRODUCTS = 60
HEADER = (
    "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,"
    "productDisplayName"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("synthetic") / "catalogue"
    return synthetic.draw(target, products=PRODUCTS, seed=3)


@pytest.fixture(scope="module")
def truth(folder):
    return json.loads((folder / "catalogue.json").read_text())


@pytest.fixture(scope="module")
def rows(folder):
    """id -> the ten fields, split here by hand: nothing of the library reads them."""
    lines = (folder / "styles.csv").read_text().splitlines()
    assert lines[0] == HEADER
    return {int(line.split(",")[0]): line.split(",", 9) for line in lines[1:]}


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def readable(path):
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def label(fields):
    category = {"Accessories": 0, "Apparel": 1}.get(fields[2], 2)
    return 2 * category + ("Men", "Women").index(fields[1])


def pairs(head_share, count=80):
    """Apparel records that differ in nothing but the gender that was asked for."""
    for number in range(count):
        options = {"head_share": head_share, "category": 1}
        man = synthetic.describe(5, number, gender="Men", **options)
        yield man, synthetic.describe(5, number, gender="Women", **options)


# --- what is drawn --------------------------------------------------------------------


def test_same_seed_gives_same_bytes_and_dates(folder, tmp_path):
    again = synthetic.draw(tmp_path / "again", products=PRODUCTS, seed=3)
    assert contents(again) == contents(folder)
    dates = {path.stat().st_mtime for path in again.rglob("*")}
    assert dates == {float(synthetic.DATE)}


@pytest.mark.parametrize(
    ("number", "drawn", "grey"),
    [(1164, ("Women", 1, "head"), 220.8), (1167, ("Men", 0, "item"), 191.4)],
)
def test_seed_0_is_still_the_catalogue_of_the_published_results(number, drawn, grey):
    record = synthetic.describe(0, number, head_share=0.4)
    assert (record["gender"], record["category"], record["cue"]) == drawn
    image, _ = synthetic.paint(record, 0)
    assert np.asarray(image, float).mean() == pytest.approx(grey, abs=0.2)


def test_another_seed_gives_other_products():
    first, second = (synthetic.describe(seed, 77, head_share=0.4) for seed in (0, 1))
    assert first["scene"] != second["scene"]
    assert synthetic.describe(0, 77, head_share=0.4) == first


def test_an_image_depends_on_its_own_record_only(folder, rows):
    """Redrawn alone, an image equals the one that was drawn among all others."""
    for number, fields in rows.items():
        path = folder / f"images/{number}.jpg"
        if fields[1] == "Men" and path.exists() and readable(path):
            break
    record = synthetic.describe(3, number, head_share=0.4)
    image, mask = synthetic.paint(record, 3)
    stored_mask = Image.open(folder / f"masks/{number}.png")
    assert (np.asarray(mask) == np.asarray(stored_mask)).all()
    stored = np.asarray(Image.open(path).convert("RGB"), float)
    loss = np.abs(np.asarray(image, float) - stored).mean()  # JPEG's, in grey levels
    assert loss < 6


def test_images_come_in_the_catalogues_modes_and_sizes(folder):
    found = [Image.open(path) for path in (folder / "images").iterdir()]
    assert {image.mode for image in found} == {"RGB", "L", "CMYK"}
    assert all(3 * image.height == 4 * image.width for image in found)
    widths = {image.width for image in found}
    assert (min(widths), max(widths)) == (150, 1800)


def test_masks_fit_their_images(folder, rows):
    for path in (folder / "images").iterdir():
        mask = Image.open(folder / "masks" / f"{path.stem}.png")
        assert mask.mode == "L"
        assert mask.size == Image.open(path).size
        found = set(np.unique(np.asarray(mask)).tolist())
        number = int(path.stem)
        apparel = rows[number][2] == "Apparel" if number in rows else 3 in found
        assert found <= ({0, 1, 2, 3} if apparel else {0, 4})
        assert found & {3, 4}  # a product is to be seen


def test_the_mask_lies_on_what_was_drawn():
    """On white the masked part is dark (a white shirt would prove nothing)."""
    record = synthetic.describe(0, 1, head_share=1.0, gender="Women", category=1)
    record["scene"] |= {"background": "white", "noise": 0.0}
    record["garment"] |= {"colour": "Navy Blue", "pattern": "plain", "beside": "Black"}
    record["head"]["hair_colour"] = synthetic.HAIRS[0]
    image, mask = (np.asarray(each) for each in synthetic.paint(record, 0))
    assert image[mask == synthetic.HAIR].mean() < 90  # black hair
    assert image[mask == 0].mean() > 235
    assert 90 < image[mask == synthetic.FACE].mean() < 240


def test_every_item_can_be_drawn():
    """Each article, in every variant of its drawing, leaves something to see."""
    for article, kind in synthetic.ITEMS.items():
        for style in ("Men", "Women"):
            record = synthetic.describe(0, 9, head_share=0, gender=style, category=0)
            record["item"] |= {"article": article, "style": style}
            record["item"]["pattern"] = kind.patterns[-1]
            for variant in range(4):
                record["item"]["variant"] = variant
                mask = np.asarray(synthetic.paint(record, 0)[1])
                covered = (mask == synthetic.ITEM).mean()
                assert 0.01 < covered < 0.7, (article, style, variant)


def test_every_garment_can_be_drawn():
    for article, kind in synthetic.APPAREL.items():
        record = synthetic.describe(0, 9, head_share=0, gender="Women", category=1)
        record["garment"] |= {"article": article, "dresses": kind.dresses}
        record["garment"] |= {"hem": kind.hem, "pattern": kind.patterns[-1]}
        mask = np.asarray(synthetic.paint(record, 0)[1])
        assert (mask == synthetic.GARMENT).mean() > 0.05, article


# --- where the gender shows -----------------------------------------------------------


def test_head_share_one_shows_the_gender_in_the_head_only():
    heads = []
    for man, woman in pairs(head_share=1.0):
        assert man["cue"] == woman["cue"] == "head"
        assert all(man[part] == woman[part] for part in ("garment", "figure", "scene"))
        assert man["figure"]["frame"] in ("upper", "full")  # the head is to be seen
        heads.append((man["head"], woman["head"]))
    men, women = zip(*heads, strict=True)
    assert {head["hair"] for head in men} != {head["hair"] for head in women}
    assert any(head["beard"] != "none" for head in men)
    assert all(head["beard"] == "none" for head in women)
    assert all(man["lips"] < woman["lips"] for man, woman in heads)


def test_head_share_zero_shows_the_gender_in_the_garment_only():
    garments = []
    for man, woman in pairs(head_share=0.0):
        assert man["cue"] == woman["cue"] == "garment"
        assert all(man[part] == woman[part] for part in ("head", "scene"))
        assert man["head"]["style"] == "Unisex"
        garments.append((man["garment"], woman["garment"]))
    men, women = (pd.DataFrame(side) for side in zip(*garments, strict=True))
    assert set(men["article"]) != set(women["article"])
    assert set(men["colour"]) != set(women["colour"])
    assert men["shoulder"].mean() > women["shoulder"].mean() + 0.02


def test_head_share_is_the_fraction_of_such_products():
    cues = Counter(man["cue"] for man, _ in pairs(head_share=0.4, count=400))
    assert 0.33 < cues["head"] / 400 < 0.47  # within three standard deviations


def test_a_unisex_garment_is_drawn_pixel_by_pixel_alike():
    """Below the hair the images of both genders are the same but for the head."""
    for records in pairs(head_share=1.0, count=4):
        (man, man_mask), (woman, woman_mask) = (
            [np.asarray(each) for each in synthetic.paint(record, 5)]
            for record in records
        )
        same = (man_mask == woman_mask) & (man_mask == synthetic.GARMENT)
        same[: int(0.8 * len(same))] = False  # the heads' soft shadows
        assert same.any()
        assert (man[same] == woman[same]).all()


# --- counts ---------------------------------------------------------------------------


def test_counts_of_rows_and_files(folder, truth, rows):
    lines = (folder / "styles.csv").read_text().splitlines()[1:]
    files = {int(path.stem): path for path in (folder / "images").iterdir()}
    assert len(rows) == len(lines) == truth["rows"]  # no id twice
    commas = [line.count(",") - 9 for line in lines]
    assert sorted(filter(None, commas)) == [1, 2]
    assert truth["malformed_rows"] == 2
    assert len(files) == truth["images"]
    assert len(rows.keys() - files) == truth["rows_without_image"] == 1
    assert len(files.keys() - rows) == truth["images_without_row"] == 1
    unreadable = sum(not readable(path) for path in files.values())
    assert unreadable == truth["unreadable_images"] == 1


def test_products_and_classes(folder, truth, rows):
    kept = []
    for number, fields in rows.items():
        if fields[1] in ("Men", "Women") and readable(folder / f"images/{number}.jpg"):
            kept.append(label(fields))
    assert len(kept) == truth["products"] == PRODUCTS
    assert [Counter(kept)[number] for number in range(6)] == truth["class_counts"]
    genders = {fields[1] for fields in rows.values()}
    assert genders == {"Men", "Women", "Unisex", "Boys", "Girls"}


def test_duplicates_are_the_stated_ones_and_no_others(folder, truth, rows):
    groups = {}
    for path in filter(readable, (folder / "images").iterdir()):
        with Image.open(path) as image:
            pixels = image.convert("RGB").tobytes()
        groups.setdefault(pixels, []).append(int(path.stem))
    groups = [group for group in groups.values() if len(group) > 1]
    assert len(groups) == truth["duplicate_groups"] == 3
    assert sorted(map(len, groups)) == [2, 2, 3]
    classes = [len({label(rows[number]) for number in group}) for group in groups]
    conflicts = sum(count > 1 for count in classes)
    assert conflicts == truth["duplicate_label_conflicts"] == 1


# --- the folder -----------------------------------------------------------------------


def test_a_finished_folder_is_left_alone(folder):
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert synthetic.draw(folder, products=PRODUCTS, seed=3) == folder
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


def test_a_folder_with_other_settings_is_refused_and_kept(folder):
    with pytest.raises(InputError, match="delete it"):
        synthetic.draw(folder, products=PRODUCTS, seed=4)
    assert (folder / "styles.csv").exists()


def test_a_foreign_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="did not make"):
        synthetic.draw(tmp_path, products=PRODUCTS)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_save_all", fail)
    with pytest.raises(KeyboardInterrupt):
        synthetic.draw(tmp_path / "catalogue", products=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"products": 59}, {"products": 60_000}, {"head_share": 1.1}, {"seed": -1}]
)
def test_settings_that_cannot_be_drawn_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="60 <= products"):
        synthetic.draw(tmp_path / "catalogue", **wrong)
    assert not (tmp_path / "catalogue").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with full_disk(tmp_path / "disk", kibibytes=300) as disk:
        with pytest.raises(InputError, match="No space left"):
            synthetic.draw(disk / "synthetic", products=60)
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/synthetic", "/dev/null/below"])
def test_a_folder_that_cannot_be_written_is_one_line(place):
    with pytest.raises(InputError, match="was not written"):
        synthetic.draw(place, products=60)
