"""Arrays, index and manifest of known images; killed, crowded and starved."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import degenerate
import numpy as np
import pytest
from conftest import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    csv_line,
    encode,
    ordinary_user,
    solid,
    write_catalogue,
)
from PIL import Image

from fashionlib import images
from fashionlib.data import decoding, prepare
from fashionlib.runtime import InputError
from tools import check


def catalogue_of(folder: Path, files: dict[int, bytes]) -> Path:
    return write_catalogue(folder, [csv_line(product) for product in files], files)


def prepared_from(source: Path, folder: Path, **options) -> images.Prepared:
    options = {"sizes": [(8, 6)], "workers": 1, **options}
    return images.load(prepare.prepare(source, folder, **options))


def prepared_of(tmp_path, files: dict[int, bytes], **options) -> images.Prepared:
    source = catalogue_of(tmp_path / "catalogue", files)
    return prepared_from(source, tmp_path / "prepared", **options)


def numbered(product: int) -> bytes:
    """An image like no other: blocks of 10x10 whose red is the product's number."""
    rng = np.random.default_rng(product)
    blocks = rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    blocks[..., 0] = product
    return encode(blocks.repeat(10, axis=0).repeat(10, axis=1))


def content(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which holds a speed."""
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    return {path.name: path.read_bytes() for path in files}


# --- arrays, index, manifest ----------------------------------------------------------


def test_names_of_sizes():
    assert prepare.size_name(224) == "224x224"
    assert prepare.size_name((80, 60)) == prepare.size_name([80, 60]) == "80x60"


def test_arrays_index_and_counts(tmp_path):
    lines = [
        csv_line(30, "Women", "Apparel"),
        csv_line(4, "Men", "Footwear"),
        csv_line(17, "Men", "Accessories"),
        csv_line(5, "Boys"),
        csv_line(6, "Women", name="Set, of two"),
        csv_line(8),
    ]
    files = {30: solid(RED), 4: solid(GREEN, (90, 90)), 17: solid(BLUE, (30, 40))}
    files |= {5: solid(WHITE), 99: solid(WHITE)}
    source = write_catalogue(tmp_path / "catalogue", lines, files)
    prepared = prepared_from(source, tmp_path / "prepared", sizes=[8, (4, 6)])
    index = prepared.index
    assert index["id"].tolist() == [4, 17, 30]
    assert index["label"].tolist() == [4, 0, 3]
    assert index["width"].tolist() == [90, 30, 60]
    assert index["height"].tolist() == [90, 40, 80]
    assert index["masterCategory"].tolist() == ["Footwear", "Accessories", "Apparel"]
    for size, shape in ((8, (3, 8, 8, 3)), ((4, 6), (3, 4, 6, 3))):
        pixels = prepared.array(size)
        assert pixels.shape == shape
        assert isinstance(pixels, np.memmap)
        assert [tuple(map(int, row[2, 3])) for row in pixels] == [GREEN, BLUE, RED]
    counts = prepared.manifest["counts"]
    sets = counts.pop("split_counts")
    assert sets == index["split"].value_counts().reindex(sets, fill_value=0).to_dict()
    assert counts.pop("images_per_second") > 0
    assert counts == {
        "rows": 6,
        "malformed_rows": 1,
        "images": 5,
        "rows_without_image": 2,
        "images_without_row": 1,
        "rows_without_year": 0,
        "rows_not_utf8": 0,
        "other_files": 0,
        "unreadable_images": 0,
        "products": 3,
        "duplicate_groups": 0,
        "duplicate_label_conflicts": 0,
        "near_duplicate_groups": 0,
        "near_duplicate_label_conflicts": 0,
        "class_counts": [1, 0, 0, 1, 1, 0],
        "nested_copies_ignored": 0,
        "source": "catalogue",
        "synthetic": False,
    }
    settings = prepared.manifest["settings"]
    assert settings["sizes"] == ["8x8", "4x6"]
    assert settings["resized_by"] in ("torch", "pillow")
    assert len(settings["code"]) == 64
    names = sorted(path.name for path in (tmp_path / "prepared").iterdir())
    arrays = ["images_4x6.npy", "images_8x8.npy"]
    assert names == [*arrays, "index.parquet", "manifest.json"]


def test_every_row_is_its_own_file_whatever_lies_beside_it(tmp_path):
    sides = [(80, 60), (60, 80), (81, 60), (80, 60), None, (60, 80), (700, 500)]
    rng = np.random.default_rng(0)
    files = {}
    for product, shape in enumerate(sides, start=1):
        noise = rng.integers(0, 256, (*(shape or (1, 1)), 3), dtype=np.uint8)
        files[product] = encode(noise) if shape else b"no image"
    prepared = prepared_of(tmp_path, files, sizes=((40, 30), (8, 6)))
    assert prepared.index["id"].tolist() == [1, 2, 3, 4, 6, 7]
    for row, product in enumerate(prepared.index["id"]):
        pixels, original = decoding.decode(files[product], (40, 30))
        for size in ((40, 30), (8, 6)):
            alone = decoding.resize(pixels, size, original=original)
            assert (prepared.array(size)[row] == alone).all()


def test_unreadable_files_are_left_out_and_named(tmp_path):
    noise = np.asarray(Image.effect_noise((200, 200), 80).convert("RGB"))
    jpeg = encode(noise, "JPEG")
    files = {i: numbered(i) for i in range(1, 8)}
    files |= {2: jpeg[: len(jpeg) // 2], 4: b"", 6: b"<html>404 not found</html>"}
    prepared = prepared_of(tmp_path, files, sizes=[(8, 6), 7])
    assert prepared.index["id"].tolist() == [1, 3, 5, 7]
    # rows moved up together with the index
    assert prepared.array((8, 6))[:, 0, 0, 0].tolist() == [1, 3, 5, 7]
    assert prepared.array(7).shape == (4, 7, 7, 3)
    assert prepared.manifest["counts"]["unreadable_images"] == 3
    unreadable = prepared.manifest["unreadable"]
    assert [entry["id"] for entry in unreadable] == [2, 4, 6]
    reasons = [entry["reason"] for entry in unreadable]
    for reason, word in zip(reasons, ("truncated", "empty", "<html>"), strict=True):
        assert word in reason


def test_masks(tmp_path):
    """1 has a damaged mask, 2 a mask, 3 none."""
    files = {product: numbered(product) for product in (1, 2, 3)}
    source = catalogue_of(tmp_path / "catalogue", files)
    (source / "masks").mkdir()
    (source / "masks" / "1.png").write_bytes(b"no mask")
    (source / "masks" / "2.png").write_bytes(solid(3, mode="L"))
    prepared = prepared_from(source, tmp_path / "prepared", sizes=[16])
    assert [entry["id"] for entry in prepared.manifest["unreadable"]] == [1]
    assert prepared.array(16, "masks").shape == (2, 16, 16)
    assert prepared.array(16, "masks").mean(axis=(1, 2)).tolist() == [3, 0]
    assert prepared.manifest["counts"]["synthetic"]


@pytest.mark.parametrize(
    ("size", "side"), [((400, 265), 28), ((100, 130), 8), ((9, 7), 2)]
)
def test_sizes_below_that_of_the_thumbnails(tmp_path, size, side):
    jpeg = solid(RED, size, file_format="JPEG")
    prepared = prepared_of(tmp_path, {1: jpeg}, sizes=[side])
    assert np.abs(prepared.array(side).astype(int) - RED).max() <= 3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"resize_mode": "stretch"}, "stretch"),
        ({"sizes": []}, r"\[\]"),
        ({"sizes": [0]}, "sizes"),
        ({"sizes": [8, [80, 60, 3]]}, "sizes"),
        ({"sizes": [[80, 60, 3], [80]]}, "sizes"),
        ({"sizes": 224}, "sizes"),
        ({"sizes": [64.0]}, "sizes"),
        ({"sizes": ["64"]}, "sizes"),
        ({"sizes": [8, "64"]}, "sizes"),
        ({"sizes": [True]}, "sizes"),
        ({"sizes": [[8, True]]}, "sizes"),
        ({"sizes": "64"}, "sizes"),
        ({"sizes": None}, "sizes"),
        ({"sizes": [[]]}, "sizes"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"workers": "2"}, "workers"),
        ({"workers": None}, "workers"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, options, word):
    with pytest.raises(InputError, match=word):
        prepared_of(tmp_path, {1: solid(RED)}, **options)


def test_sources_without_a_usable_product(tmp_path):
    with pytest.raises(InputError, match="none of the 2 images"):
        prepared_of(tmp_path, {1: b"", 2: b"x"})
    assert not list(tmp_path.glob("prepared*/"))  # nor an unfinished one
    lines = [csv_line(1, "Boys"), csv_line(2)]
    source = write_catalogue(tmp_path / "boys", lines, {1: solid(RED)})
    with pytest.raises(InputError, match="no Men or Women product"):
        prepared_from(source, tmp_path / "prepared")
    assert not list(tmp_path.glob("prepared*/"))


@pytest.mark.parametrize("name", ["1.jpeg", "1.png", "more/1.jpg", "01.jpg"])
def test_a_check_accepts_what_the_chapter_does(tmp_path, name):
    """Files of other names are no images, for both."""
    source = write_catalogue(tmp_path / "catalogue", [csv_line(1)])
    (source / "images" / "more").mkdir()
    (source / "images" / name).write_bytes(solid(RED))
    for use in (check.check_source, lambda path: prepared_from(path, tmp_path / "p")):
        with pytest.raises(
            InputError, match=r"expected files images/<id>\.jpg, found 0"
        ):
            use(str(source))
    (source / "images" / "1.JPG").write_bytes(solid(RED))
    assert check.check_source(str(source))[0] == str(source)
    counts = prepared_from(source, tmp_path / "p").manifest["counts"]
    assert (counts["images"], counts["other_files"]) == (1, 1)


def test_what_was_read_with_losses_is_counted(tmp_path):
    lines = [csv_line(1), csv_line(2, name="Caf_"), csv_line(3).replace("2011", "")]
    files = {i: numbered(i) for i in (1, 2, 3)}
    source = write_catalogue(tmp_path / "catalogue", lines, files)
    table = source / "styles.csv"
    table.write_bytes(table.read_bytes().replace(b"Caf_", b"Caf\xe9"))
    (source / "images" / "Thumbs.db").write_bytes(b"")
    counts = prepared_from(source, tmp_path / "prepared").manifest["counts"]
    names = ("products", "rows_not_utf8", "rows_without_year", "other_files")
    assert [counts[name] for name in names] == [3, 1, 1, 1]


def test_a_photo_that_is_no_file_is_unreadable_and_named(tmp_path):
    files = {i: numbered(i) for i in (1, 2, 3)}
    source = catalogue_of(tmp_path / "catalogue", files)
    for number in (2, 3):
        (source / "images" / f"{number}.jpg").unlink()
    (source / "images" / "2.jpg").symlink_to("nowhere")
    os.mkfifo(source / "images" / "3.jpg")
    prepared = prepared_from(source, tmp_path / "prepared")
    assert prepared.index["id"].tolist() == [1]
    assert [entry["id"] for entry in prepared.manifest["unreadable"]] == [2, 3]


# --- catalogues that lack something ---------------------------------------------------


@pytest.mark.parametrize("name", degenerate.EVERY)
def test_a_catalogue_that_lacks_something(tmp_path, name):
    source, folder = degenerate.write(name, tmp_path), tmp_path / "prepared"
    if name == "no readable image":
        with pytest.raises(InputError, match="none of the 1 images"):
            prepared_from(source, folder)
        assert not list(tmp_path.glob("prepared*/"))
        return
    prepared = prepared_from(source, folder)
    products = degenerate.EVERY[name]
    unreadable = {entry["id"] for entry in prepared.manifest["unreadable"]}
    expected = [0] * 6
    for product, pair in enumerate(products, start=1):
        expected[degenerate.CLASSES.index(pair)] += product not in unreadable
    counts = prepared.manifest["counts"]
    assert counts["class_counts"] == expected
    assert sum(counts["split_counts"].values()) == len(products) - len(unreadable)
    assert counts["images_per_second"] > 0
    assert not prepared.index.isna().any(axis=None)
    if name.startswith("all images equal"):  # no group is torn, so one set has all
        assert sorted(counts["split_counts"].values()) == [0, 0, len(products)]
    assert len(prepared.array((8, 6))) == len(prepared.index)


def test_threads_do_not_change_the_result(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(prepare, "CHUNK", 3)  # many chunks from few images
    threads = torch.get_num_threads()
    files = {i: numbered(i) for i in range(1, 12)}
    source = catalogue_of(tmp_path / "catalogue", files)
    one = prepared_from(source, tmp_path / "one", workers=1)
    four = prepared_from(source, tmp_path / "four", workers=4)
    assert content(one.folder) == content(four.folder)
    assert one.manifest["settings"] == four.manifest["settings"]
    assert torch.get_num_threads() == threads


# --- duplicates and the split ---------------------------------------------------------


def test_identical_images_stay_together(tmp_path):
    files = {i: numbered(i) for i in range(1, 60)}
    files |= {100 + i: files[i] for i in range(1, 11)}
    prepared = prepared_of(tmp_path, files)
    index = prepared.index.set_index("id")
    assert prepared.manifest["counts"]["duplicate_groups"] == 10
    assert index.loc[[101, 110, 59], "exact_group"].tolist() == [1, 10, 59]
    assert (index["group"] == index["exact_group"]).all()
    split = index["split"]
    assert all(split[i] == split[100 + i] for i in range(1, 11))


def test_near_twins_stay_together_and_names_only_where_asked(tmp_path):
    pixels = np.asarray(Image.open(io.BytesIO(numbered(1))))
    files = {i: numbered(i) for i in range(1, 9)}
    brighter = np.clip(pixels.astype(int) + 2, 0, 255)
    files[9] = encode(brighter.astype(np.uint8))
    names = {i: "Red shirt" if i in (3, 5) else f"Shirt {i}" for i in files}
    lines = [csv_line(i, name=name) for i, name in names.items()]
    source = write_catalogue(tmp_path / "catalogue", lines, files)
    for group_names, expected in ((False, {9: 1}), (True, {9: 1, 5: 3})):
        options = {"sizes": [8], "group_names": group_names}
        prepared = prepared_from(source, tmp_path / "prepared", **options)
        counts = prepared.manifest["counts"]
        assert (counts["duplicate_groups"], counts["near_duplicate_groups"]) == (0, 1)
        assert (prepared.index.groupby("group")["split"].nunique() == 1).all()
        group = prepared.index.set_index("id")["group"]
        assert group[group != group.index].to_dict() == expected


def test_products_of_other_genders_have_no_class_but_their_twins_set(tmp_path):
    files = {i: numbered(i) for i in range(1, 41)}
    files |= {100 + i: files[i] for i in range(1, 11)}
    lines = [csv_line(i, "Boys" if i > 100 else "Men") for i in files]
    source = write_catalogue(tmp_path / "catalogue", lines, files)
    usual = prepared_from(source, tmp_path / "usual")
    assert usual.index["id"].tolist() == list(range(1, 41))
    everyone = prepared_from(source, tmp_path / "everyone", all_genders=True)
    index = everyone.index.set_index("id")
    assert index["label"].tolist() == [2] * 40 + [-1] * 10
    split = index["split"]
    assert all(split[i] == split[100 + i] for i in range(1, 11))
    assert everyone.manifest["counts"]["class_counts"] == [0, 0, 40, 0, 0, 0]
    assert everyone.manifest["counts"]["products"] == 50


# --- finished folders -----------------------------------------------------------------


def test_a_finished_folder_is_returned_at_once_and_replaced_by_other_settings(
    tmp_path, monkeypatch, capsys
):
    files = {1: solid(RED), 2: solid(BLUE)}
    source = catalogue_of(tmp_path / "catalogue", files)
    folder = tmp_path / "prepared"

    def state(**options):
        prepared_from(source, folder, **{"sizes": [8], **options})
        files = [(path.name, path.stat()) for path in folder.iterdir()]
        return {name: (status.st_mtime_ns, status.st_ino) for name, status in files}

    first = state()
    assert state() == first
    assert state(workers=2) == first  # does not change the result
    assert "preparing again" not in capsys.readouterr().out
    assert sorted(state(sizes=[8, 9]))[:2] == ["images_8x8.npy", "images_9x9.npy"]
    said = capsys.readouterr().out
    assert "prepared: sizes changed" in said
    assert str(tmp_path) not in said  # a page shows it: no folder of this machine
    assert state(resize_mode="pad") != first
    monkeypatch.setattr(prepare.artifacts, "code_digest", lambda *modules: "other")
    capsys.readouterr()
    state(resize_mode="pad")
    assert "prepared: code changed" in capsys.readouterr().out
    (source / "images" / "1.jpg").write_bytes(solid(GREEN, (61, 81)))
    state(resize_mode="pad")
    assert "prepared: source_fingerprint changed" in capsys.readouterr().out
    assert images.load(folder).array(8)[0, 0, 4].tolist() == list(GREEN)


def test_the_manifest_is_what_makes_a_folder_finished(tmp_path):
    prepared = prepared_of(tmp_path, {1: solid(RED)})
    newest = max(prepared.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "manifest.json"
    newest.unlink()
    with pytest.raises(InputError, match="not a finished preparation"):
        images.load(prepared.folder)
    again = prepared_from(tmp_path / "catalogue", prepared.folder)
    assert again.checksum((8, 6)) == prepared.checksum((8, 6))
    for damaged in (b"", b"[]", b"\xff", newest.read_bytes()[:-9]):
        newest.write_bytes(damaged)
        again = prepared_from(tmp_path / "catalogue", prepared.folder)
        assert again.checksum((8, 6)) == prepared.checksum((8, 6))


@pytest.mark.parametrize("name", ["images_9x9.npy", "index.parquet"])
@pytest.mark.parametrize("harm", ["truncated", "deleted"])
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, name, harm, capsys):
    files = {1: solid(RED), 2: solid(GREEN)}
    prepared = prepared_of(tmp_path, files, sizes=[8, 9])
    path, whole = prepared.folder / name, content(prepared.folder)
    if harm == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50])
    prepared_from(tmp_path / "catalogue", prepared.folder, sizes=[8, 9])
    assert content(prepared.folder) == whole
    assert "prepared: its content changed" in capsys.readouterr().out


def change(path: Path, place: int = -1) -> None:
    """One byte of a file is another one; its size stays."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)


ALL = ["images_9x9.npy", "images_8x8.npy", "masks_9x9.npy", "index.parquet"]


@pytest.mark.parametrize("name", [*ALL, "manifest.json"])
@pytest.mark.parametrize("place", [-1, 60, 200])
def test_an_overwritten_byte_is_noticed_before_it_is_used(tmp_path, name, place):
    """In the data, in a header, in JSON: by chapters that load, and by the next run."""
    source = catalogue_of(tmp_path / "catalogue", {1: solid(RED), 2: solid(GREEN)})
    (source / "masks").mkdir()
    (source / "masks" / "1.png").write_bytes(solid(3, mode="L"))
    prepared = prepared_from(source, tmp_path / "prepared", sizes=[8, 9])
    whole = content(prepared.folder)
    change(prepared.folder / name, place)

    def use():
        loaded = images.load(prepared.folder)
        for size in (8, 9):
            loaded.array(size), loaded.array(size, "masks")

    with pytest.raises(InputError, match=r"damaged|not a finished"):
        use()
    prepared_from(source, prepared.folder, sizes=[8, 9])
    assert content(prepared.folder) == whole
    use()


ODD = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "deep": b"[" * 10**5,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", ["manifest.json", *ALL[:1], "index.parquet"])
@pytest.mark.parametrize("what", [*ODD, "folder", "other array", "pickle", "turned"])
def test_a_file_of_another_kind_is_one_line_and_made_again(tmp_path, name, what):
    prepared = prepared_of(tmp_path, {1: solid(RED), 2: solid(GREEN)}, sizes=[9])
    whole, path = content(prepared.folder), prepared.folder / name
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what in ODD:
        path.write_bytes(ODD[what])
    else:
        array = {
            "other array": np.zeros((2, 9, 9, 3), np.float32),
            "pickle": np.array([{}, {}], object),
            "turned": np.asfortranarray(np.ones((2, 9, 9, 3), np.uint8)),
        }[what]
        with path.open("wb") as file:
            np.save(file, array)
    with pytest.raises(InputError, match=r"damaged|not a finished"):
        images.load(prepared.folder).array(9)
    if (name, what) != ("manifest.json", "folder"):
        prepared_from(tmp_path / "catalogue", prepared.folder, sizes=[9])
        assert content(prepared.folder) == whole
        return
    with pytest.raises(InputError, match=r"manifest\.json"):
        prepared_from(tmp_path / "catalogue", prepared.folder, sizes=[9])


def test_a_folder_with_files_of_others_is_never_replaced(tmp_path):
    source = catalogue_of(tmp_path / "catalogue", {1: solid(RED)})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years")
    for folder in (mine, source, tmp_path):
        with pytest.raises(InputError, match="would be replaced"):
            prepared_from(source, folder)
    assert (mine / "thesis.txt").read_text() == "three years"
    mine.rename(tmp_path / "new.partial")  # where the work for `new` would lie
    with pytest.raises(InputError, match="would be replaced"):
        prepared_from(source, tmp_path / "new")
    assert (tmp_path / "new.partial" / "thesis.txt").read_text() == "three years"
    assert (source / "images" / "1.jpg").read_bytes() == solid(RED)


def test_a_preparation_that_fails_leaves_the_earlier_one(tmp_path):
    prepared = prepared_of(tmp_path, {1: solid(RED)})
    image = tmp_path / "catalogue" / "images" / "1.jpg"
    image.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 images"):
        prepared_from(tmp_path / "catalogue", prepared.folder, sizes=[16])
    assert images.load(prepared.folder).manifest == prepared.manifest
    image.write_bytes(solid(GREEN))
    again = prepared_from(tmp_path / "catalogue", prepared.folder, sizes=[16])
    assert again.array(16)[0, 0, 0].tolist() == list(GREEN)


# --- sources that change or go away ---------------------------------------------------


def test_a_source_that_changes_while_it_is_read(tmp_path, monkeypatch):
    prepared = prepared_of(tmp_path, {1: solid(RED), 2: solid(GREEN)})
    source, decode = tmp_path / "catalogue", decoding.decode

    def changed_meanwhile(*arguments):
        (source / "images" / "3.jpg").write_bytes(solid(BLUE))
        return decode(*arguments)

    monkeypatch.setattr(decoding, "decode", changed_meanwhile)
    with pytest.raises(InputError, match="was changed while it was read"):
        prepared_from(source, prepared.folder, sizes=[9])
    assert images.load(prepared.folder).manifest == prepared.manifest
    assert not (tmp_path / "prepared.partial").exists()


def test_a_source_that_goes_away_ends_the_run_and_loses_no_product(
    tmp_path, monkeypatch
):
    files = {i: numbered(i) for i in range(1, 21)}
    source = catalogue_of(tmp_path / "catalogue", files)
    monkeypatch.setattr(prepare, "CHUNK", 5)
    elsewhere, link = tmp_path / "elsewhere", source / "images"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)  # a share that is mounted
    read = prepare.sources.Source.read

    def mount(target: Path) -> None:
        link.unlink()
        link.symlink_to(target)

    def unmounted(self, name):
        if name == "images/8.jpg":
            mount(tmp_path / "nowhere")
        return read(self, name)

    monkeypatch.setattr(prepare.sources.Source, "read", unmounted)
    with pytest.raises(InputError, match="cannot be read"):
        prepared_from(source, tmp_path / "prepared")
    monkeypatch.setattr(prepare.sources.Source, "read", read)
    mount(elsewhere)
    prepared = prepared_from(source, tmp_path / "prepared")
    assert prepared.index["id"].tolist() == list(files)
    assert prepared.manifest["counts"]["unreadable_images"] == 0


# --- killed ---------------------------------------------------------------------------


@pytest.fixture
def twenty(tmp_path, monkeypatch) -> tuple[Path, dict[str, bytes]]:
    """20 products in chunks of 5, one unreadable; what a quiet preparation makes."""
    monkeypatch.setattr(prepare, "CHUNK", 5)
    files = {i: numbered(i) for i in range(1, 20)} | {20: b"x"}
    source = catalogue_of(tmp_path / "catalogue", files)
    quiet = prepared_from(source, tmp_path / "quiet", sizes=[(8, 6), 12])
    return source, content(quiet.folder)


STEPS = {  # the step of the work, and which of its calls is the last one
    "_reserve": 2,
    "_decode_chunk": 3,
    "_keep_rows": 2,
    "_check_rows": 3,
    "_group_and_split": 1,
    "_checksums": 1,
}


@pytest.mark.parametrize("step", [*STEPS, "rename"])
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(
    tmp_path, twenty, step, monkeypatch
):
    """KeyboardInterrupt: no handler of ours sees it, the disk stays as SIGKILL's."""
    source, expected = twenty
    owner = Path if step == "rename" else prepare
    original, calls = getattr(owner, step), []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == STEPS.get(step, 1):
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(KeyboardInterrupt):
            prepared_from(source, tmp_path / "prepared", sizes=[(8, 6), 12])
    decoded = []

    def counted(*arguments):
        decoded.append(arguments)
        return original_decode(*arguments)

    original_decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", counted)
    prepared = prepared_from(source, tmp_path / "prepared", sizes=[(8, 6), 12])
    assert content(prepared.folder) == expected
    assert not (tmp_path / "prepared.partial").exists()
    # what was decoded is not decoded again
    assert len(decoded) == {"_reserve": 20, "_decode_chunk": 10}.get(step, 0)


def test_killed_before_the_last_rename_the_new_result_is_found(tmp_path, monkeypatch):
    files = {1: solid(RED), 2: solid(GREEN)}
    folder = prepared_of(tmp_path, files, sizes=[8]).folder

    def killed(path, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared_from(tmp_path / "catalogue", folder, sizes=[9])
    assert not folder.exists()
    monkeypatch.setattr(decoding, "decode", None)  # nothing is decoded a second time
    prepared = prepared_from(tmp_path / "catalogue", folder, sizes=[9])
    assert prepared.array(9).shape == (2, 9, 9, 3)


def test_an_unfinished_folder_of_other_settings_is_not_gone_on_from(
    tmp_path, twenty, monkeypatch, capsys
):
    source, expected = twenty
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_finish", None)
        with pytest.raises(TypeError):
            prepared_from(source, tmp_path / "prepared", resize_mode="pad")
    capsys.readouterr()
    prepared = prepared_from(source, tmp_path / "prepared", sizes=[(8, 6), 12])
    assert content(prepared.folder) == expected
    said = capsys.readouterr().out
    assert "prepared.partial: sizes, resize_mode changed" in said
    assert str(tmp_path) not in said


def stopped(source: Path, folder: Path, monkeypatch, step: str = "_finish") -> Path:
    """What a preparation leaves that was killed at a step."""

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, step, killed)
        with pytest.raises(KeyboardInterrupt):
            prepared_from(source, folder, sizes=[(8, 6), 12])
    return folder.with_name(f"{folder.name}.partial")


@pytest.mark.parametrize("step", ["_finish", "_group_and_split"])
@pytest.mark.parametrize(
    "name", ["images_8x6.npy", "images_12x12.npy", "work/thumbnails.npy"]
)
def test_a_damaged_unfinished_array_is_never_published(
    tmp_path, twenty, monkeypatch, name, step
):
    source, expected = twenty
    partial = stopped(source, tmp_path / "prepared", monkeypatch, step)
    change(partial / name, 5000 if name != "images_8x6.npy" else 1000)
    with pytest.raises(InputError, match=r"was damaged; it is deleted: run again"):
        prepared_from(source, tmp_path / "prepared", sizes=[(8, 6), 12])
    assert not list(tmp_path.glob("prepared*/"))
    again = prepared_from(source, tmp_path / "prepared", sizes=[(8, 6), 12])
    assert content(again.folder) == expected


@pytest.mark.parametrize("step", ["_finish", "_group_and_split"])
@pytest.mark.parametrize("harm", ["empty", "deleted", "turned", "other type", "short"])
def test_an_unfinished_array_of_another_form_is_made_again(
    tmp_path, twenty, monkeypatch, harm, step
):
    source, expected = twenty
    path = stopped(source, tmp_path / "prepared", monkeypatch, step) / "images_8x6.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if harm == "short" else b"")
    if harm == "deleted":
        path.unlink()
    if harm == "turned":
        path.write_bytes(
            whole.replace(b"'fortran_order': False", b"'fortran_order': True ")
        )
    if harm == "other type":
        path.write_bytes(whole.replace(b"'|u1'", b"'|i1'"))
    again = prepared_from(source, tmp_path / "prepared", sizes=[(8, 6), 12])
    assert content(again.folder) == expected


def test_an_altered_manifest_that_waits_for_its_rename_is_not_believed(
    tmp_path, twenty, monkeypatch
):
    source, expected = twenty
    folder = tmp_path / "prepared"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", None)
        with pytest.raises(TypeError):
            prepared_from(source, folder, sizes=[(8, 6), 12])
    change(tmp_path / "prepared.partial" / "images_8x6.npy")
    assert content(prepared_from(source, folder, sizes=[(8, 6), 12]).folder) == expected


@pytest.mark.parametrize("cut", [b"", b'{"sec', b"[]", b"null", b'{"facts": []}', None])
def test_a_note_that_was_cut_short_is_not_believed(tmp_path, twenty, monkeypatch, cut):
    source, expected = twenty
    partial = stopped(source, tmp_path / "prepared", monkeypatch)
    note = min(partial.glob("work/notes/*.json"))
    altered = note.read_bytes().replace(b'"width": 60', b'"width": 61')
    note.write_bytes(altered if cut is None else cut)
    with (partial / "images_8x6.npy").open("r+b") as file:
        file.seek(128)
        file.write(bytes(8 * 6 * 3 * 5))  # nor was its chunk written
    prepared = prepared_from(source, tmp_path / "prepared", sizes=[(8, 6), 12])
    assert content(prepared.folder) == expected


# --- processes of their own -----------------------------------------------------------

COMMAND = """
import sys
from pathlib import Path
from fashionlib.data import prepare
prepare.CHUNK = 5
prepare.prepare(sys.argv[1], Path(sys.argv[2]), sizes=eval(sys.argv[3]), workers=1)
"""


def start(source: Path, folder: Path, sizes: str = "[(8, 6), 96]") -> subprocess.Popen:
    """A preparation in a process of its own."""
    arguments = [sys.executable, "-c", COMMAND, str(source), str(folder), sizes]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, **pipes)


def finished(*processes: subprocess.Popen) -> list[str]:
    """What they have printed."""
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(outputs), outputs
    return outputs


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """399 products, 3 of them unreadable; what an undisturbed process makes of them."""
    folder = tmp_path_factory.mktemp("large")
    files = {i: numbered(i % 250) for i in range(1, 400)}
    files |= {7: b"", 100: b"x", 333: numbered(1)[:100]}
    source = catalogue_of(folder / "catalogue", files)
    finished(start(source, folder / "undisturbed"))
    return source, content(folder / "undisturbed")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, large):
    source, expected = large
    folder, partial = tmp_path / "prepared", tmp_path / "prepared.partial"

    def notes() -> int:
        return len(list(partial.glob("work/notes/*.json")))

    seen = []
    for kill_at in (0, 1, 20, 45, 70):  # of 80 chunks; 0: before the first
        process = start(source, folder)
        while process.poll() is None and notes() < kill_at:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(notes())
        assert not folder.exists()
    assert seen == sorted(seen)  # nothing done was lost
    assert seen[-1] >= 70
    finished(start(source, folder))
    assert content(folder) == expected
    assert not partial.exists()


@pytest.mark.slow
def test_several_at_once_do_not_disturb_each_other(tmp_path, large):
    source, expected = large
    finished(*(start(source, tmp_path / "prepared") for _ in range(3)))
    assert content(tmp_path / "prepared") == expected


@pytest.mark.slow
def test_two_with_different_settings_take_turns(tmp_path, large):
    source, expected = large
    folder = tmp_path / "prepared"
    finished(start(source, folder), start(source, folder, "[7]"))
    if images.load(folder).manifest["settings"]["sizes"] == ["7x7"]:
        assert images.load(folder).array(7).shape == (396, 7, 7, 3)
        finished(start(source, folder))
    assert content(folder) == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_catalogue(tmp_path):
    """Twelve times the images, the same peak, which each process reports itself."""
    reporting = "import resource\npeak = resource.getrusage(resource.RUSAGE_SELF)\n"
    command = f"{COMMAND}{reporting}print(peak.ru_maxrss)"
    files = {i: numbered(i) for i in range(1, 251)}
    peaks = []
    for count in (200, 2400):
        chosen = {i: files[i % 250 + 1] for i in range(1, count + 1)}
        source = catalogue_of(tmp_path / f"catalogue-{count}", chosen)
        folder = tmp_path / f"prepared-{count}"
        arguments = [sys.executable, "-c", command, str(source), str(folder), "[96]"]
        result = subprocess.run(arguments, capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout.split()[-1]) / 1024)  # MiB
    assert (folder / "images_96x96.npy").stat().st_size > 60 * 2**20
    assert peaks[1] - peaks[0] < 25, peaks


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers(tmp_path, large):
    from dask.distributed import Client, LocalCluster
    from joblib import parallel_config

    source, expected = large
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        LocalCluster(**options) as cluster,
        Client(cluster) as client,
        parallel_config(backend="dask"),
    ):
        sizes = [(8, 6), 96]
        folder = prepare.prepare(source, tmp_path / "prepared", sizes=sizes)
        tasks = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert content(folder) == expected
    assert len(tasks) == 2
    assert min(tasks.values()) > 0  # both have worked


# --- disks ----------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(mebibytes: int):
    """A file system of its own, mounted for a moment (needs root)."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder]
        subprocess.run(mount, check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small disk needs root"
)


@needs_root
def test_a_full_disk(tmp_path):
    files = {i: numbered(i) for i in range(1, 200)}
    source = catalogue_of(tmp_path / "catalogue", files)
    with small_disk(4) as disk:
        prepared = prepared_from(source, disk / "prepared")
        before = content(prepared.folder)
        with pytest.raises(InputError, match="No space left"):
            prepared_from(source, prepared.folder, sizes=[96])
        assert content(prepared.folder) == before
        assert not (disk / "prepared.partial").exists()  # its space was given back
        images.load(prepared.folder)


@needs_root
def test_a_disk_that_fills_up_meanwhile(tmp_path, monkeypatch):
    files = {i: numbered(i) for i in range(1, 200)}
    source = catalogue_of(tmp_path / "catalogue", files)
    monkeypatch.setattr(prepare, "CHUNK", 25)
    with small_disk(16) as disk:
        notes = disk / "prepared.partial" / "work" / "notes"
        decode_chunk = prepare._decode_chunk

        def fill_up_first(job, first, members):
            if first == 100:
                with contextlib.suppress(OSError), (disk / "other").open("wb") as file:
                    while True:
                        file.write(bytes(4096))
            return decode_chunk(job, first, members)

        with monkeypatch.context() as patch:
            patch.setattr(prepare, "_decode_chunk", fill_up_first)
            with pytest.raises(InputError, match="No space left"):
                prepared_from(source, disk / "prepared", sizes=[96])
        done = [note for note in notes.iterdir() if note.stat().st_size]
        assert len(done) == 4  # kept, to go on from
        (disk / "other").unlink()
        prepared_from(source, disk / "prepared", sizes=[96])


def test_a_folder_that_cannot_be_written():
    base = Path(tempfile.mkdtemp(dir="/var/tmp"))  # pytest's own are closed to others
    try:
        base.chmod(0o755)
        source = catalogue_of(base / "catalogue", {1: numbered(1)})
        folder = prepared_from(source, base / "prepared").folder
        before = content(folder)
        for path in (folder, base):
            path.chmod(0o555)
        with ordinary_user():
            prepared_from(source, folder)  # nothing to do, nothing written
            for place in (folder, base / "new"):
                with pytest.raises(InputError, match="was not written"):
                    prepared_from(source, place, sizes=[8])
        base.chmod(0o777)  # what is replaced is closed, what is around it open
        (base / "prepared.lock").chmod(0o666)
        with ordinary_user(), pytest.raises(InputError, match="was not written"):
            prepared_from(source, folder, sizes=[8])
        assert content(folder) == before
        images.load(folder)
    finally:
        for path in (base, base / "prepared"):
            path.chmod(0o755)
        shutil.rmtree(base)
