"""The embedded catalogue: same bytes from the same seed, counts that hold on disk, and where the gender shows."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fashionlib.data import synthetic
from fashionlib.runtime import InputError

PRODUCTS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.draw(
        tmp_path_factory.mktemp("synthetic") / "catalogue", products=PRODUCTS, seed=3
    )


@pytest.fixture(scope="module")
def truth(folder):
    return json.loads((folder / "catalogue.json").read_text())


@pytest.fixture(scope="module")
def rows(folder):
    """id -> the ten fields, split here by hand: nothing of the library reads the file."""
    lines = (folder / "styles.csv").read_text().splitlines()
    assert lines[0] == (
        "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
    )
    return {int(line.split(",")[0]): line.split(",", 9) for line in lines[1:]}


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def readable(path):
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        return False
    return True


def label(fields):
    category = {"Accessories": 0, "Apparel": 1}.get(fields[2], 2)
    return 2 * category + ("Men", "Women").index(fields[1])


def pairs(head_share, category=1, count=80):
    """Records that differ in nothing but the gender that was asked for."""
    for number in range(count):
        yield [
            synthetic.describe(
                5, number, head_share=head_share, gender=gender, category=category
            )
            for gender in ("Men", "Women")
        ]


def test_same_seed_gives_same_bytes_and_dates(folder, tmp_path):
    again = synthetic.draw(tmp_path / "again", products=PRODUCTS, seed=3)
    assert contents(again) == contents(folder)
    assert {path.stat().st_mtime for path in again.rglob("*")} == {
        float(synthetic.DATE)
    }


def test_another_seed_gives_other_products():
    first, second = (synthetic.describe(seed, 77, head_share=0.4) for seed in (0, 1))
    assert first["scene"] != second["scene"]
    assert synthetic.describe(0, 77, head_share=0.4) == first


def test_a_picture_depends_on_its_own_record_only(folder, rows):
    """Redrawn alone, a picture equals the one that was drawn among all others."""
    number = next(
        n
        for n, fields in rows.items()
        if fields[1] == "Men" and _is_plain_rgb(folder / f"images/{n}.jpg")
    )
    record = synthetic.describe(3, number, head_share=0.4)
    picture, mask = synthetic.paint(record, 3)
    assert (
        np.asarray(mask) == np.asarray(Image.open(folder / f"masks/{number}.png"))
    ).all()
    stored = np.asarray(Image.open(folder / f"images/{number}.jpg"), np.float32)
    assert (
        abs(np.asarray(picture, np.float32) - stored).mean() < 6
    )  # JPEG's loss, in grey levels


def _is_plain_rgb(path):
    return path.exists() and readable(path) and Image.open(path).mode == "RGB"


def test_counts_of_rows_and_files(folder, truth, rows):
    lines = (folder / "styles.csv").read_text().splitlines()[1:]
    images = {int(path.stem): path for path in (folder / "images").iterdir()}
    assert len(rows) == len(lines) == truth["rows"]  # no id twice
    assert sorted(line.count(",") - 9 for line in lines if line.count(",") > 9) == [
        1,
        2,
    ]
    assert truth["malformed_rows"] == 2
    assert len(images) == truth["images"]
    assert len(rows.keys() - images) == truth["rows_without_image"] == 1
    assert len(images.keys() - rows) == truth["images_without_row"] == 1
    assert (
        sum(not readable(path) for path in images.values())
        == truth["unreadable_images"]
        == 1
    )


def test_products_and_classes(folder, truth, rows):
    kept = [
        label(fields)
        for number, fields in rows.items()
        if fields[1] in ("Men", "Women") and readable(folder / f"images/{number}.jpg")
    ]
    assert len(kept) == truth["products"] == PRODUCTS
    assert [Counter(kept)[number] for number in range(6)] == truth["class_counts"]
    assert {fields[1] for fields in rows.values()} == {
        "Men",
        "Women",
        "Unisex",
        "Boys",
        "Girls",
    }


def test_duplicates_are_the_stated_ones_and_no_others(folder, truth, rows):
    groups = {}
    for path in (folder / "images").iterdir():
        if readable(path):
            with Image.open(path) as picture:
                pixels = hashlib.sha256(picture.convert("RGB").tobytes()).digest()
            groups.setdefault(pixels, []).append(int(path.stem))
    groups = [group for group in groups.values() if len(group) > 1]
    assert len(groups) == truth["duplicate_groups"] == 3
    assert sorted(len(group) for group in groups) == [2, 2, 3]
    conflicts = [
        group for group in groups if len({label(rows[number]) for number in group}) > 1
    ]
    assert len(conflicts) == truth["duplicate_label_conflicts"] == 1


def test_pictures_come_in_the_catalogues_modes_and_sizes(folder):
    pictures = [Image.open(path) for path in (folder / "images").iterdir()]
    assert {picture.mode for picture in pictures} == {"RGB", "L", "CMYK"}
    assert all(3 * picture.height == 4 * picture.width for picture in pictures)
    assert min(picture.width for picture in pictures) == 150
    assert max(picture.width for picture in pictures) == 1800


def test_masks_fit_their_pictures(folder, rows):
    for path in (folder / "images").iterdir():
        mask = Image.open(folder / "masks" / f"{path.stem}.png")
        assert mask.mode == "L"
        assert mask.size == Image.open(path).size
        found = set(np.unique(np.asarray(mask)).tolist())
        apparel = (
            rows[int(path.stem)][2] == "Apparel"
            if int(path.stem) in rows
            else 3 in found
        )
        assert found <= ({0, 1, 2, 3} if apparel else {0, 4})
        assert found & {3, 4}  # a product is to be seen


def test_the_mask_lies_on_what_was_drawn():
    """On a white ground the masked part is dark, the rest is not (a white shirt would prove nothing)."""
    record = synthetic.describe(0, 1, head_share=1.0, gender="Women", category=1)
    record["scene"] |= {"background": "white", "noise": 0.0}
    record["garment"] |= {"colour": "Navy Blue", "pattern": "plain", "beside": "Black"}
    record["head"]["hair_colour"] = synthetic.HAIRS[0]
    picture, mask = (np.asarray(image) for image in synthetic.paint(record, 0))
    assert picture[mask == 2].mean() < 90  # black hair
    assert picture[mask == 0].mean() > 235
    assert 90 < picture[mask == 1].mean() < 240  # skin


def test_head_share_one_shows_the_gender_in_the_head_only():
    heads = []
    for man, woman in pairs(head_share=1.0):
        assert man["cue"] == woman["cue"] == "head"
        assert all(man[part] == woman[part] for part in ("garment", "figure", "scene"))
        assert man["figure"]["frame"] in ("upper", "full")  # the head is in the picture
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
    men, women = zip(*garments, strict=True)
    for name in ("article", "colour"):
        assert {garment[name] for garment in men} != {
            garment[name] for garment in women
        }
    assert (
        np.mean([garment["shoulder"] for garment in men])
        > np.mean([garment["shoulder"] for garment in women]) + 0.02
    )


def test_head_share_is_the_share_of_such_products():
    cues = Counter(man["cue"] for man, _ in pairs(head_share=0.4, count=400))
    assert 0.33 < cues["head"] / 400 < 0.47  # within three standard deviations


def test_a_unisex_garment_is_drawn_pixel_by_pixel_alike():
    """Below the hair the pictures of both genders are the same but for the head."""
    for man, woman in pairs(head_share=1.0, count=4):
        (first, first_mask), (second, second_mask) = (
            synthetic.paint(record, 5) for record in (man, woman)
        )
        same = (np.asarray(first_mask) == 3) & (np.asarray(second_mask) == 3)
        away = (
            np.indices(same.shape)[0] > 0.8 * same.shape[0]
        )  # far from the heads' soft shadows
        assert (same & away).any()
        assert (np.asarray(first)[same & away] == np.asarray(second)[same & away]).all()


def test_every_item_and_garment_can_be_drawn():
    """Each article of the tables, in every variant its drawing has, leaves something in picture and mask."""
    for article in synthetic.ITEMS:
        for style in ("Men", "Women"):
            record = synthetic.describe(0, 9, head_share=0, gender=style, category=0)
            record["item"] |= {
                "article": article,
                "style": style,
                "pattern": synthetic.ITEMS[article].patterns[-1],
            }
            for variant in range(4):
                record["item"]["variant"] = variant
                share = (
                    np.asarray(synthetic.paint(record, 0)[1]) == synthetic.ITEM
                ).mean()
                assert 0.01 < share < 0.7, (article, style, variant)
    for article, kind in synthetic.APPAREL.items():
        record = synthetic.describe(0, 9, head_share=0, gender="Women", category=1)
        record["garment"] |= {
            "article": article,
            "dresses": kind.dresses,
            "hem": kind.hem,
            "pattern": kind.patterns[-1],
        }
        assert (
            np.asarray(synthetic.paint(record, 0)[1]) == synthetic.GARMENT
        ).mean() > 0.05, article


def test_a_finished_folder_is_left_alone(folder):
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert synthetic.draw(folder, products=PRODUCTS, seed=3) == folder
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


def test_a_folder_with_other_settings_is_refused_and_kept(folder):
    with pytest.raises(InputError, match="delete it or name another folder"):
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

    monkeypatch.setattr(synthetic, "_truth", fail)
    monkeypatch.setattr(synthetic, "_save", _save_nothing)
    with pytest.raises(KeyboardInterrupt):
        synthetic.draw(tmp_path / "catalogue", products=60)
    assert list(tmp_path.iterdir()) == []


def _save_nothing(folder, record, entry, seed):
    for name in (f"images/{entry['id']}.jpg", f"masks/{entry['id']}.png"):
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    "wrong", [{"products": 59}, {"products": 60_000}, {"head_share": 1.1}, {"seed": -1}]
)
def test_settings_that_cannot_be_drawn_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="needs 60 <= products"):
        synthetic.draw(tmp_path / "catalogue", **wrong)
    assert not (tmp_path / "catalogue").exists()
