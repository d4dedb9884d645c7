"""Preparation: arrays, index and manifest on pictures known beforehand; killed, crowded, starved and grown."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
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

from fashionlib import catalogue, images
from fashionlib.data import chunks, decoding, prepare
from fashionlib.runtime import InputError


def prepare(
    tmp_path, pictures: dict[int, bytes], sizes=((8, 6),), **options
) -> images.Prepared:
    source = write_catalogue(
        tmp_path / "catalogue", [csv_line(i) for i in pictures], pictures
    )
    options = {"workers": 1, **options}
    return images.load(
        prepare.prepare(source, tmp_path / "prepared", sizes=sizes, **options)
    )


def numbered(product: int) -> bytes:
    """A picture that no other product has, nor one like it: blocks of 10x10, their red is the number."""
    blocks = np.random.default_rng(product).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    blocks[..., 0] = product
    return encode(blocks.repeat(10, axis=0).repeat(10, axis=1))


def numbers(prepared: images.Prepared) -> list[int]:
    """The products whose pictures were prepared as 8 x 6, read from the pixels."""
    return prepared.array((8, 6))[:, 0, 0, 0].tolist()


# --- arrays, index, manifest ------------------------------------------------------------------------------------------


def test_arrays_index_and_counts(tmp_path):
    lines = [
        *(
            csv_line(30, "Women", "Apparel"),
            csv_line(4, "Men", "Footwear"),
            csv_line(17, "Men", "Accessories"),
        ),
        *(csv_line(5, "Boys"), csv_line(6, "Women", name="Set, of two"), csv_line(8)),
    ]
    pictures = {
        30: solid(RED),
        4: solid(GREEN, (90, 90)),
        17: solid(BLUE, (30, 40)),
        5: solid(WHITE),
        99: solid(WHITE),
    }
    source = write_catalogue(tmp_path / "catalogue", lines, pictures)
    prepared = images.load(
        prepare.prepare(source, tmp_path / "prepared", sizes=[8, (4, 6)], workers=1)
    )
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
    del counts["images_per_second"]
    assert counts == {
        "rows": 6,
        "malformed_rows": 1,
        "images": 5,
        "rows_without_image": 2,
        "images_without_row": 1,
        "unreadable_images": 0,
        "products": 3,
        "duplicate_groups": 0,
        "duplicate_label_conflicts": 0,
        "near_duplicate_groups": 0,
        "near_duplicate_label_conflicts": 0,
        "set_aside": 0,
        "class_counts": [1, 0, 0, 1, 1, 0],
        "split_counts": {
            name: int((index["split"] == name).sum())
            for name in ("train", "validation", "test")
        },
        "nested_copies_ignored": 0,
        "source": "catalogue",
        "drawn": False,
    }
    with pytest.raises(
        InputError, match=r"images of 32x32 were not prepared; there are: 8x8, 4x6"
    ):
        prepared.array(32)
    with pytest.raises(InputError, match="masks of 8x8 were not prepared"):
        prepared.array(8, "masks")


def test_subsets(tmp_path):
    prepared = prepare(tmp_path, {i: numbered(i) for i in range(1, 41)})
    parts = [prepared.subset(name, (8, 6)) for name in ("train", "validation", "test")]
    assert [len(part.rows) for part in parts] == [30, 4, 6]
    assert sorted(np.concatenate([part.rows for part in parts])) == list(range(40))
    ids = prepared.index["id"].to_numpy()
    assert all(
        (part.images[part.rows][:, 0, 0, 0] == ids[part.rows]).all() for part in parts
    )
    assert (parts[0].labels == 2).all()
    assert len(prepared.subset("train", (8, 6), classes=[2, 3]).rows) == 30
    assert len(prepared.subset("train", (8, 6), classes=[1]).rows) == 0


@pytest.mark.parametrize("block", [1, 30_000, chunks.BLOCK])
def test_every_row_is_its_own_file_whatever_lies_beside_it(
    tmp_path, monkeypatch, block
):
    monkeypatch.setattr(chunks, "BLOCK", block)
    shapes = [
        (80, 60),
        (60, 80),
        (81, 60),
        (80, 60),
        None,
        (60, 80),
        (80, 60),
        (700, 500),
    ]
    noise = np.random.default_rng(0)
    pictures = {
        i: encode(noise.integers(0, 256, (*shape, 3), dtype=np.uint8))
        if shape
        else b"no picture"
        for i, shape in enumerate(shapes, start=1)
    }
    prepared = prepare(tmp_path, pictures, sizes=((40, 30), (8, 6)))
    assert prepared.index["id"].tolist() == [1, 2, 3, 4, 6, 7, 8]
    for row, product in enumerate(prepared.index["id"]):
        pixels, original = decoding.decode(pictures[product], (40, 30))
        for size in ((40, 30), (8, 6)):
            assert (
                prepared.array(size)[row]
                == decoding.resize(pixels, size, original=original)
            ).all()


def test_unreadable_files_are_left_out_and_named(tmp_path):
    jpeg = encode(np.asarray(Image.effect_noise((200, 200), 80).convert("RGB")), "JPEG")
    pictures = {i: numbered(i) for i in range(1, 8)}
    pictures |= {2: jpeg[: len(jpeg) // 2], 4: b"", 6: b"<html>404 not found</html>"}
    prepared = prepare(tmp_path, pictures, sizes=[(8, 6), 7])
    assert prepared.index["id"].tolist() == [1, 3, 5, 7]
    assert numbers(prepared) == [1, 3, 5, 7]  # rows moved up together with the index
    assert prepared.array(7).shape == (4, 7, 7, 3)
    reasons = {
        entry["id"]: entry["reason"] for entry in prepared.manifest["unreadable"]
    }
    assert sorted(reasons) == [2, 4, 6]
    assert "truncated" in reasons[2]
    assert reasons[4] == "ValueError: an empty file is no picture of a known kind"
    assert (
        reasons[6]
        == "ValueError: a file that begins with b'<html>404 no' is no picture of a known kind"
    )
    assert prepared.manifest["counts"]["unreadable_images"] == 3
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [
        *("images_7x7.npy", "images_8x6.npy", "index.parquet", "manifest.json")
    ]


def test_a_mask_that_cannot_be_read_is_an_unreadable_product(tmp_path):
    source = write_catalogue(
        tmp_path / "catalogue",
        [csv_line(1), csv_line(2)],
        {1: numbered(1), 2: numbered(2)},
    )
    (source / "masks").mkdir()
    (source / "masks" / "1.png").write_bytes(b"no mask")
    (source / "masks" / "2.png").write_bytes(solid(3, mode="L"))
    prepared = images.load(
        prepare.prepare(source, tmp_path / "prepared", sizes=[16], workers=1)
    )
    assert [entry["id"] for entry in prepared.manifest["unreadable"]] == [1]
    assert (prepared.array(16, "masks") == 3).all()
    assert prepared.array(16, "masks").shape == (1, 16, 16)


def test_a_product_without_a_mask_has_an_empty_one(tmp_path):
    source = write_catalogue(
        tmp_path / "catalogue",
        [csv_line(1), csv_line(2)],
        {1: numbered(1), 2: numbered(2)},
    )
    (source / "masks").mkdir()
    (source / "masks" / "2.png").write_bytes(solid(3, mode="L"))
    prepared = images.load(
        prepare.prepare(source, tmp_path / "prepared", sizes=[16], workers=1)
    )
    assert prepared.array(16, "masks").mean(axis=(1, 2)).tolist() == [0, 3]


def test_a_catalogue_without_one_readable_picture(tmp_path):
    with pytest.raises(
        InputError, match=r"none of the 2 pictures of the source can be read"
    ):
        prepare(tmp_path, {1: b"", 2: b"x"})
    assert not (tmp_path / "prepared").exists()


def test_identical_pictures_stay_together(tmp_path):
    pictures = {i: numbered(i) for i in range(1, 60)}
    pictures |= {100 + i: pictures[i] for i in range(1, 11)}
    prepared = prepare(tmp_path, pictures)
    index = prepared.index.set_index("id")
    assert prepared.manifest["counts"]["duplicate_groups"] == 10
    assert index.loc[[101, 110, 59], "exact_group"].tolist() == [1, 10, 59]
    assert (index["group"] == index["exact_group"]).all()
    assert all(
        index.loc[i, "split"] == index.loc[100 + i, "split"] for i in range(1, 11)
    )


def test_near_twins_stay_together_and_names_only_where_asked(tmp_path):
    pixels = np.asarray(Image.open(io.BytesIO(numbered(1))))
    pictures = {i: numbered(i) for i in range(1, 9)}
    pictures[9] = encode(
        np.clip(pixels.astype(int) + 2, 0, 255).astype(np.uint8)
    )  # a little brighter
    lines = [
        csv_line(i, name="Red shirt" if i in (3, 5) else f"Shirt {i}") for i in pictures
    ]
    source = write_catalogue(tmp_path / "catalogue", lines, pictures)

    def groups(**options) -> dict[int, int]:
        folder = prepare.prepare(
            source, tmp_path / "prepared", sizes=[8], workers=1, **options
        )
        prepared = images.load(folder)
        counts = prepared.manifest["counts"]
        assert (counts["duplicate_groups"], counts["near_duplicate_groups"]) == (0, 1)
        assert (prepared.index.groupby("group")["split"].nunique() == 1).all()
        return {
            i: group
            for i, group in zip(
                prepared.index["id"], prepared.index["group"], strict=True
            )
            if i != group
        }

    assert groups() == {9: 1}
    assert groups(group_names=True) == {9: 1, 5: 3}


def test_products_of_all_genders_where_asked_have_no_class_but_their_twins_part(
    tmp_path,
):
    pictures = {i: numbered(i) for i in range(1, 41)}
    pictures |= {100 + i: pictures[i] for i in range(1, 11)}
    lines = [csv_line(i, "Boys" if i > 100 else "Men") for i in pictures]
    source = write_catalogue(tmp_path / "catalogue", lines, pictures)
    kept = {
        everyone: images.load(
            prepare.prepare(
                source,
                tmp_path / str(everyone),
                sizes=[8],
                workers=1,
                all_genders=everyone,
            )
        )
        for everyone in (False, True)
    }
    assert kept[False].index["id"].tolist() == list(range(1, 41))
    index = kept[True].index.set_index("id")
    assert index["label"].tolist() == [2] * 40 + [-1] * 10
    assert all(
        index.loc[i, "split"] == index.loc[100 + i, "split"] for i in range(1, 11)
    )
    assert kept[True].manifest["counts"]["class_counts"] == [0, 0, 40, 0, 0, 0]
    assert kept[True].manifest["counts"]["products"] == 50


def test_a_finished_folder_is_returned_at_once_and_replaced_by_other_settings(tmp_path):
    source = write_catalogue(
        tmp_path / "catalogue",
        [csv_line(1), csv_line(2)],
        {1: solid(RED), 2: solid(BLUE)},
    )
    folder = tmp_path / "prepared"

    def state(**options):
        prepare.prepare(source, folder, **{"sizes": [8], "workers": 1, **options})
        return {
            path.name: (path.stat().st_mtime_ns, path.stat().st_ino)
            for path in folder.iterdir()
        }

    first = state()
    assert state() == first
    assert state(workers=2) == first  # does not change the result
    assert sorted(state(sizes=[8, 9])) == [
        "images_8x8.npy",
        "images_9x9.npy",
        "index.parquet",
        "manifest.json",
    ]
    assert state(fit="pad") != first
    before = state()
    (source / "images" / "1.jpg").write_bytes(solid(GREEN, (61, 81)))
    assert state() != before  # the source has changed
    assert images.load(folder).array(8)[0, 0, 0].tolist() == list(GREEN)


def test_the_manifest_is_what_makes_a_folder_finished(tmp_path, capsys):
    prepared = prepare(tmp_path, {1: solid(RED)})
    newest = max(prepared.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "manifest.json"
    assert len(prepared.checksum((8, 6))) == 64
    newest.unlink()
    with pytest.raises(InputError, match="not a finished preparation"):
        images.load(prepared.folder)
    prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[(8, 6)], workers=1)
    again = images.load(prepared.folder)
    assert again.checksum((8, 6)) == prepared.checksum((8, 6))
    arrays = prepared.folder / "images_8x6.npy"
    arrays.write_bytes(arrays.read_bytes()[:-1])  # cut short: made anew, and said so
    capsys.readouterr()
    prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[(8, 6)], workers=1)
    assert (
        "prepared: its content changed since; preparing again"
        in capsys.readouterr().out
    )
    assert images.load(prepared.folder).array((8, 6)).shape == (1, 8, 6, 3)
    newest.write_text("{ broken")
    with pytest.raises(InputError, match="not a finished preparation"):
        images.load(prepared.folder)


def test_a_preparation_that_fails_leaves_the_earlier_one(tmp_path):
    prepared = prepare(tmp_path, {1: solid(RED)})
    picture = tmp_path / "catalogue" / "images" / "1.jpg"
    picture.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 pictures"):
        prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[16], workers=1)
    assert images.load(prepared.folder).manifest == prepared.manifest
    picture.write_bytes(solid(GREEN))
    prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[16], workers=1)
    assert images.load(prepared.folder).array(16)[0, 0, 0].tolist() == list(GREEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "stretch"}, "fit must be one of squash, pad, crop; found 'stretch'"),
        ({"sizes": []}, r"sizes must be sides .* found \[\]"),
        ({"sizes": [0]}, "sizes must be"),
        ({"sizes": [[80, 60, 3]]}, "sizes must be"),
        ({"sizes": 224}, "sizes must be"),
        ({"sizes": [64.0]}, "sizes must be"),
        ({"sizes": ["64"]}, "sizes must be"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"workers": 0}, "workers -1 or 1 or more; found 0 and 0"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, {1: solid(RED)}, **options)


def test_a_source_without_a_usable_product(tmp_path):
    source = write_catalogue(
        tmp_path / "catalogue", [csv_line(1, "Boys"), csv_line(2)], {1: solid(RED)}
    )
    with pytest.raises(InputError, match="no Men or Women product with an image"):
        prepare.prepare(source, tmp_path / "prepared", sizes=[8])


def test_threads_do_not_change_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 3)  # many chunks from few pictures
    pictures = {i: numbered(i) for i in range(1, 12)}
    source = write_catalogue(
        tmp_path / "catalogue", [csv_line(i) for i in pictures], pictures
    )
    one = images.load(prepare.prepare(source, tmp_path / "one", sizes=[4], workers=1))
    four = images.load(prepare.prepare(source, tmp_path / "four", sizes=[4], workers=4))
    assert one.checksum(4) == four.checksum(4)
    assert one.index.equals(four.index)
    assert json.dumps(one.manifest["settings"]) == json.dumps(four.manifest["settings"])


# --- a catalogue that grows -------------------------------------------------------------------------------------------


def grown(
    tmp_path, pictures: dict[int, bytes], name: str, previous: Path | str = ""
) -> images.Prepared:
    source = write_catalogue(
        tmp_path / f"catalogue-{name}", [csv_line(i) for i in pictures], pictures
    )
    folder = prepare.prepare(
        source, tmp_path / name, sizes=[(8, 6)], previous=previous, workers=1
    )
    return images.load(folder)


def test_old_products_keep_their_part_when_the_catalogue_grows(tmp_path):
    pictures = {i: numbered(i) for i in range(1, 61)}
    before = grown(tmp_path, pictures, "before")
    pictures = (
        {i: pictures[i] for i in range(5, 61)}
        | {i: numbered(i) for i in range(61, 121)}
        | {121: pictures[50]}
    )
    after = grown(tmp_path, pictures, "after", before.folder / "index.parquet")
    old, new = (
        before.index.set_index("id")["split"],
        after.index.set_index("id")["split"],
    )
    assert (new.loc[5:60] == old.loc[5:60]).all()
    assert new[121] == old[50]  # the new twin goes where the old one is
    assert new.value_counts().to_dict() == {
        "train": 87,
        "validation": 12,
        "test": 18,
    }  # 75 : 10 : 15 of 117
    fresh = grown(tmp_path, pictures, "fresh").index.set_index("id")["split"]
    assert (
        fresh.loc[5:60] != old.loc[5:60]
    ).any()  # without the old index they would have moved


def test_a_new_product_that_links_two_parts_is_set_aside(tmp_path):
    left, right = numbered(1), numbered(2)
    pictures = {i: numbered(i) for i in range(3, 41)} | {1: left, 2: right}
    before = grown(tmp_path, pictures, "before")
    index = before.index.copy()
    index.loc[index["id"] == 1, "split"], index.loc[index["id"] == 2, "split"] = (
        "train",
        "test",
    )
    index.to_parquet(tmp_path / "index.parquet")
    lines = [
        csv_line(i, name="One name" if i in (1, 2, 50) else f"Shirt {i}")
        for i in [*pictures, 50]
    ]
    source = write_catalogue(
        tmp_path / "catalogue", lines, pictures | {50: numbered(50)}
    )
    options = {"sizes": [(8, 6)], "workers": 1, "previous": tmp_path / "index.parquet"}
    after = images.load(
        prepare.prepare(source, tmp_path / "after", group_names=True, **options)
    )
    # 1 and 2 have one name, but they are old, and old products keep their part; 50 would link training and test
    parts = after.index.set_index("id")["split"]
    assert (parts[1], parts[2], parts[50]) == ("train", "test", catalogue.ASIDE)
    assert after.manifest["set_aside"] == [50]
    assert after.manifest["counts"]["set_aside"] == 1
    assert sum(len(after.subset(part, (8, 6)).rows) for part in catalogue.SPLITS) == 40


def test_what_is_equal_to_a_product_that_is_set_aside_is_not_parted_from_its_twins(
    tmp_path,
):
    """50 has the name of 1 (training) and the picture of 2 (test): it goes. 51 and 52 have that name alone: they stay
    with 1. 53 has the picture as well, and no name: it belongs to 2."""
    pictures = {i: numbered(i) for i in range(1, 41)}
    before = grown(tmp_path, pictures, "before")
    index = before.index.copy()
    index.loc[index["id"] == 1, "split"], index.loc[index["id"] == 2, "split"] = (
        "train",
        "test",
    )
    index.to_parquet(tmp_path / "index.parquet")
    pictures |= {50: pictures[2], 51: numbered(51), 52: numbered(52), 53: pictures[2]}
    lines = [
        csv_line(i, name="One name" if i in (1, 50, 51, 52) else f"Shirt {i}")
        for i in pictures
    ]
    source = write_catalogue(tmp_path / "catalogue", lines, pictures)
    options = {"sizes": [(8, 6)], "workers": 1, "previous": tmp_path / "index.parquet"}
    after = images.load(
        prepare.prepare(source, tmp_path / "after", group_names=True, **options)
    )
    rows = after.index.set_index("id")
    assert rows.loc[[1, 51, 52], "split"].tolist() == ["train"] * 3
    assert rows.loc[[2, 53, 50], "split"].tolist() == ["test", "test", catalogue.ASIDE]
    assert rows.loc[[1, 51, 52], "group"].tolist() == [1, 1, 1]
    assert rows.loc[[2, 53], "group"].tolist() == [2, 2]
    assert rows.loc[50, "group"] == 50


@pytest.mark.parametrize("content", [None, b"no parquet", "columns", "twice"])
def test_a_previous_index_that_cannot_be_used(tmp_path, content):
    path = tmp_path / "index.parquet"
    if content == "columns":
        pd.DataFrame({"id": [1]}).to_parquet(path)
    elif content == "twice":
        pd.DataFrame({"id": [1, 1], "split": ["train", "test"]}).to_parquet(path)
    elif content:
        path.write_bytes(content)
    with pytest.raises(
        InputError,
        match=r"previous must be the index\.parquet of an earlier preparation",
    ):
        prepare(tmp_path, {1: solid(RED)}, previous=path)


def test_the_index_that_would_be_replaced_cannot_be_the_previous_one(tmp_path):
    prepared = prepare(tmp_path, {1: solid(RED)})
    with pytest.raises(
        InputError,
        match="would be replaced by this one: copy it to another folder first",
    ):
        prepare.prepare(
            tmp_path / "c",
            prepared.folder,
            sizes=[8],
            previous=prepared.folder / "index.parquet",
        )


@pytest.mark.parametrize(
    ("size", "sizes"), [((400, 265), [28]), ((100, 130), [8]), ((9, 7), [2])]
)
def test_sizes_below_that_of_the_thumbnails(tmp_path, size, sizes):
    prepared = prepare(tmp_path, {1: solid(RED, size, file_format="JPEG")}, sizes=sizes)
    assert np.abs(prepared.array(sizes[0]).astype(int) - RED).max() <= 3


# --- killed, crowded, starved -----------------------------------------------------------------------------------------

PICTURES = {i: numbered(i % 250) for i in range(1, 400)}
COMMAND = """
import sys
from fashionlib.data import chunks, prepare
chunks.CHUNK = 5
prepare.prepare(sys.argv[1], __import__("pathlib").Path(sys.argv[2]), sizes=eval(sys.argv[3]), workers=1)
"""


def start(source: Path, folder: Path, sizes: str = "[(8, 6), 96]") -> subprocess.Popen:
    """A preparation in a process of its own."""
    arguments = [sys.executable, "-c", COMMAND, str(source), str(folder), sizes]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def fingerprints(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A catalogue of 400 products, 3 of them unreadable, and what an undisturbed preparation makes of it."""
    folder = tmp_path_factory.mktemp("large")
    pictures = PICTURES | {7: b"", 100: b"x", 333: numbered(1)[:100]}
    source = write_catalogue(
        folder / "catalogue", [csv_line(i) for i in pictures], pictures
    )
    process = start(source, folder / "undisturbed")
    assert process.wait() == 0, process.stdout.read()
    return source, fingerprints(folder / "undisturbed")


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, large):
    source, expected = large
    folder, partial = tmp_path / "prepared", tmp_path / "prepared.partial"
    seen = []
    for kill_at in (
        0,
        1,
        20,
        45,
        70,
    ):  # chunks of 80, when the process is killed; 0: before the first
        process = start(source, folder)
        while (
            process.poll() is None and len(list(partial.glob("facts/*.json"))) < kill_at
        ):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(len(list(partial.glob("facts/*.json"))))
        assert not folder.exists()
    assert seen == sorted(seen)  # nothing done was lost
    assert seen[-1] >= 70
    process = start(source, folder)
    assert process.wait() == 0, process.stdout.read()
    assert fingerprints(folder) == expected
    assert not partial.exists()


@pytest.mark.parametrize(
    "step", ["keep_rows", "_group_and_split", "_checksum", "_tidy"]
)
def test_killed_while_it_finishes(tmp_path, large, step, monkeypatch):
    source, expected = large
    folder = tmp_path / "prepared"
    monkeypatch.setattr(chunks, "CHUNK", 5)
    module = chunks if step == "keep_rows" else preparation
    original, calls = getattr(module, step), []

    def killed_at_the_second_call(*arguments):
        calls.append(step)
        if step == "_tidy":
            (tmp_path / "prepared.partial" / "settings.json").unlink()
        if len(calls) == 2 or step in ("_group_and_split", "_tidy"):
            raise KeyboardInterrupt  # no handler of ours sees it: what is on disk stays as SIGKILL would leave it
        return original(*arguments)

    monkeypatch.setattr(module, step, killed_at_the_second_call)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(source, folder, sizes=[(8, 6), 96], workers=1)
    monkeypatch.setattr(module, step, original)
    monkeypatch.setattr(
        prepare.decoding, "decode", None
    )  # nothing is decoded a second time
    prepare.prepare(source, folder, sizes=[(8, 6), 96], workers=1)
    assert fingerprints(folder) == expected


@pytest.mark.parametrize("sizes", [[9], [8]], ids=["wanted", "earlier"])
def test_killed_between_the_renames_nothing_is_lost(tmp_path, monkeypatch, sizes):
    """The new result is beside its place, the earlier one too; whichever is asked for next is there."""
    prepared = prepare(tmp_path, {1: solid(RED), 2: solid(GREEN)}, sizes=[8])
    rename = Path.rename

    def killed(path, target):
        if path.name == "prepared.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[9], workers=1)
    monkeypatch.undo()
    assert not prepared.folder.exists()
    monkeypatch.setattr(
        prepare.decoding, "decode", None
    )  # nothing is decoded a second time
    folder = prepare.prepare(
        tmp_path / "catalogue", prepared.folder, sizes=sizes, workers=1
    )
    assert images.load(folder).array(sizes[0]).shape == (2, sizes[0], sizes[0], 3)


def test_a_source_that_goes_away_ends_the_run_and_loses_no_product(
    tmp_path, monkeypatch
):
    pictures = {i: numbered(i) for i in range(1, 21)}
    source = write_catalogue(
        tmp_path / "catalogue", [csv_line(i) for i in pictures], pictures
    )
    monkeypatch.setattr(chunks, "CHUNK", 5)
    (source / "images").rename(tmp_path / "elsewhere")
    (source / "images").symlink_to(tmp_path / "elsewhere")  # a share that is mounted
    read = prepare.sources.Source.read

    def unmounted(self, name):
        if name == "images/8.jpg":
            (source / "images").unlink()
            (source / "images").symlink_to(tmp_path / "nowhere")
        return read(self, name)

    monkeypatch.setattr(prepare.sources.Source, "read", unmounted)
    with pytest.raises(
        InputError,
        match=r"source .*catalogue cannot be read \(.*check that it is there",
    ):
        prepare.prepare(source, tmp_path / "prepared", sizes=[(8, 6)], workers=1)
    monkeypatch.setattr(prepare.sources.Source, "read", read)
    (source / "images").unlink()
    (source / "images").symlink_to(tmp_path / "elsewhere")
    prepared = images.load(
        prepare.prepare(source, tmp_path / "prepared", sizes=[(8, 6)], workers=1)
    )
    assert prepared.index["id"].tolist() == list(pictures)
    assert prepared.manifest["counts"]["unreadable_images"] == 0


def test_a_note_that_was_cut_short_is_not_believed(tmp_path, large, monkeypatch):
    source, expected = large
    process = start(source, tmp_path / "prepared")
    partial = tmp_path / "prepared.partial"
    while len(notes := list(partial.glob("facts/*.json"))) < 5:
        time.sleep(0.002)
    process.kill()
    process.wait()
    for note, content in zip(notes, (b"", b'{"sec'), strict=False):
        note.write_bytes(content)
    process = start(source, tmp_path / "prepared")
    assert process.wait() == 0, process.stdout.read()
    assert fingerprints(tmp_path / "prepared") == expected


@pytest.mark.parametrize("harm", ["truncated", "deleted"])
def test_a_damaged_array_is_noticed_and_made_again(tmp_path, harm):
    prepared = prepare(tmp_path, {1: solid(RED), 2: solid(GREEN)}, sizes=[8, 9])
    path, whole = prepared.folder / "images_9x9.npy", fingerprints(prepared.folder)
    path.unlink() if harm == "deleted" else path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"images_9x9\.npy .* is damaged"):
        prepared.array(9)
    prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[8, 9], workers=1)
    assert fingerprints(prepared.folder) == whole


def test_an_index_that_was_loaded_before_is_not_used_with_newer_arrays(tmp_path):
    prepared = prepare(tmp_path, {1: solid(RED), 2: solid(GREEN)}, sizes=[8])
    (tmp_path / "catalogue" / "images" / "1.jpg").write_bytes(solid(BLUE, (61, 80)))
    prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[8], workers=1)
    with pytest.raises(
        InputError, match="newer than what was loaded: restart the notebook"
    ):
        prepared.array(8)


def test_two_with_different_settings_take_turns(tmp_path, large):
    source, expected = large
    processes = [
        start(source, tmp_path / "prepared", sizes) for sizes in ("[(8, 6), 96]", "[7]")
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    prepared = images.load(tmp_path / "prepared")
    if prepared.manifest["settings"]["sizes"] == ["7x7"]:
        assert prepared.array(7).shape == (396, 7, 7, 3)
        prepare.prepare(source, tmp_path / "prepared", sizes=[(8, 6), 96], workers=1)
    assert fingerprints(tmp_path / "prepared") == expected


def test_two_at_once_do_not_disturb_each_other(tmp_path, large):
    source, expected = large
    processes = [start(source, tmp_path / "prepared") for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sum("another process is preparing it" in output for output in outputs) == 2
    assert fingerprints(tmp_path / "prepared") == expected


@contextlib.contextmanager
def small_disk(mebibytes: int):
    """A file system of its own, mounted for a moment (needs root)."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder],
            check=True,
        )
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small disk needs root"
)


@needs_root
def test_a_full_disk(tmp_path, large):
    source, _ = large
    with small_disk(4) as disk:
        folder = prepare.prepare(source, disk / "prepared", sizes=[(8, 6)], workers=1)
        before = fingerprints(folder)
        with pytest.raises(
            InputError,
            match=r"the disk is full \(\d+ MiB free\): make room and run again",
        ):
            prepare.prepare(source, folder, sizes=[96], workers=1)
        assert fingerprints(folder) == before
        assert not (disk / "prepared.partial").exists()  # its space was given back
        images.load(folder)


@needs_root
def test_a_disk_that_fills_up_meanwhile(tmp_path, large, monkeypatch):
    source, _ = large
    monkeypatch.setattr(chunks, "CHUNK", 50)
    with small_disk(32) as disk:
        writing = prepare.artifacts.write_json

        def fill_up_first(path, content):
            if "facts" in str(path) and len(list(path.parent.iterdir())) == 4:
                with contextlib.suppress(OSError), (disk / "other").open("wb") as file:
                    while True:
                        file.write(bytes(4096))
            writing(path, content)

        monkeypatch.setattr(prepare.artifacts, "write_json", fill_up_first)
        with pytest.raises(InputError, match="the disk is full"):
            prepare.prepare(source, disk / "prepared", sizes=[96], workers=1)
        assert (
            len(list((disk / "prepared.partial" / "facts").glob("*.json"))) >= 4
        )  # kept, to go on from
        (disk / "other").unlink()
        monkeypatch.setattr(prepare.artifacts, "write_json", writing)
        images.load(prepare.prepare(source, disk / "prepared", sizes=[96], workers=1))


def test_a_folder_that_cannot_be_written(large):
    source, _ = large
    base = Path(
        tempfile.mkdtemp(dir="/var/tmp")
    )  # pytest's own folders are closed to other users
    try:
        base.chmod(0o755)
        shutil.copytree(source, base / "catalogue")
        finished = prepare.prepare(
            base / "catalogue", base / "prepared", sizes=[(8, 6)], workers=1
        )
        before = fingerprints(finished)
        for path in (finished, base):
            path.chmod(0o555)
        with ordinary_user():
            prepare.prepare(
                base / "catalogue", finished, sizes=[(8, 6)], workers=1
            )  # nothing to do, nothing written
            for folder in (finished, base / "new"):
                with pytest.raises(
                    InputError, match=r"was not prepared: .*cannot be written"
                ):
                    prepare.prepare(base / "catalogue", folder, sizes=[8], workers=1)
        assert fingerprints(finished) == before
    finally:
        for path in (base, *base.iterdir()):
            path.chmod(0o755) if path.is_dir() else None
        shutil.rmtree(base)


def test_a_source_that_has_changed_since(tmp_path, capsys):
    source = write_catalogue(tmp_path / "catalogue", [csv_line(1)], {1: solid(RED)})
    folder = prepare.prepare(source, tmp_path / "prepared", sizes=[8], workers=1)
    (source / "images" / "1.jpg").write_bytes(solid(BLUE, (61, 81)))
    prepare.prepare(source, folder, sizes=[8], workers=1)
    assert (
        "prepared: source_fingerprint changed since; preparing again"
        in capsys.readouterr().out
    )
    assert images.load(folder).array(8)[0, 0, 0].tolist() == list(BLUE)


def test_a_source_that_changes_while_it_is_read(tmp_path, monkeypatch):
    prepared = prepare(tmp_path, {1: solid(RED), 2: solid(GREEN)})
    decode = prepare.decoding.decode

    def changed_meanwhile(*arguments):
        (tmp_path / "catalogue" / "images" / "3.jpg").write_bytes(solid(BLUE))
        return decode(*arguments)

    monkeypatch.setattr(prepare.decoding, "decode", changed_meanwhile)
    with pytest.raises(InputError, match="was changed while it was read"):
        prepare.prepare(tmp_path / "catalogue", prepared.folder, sizes=[9], workers=1)
    assert images.load(prepared.folder).manifest == prepared.manifest
    assert not (tmp_path / "prepared.partial").exists()


def test_memory_does_not_grow_with_the_catalogue(tmp_path):
    """Twelve times the pictures, the same peak (in a process of its own, which reports its own peak)."""
    peaks = []
    for count in (200, 2400):
        pictures = {i: PICTURES[i % 250 + 1] for i in range(1, count + 1)}
        source = write_catalogue(
            tmp_path / f"catalogue-{count}", [csv_line(i) for i in pictures], pictures
        )
        command = (
            COMMAND
            + "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = [
            sys.executable,
            "-c",
            command,
            str(source),
            str(tmp_path / f"prepared-{count}"),
            "[(8, 6), 96]",
        ]
        result = subprocess.run(arguments, capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout.split()[-1]) / 1024)  # MiB
    assert (tmp_path / "prepared-2400" / "images_96x96.npy").stat().st_size > 60 * 2**20
    assert peaks[1] - peaks[0] < 25, peaks


# --- a cluster --------------------------------------------------------------------------------------------------------


def test_a_dask_cluster_of_two_workers(tmp_path, large):
    from dask.distributed import Client, LocalCluster
    from joblib import parallel_config

    source, expected = large
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        parallel_config(backend="dask"),
    ):
        folder = prepare.prepare(source, tmp_path / "prepared", sizes=[(8, 6), 96])
        tasks = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert fingerprints(folder) == expected
    assert len(tasks) == 2
    assert min(tasks.values()) > 0  # both have worked
