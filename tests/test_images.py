"""Decoding, preparing and feeding pictures, on pictures whose pixels are known beforehand."""

import io
import json

import numpy as np
import pytest
import torch
from conftest import csv_line, solid, write_catalogue
from PIL import Image

from fashionlib import images
from fashionlib.runtime import InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(pixels: np.ndarray, file_format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format, **options)
    return stream.getvalue()


def bands(*colours, height=10, width=10) -> np.ndarray:
    """Horizontal bands, each `height` rows high: uint8 (len(colours) * height, width, 3)."""
    return np.concatenate([np.full((height, width, 3), colour, np.uint8) for colour in colours])


def prepare(tmp_path, pictures: dict[int, bytes], sizes=((8, 6),), **options) -> images.Prepared:
    source = write_catalogue(tmp_path / "catalogue", [csv_line(i) for i in pictures], pictures)
    return images.load(images.prepare(source, tmp_path / "prepared", sizes=sizes, workers=1, **options))


# --- decoding and resizing --------------------------------------------------------------------------------------------


def test_the_three_fits_by_hand():
    tall = Image.fromarray(bands(BLUE, RED, GREEN))  # 10 wide, 30 high
    cropped = images.resize(tall, (10, 10), "crop")  # the middle, at its own scale
    assert (cropped == RED).all()
    padded = images.resize(tall, (30, 30), "pad")  # the picture in the middle, at its own scale
    assert (padded[:, :10] == WHITE).all()
    assert (padded[:, 20:] == WHITE).all()
    assert (padded[:, 10:20] == bands(BLUE, RED, GREEN)).all()
    squashed = images.resize(tall, (10, 10), "squash")
    assert [tuple(map(int, squashed[row, 5])) for row in (0, 9)] == [BLUE, GREEN]
    assert squashed[4, :, 0].min() > 200  # the red band is now a third of the height
    assert (squashed == squashed[:, :1]).all()


def test_masks_keep_their_values():
    names = np.random.default_rng(0).choice([0, 1, 4], (50, 37)).astype(np.uint8)
    for fit in images.FITS:
        small = images.resize_mask(Image.fromarray(names), (13, 11), fit)
        assert small.shape == (13, 11)
        assert set(np.unique(small)) == {0, 1, 4}  # no mixtures such as 2 or 3
    wide = np.full((10, 20), 3, np.uint8)
    padded = images.resize_mask(Image.fromarray(wide), (20, 20), "pad")
    assert (padded[5:15] == 3).all()
    assert (padded[:5] == 0).all()  # padding is background


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (solid(RED), RED),
        (solid(128, mode="L", file_format="JPEG"), (128, 128, 128)),
        (solid((0, 255, 255, 0), mode="CMYK", file_format="JPEG", quality=95), RED),
        (Image.new("RGB", (60, 80), BLUE).quantize(4), BLUE),
        (solid((0, 0, 255, 255), mode="RGBA"), BLUE),
    ],
    ids=["rgb", "greyscale", "cmyk", "palette", "rgba"],
)
def test_every_mode_becomes_rgb(tmp_path, data, expected):
    if not isinstance(data, bytes):
        stream = io.BytesIO()
        data.save(stream, "GIF")
        data = stream.getvalue()
    prepared = prepare(tmp_path, {1: data})
    pixels = prepared.array((8, 6))
    assert pixels.shape == (1, 8, 6, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    lying = np.concatenate([bands(RED, height=200, width=200), bands(BLUE, height=200, width=200)], axis=1)  # 400 x 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera says: turn by 90 degrees to the right
    prepared = prepare(tmp_path, {1: encode(lying, "JPEG", quality=95, exif=exif)}, sizes=[[40, 20]])
    assert prepared.index.loc[0, ["width", "height"]].tolist() == [200, 400]
    pixels = prepared.array((40, 20))[0].astype(int)
    assert np.abs(pixels[:17] - RED).max() <= 5  # left has become top
    assert np.abs(pixels[23:] - BLUE).max() <= 5
    upright, _ = images.decode(encode(lying, "JPEG", exif=exif), (40, 20))
    assert upright.size == (50, 100)  # a quarter; an eighth would be less than twice 40 x 20


def photograph(height=1600, width=1200) -> bytes:
    """Smooth noise at several scales, as large as a photograph of the full catalogue."""
    random = np.random.default_rng(3)
    sum_of_scales = np.zeros((height, width, 3))
    for cell in (400, 100, 25, 5):
        noise = random.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8)
        sum_of_scales += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / 4.0
    return encode(sum_of_scales.astype(np.uint8), "JPEG", quality=90)


@pytest.mark.parametrize("size", [(64, 64), (80, 60), (224, 224)])
def test_decoding_at_scale_equals_decoding_whole(size):
    data = photograph()
    scaled, original = images.decode(data, size)
    assert original == (1200, 1600)
    assert 2 * size[1] <= scaled.width < 1200  # the decoder did part of the work, and left twice the pixels needed
    assert 2 * size[0] <= scaled.height < 1600
    whole = Image.open(io.BytesIO(data)).resize(size[::-1], Image.Resampling.LANCZOS)
    difference = images.resize(scaled, size).astype(float) - np.asarray(whole)
    assert np.abs(difference).mean() < 1
    assert np.asarray(whole).std() > 20  # there was something to lose


def test_a_small_file_is_decoded_whole():
    picture, original = images.decode(encode(bands(RED, BLUE), "JPEG"), (64, 64))
    assert picture.size == original == (10, 20)


# --- preparation ------------------------------------------------------------------------------------------------------


def test_arrays_index_and_counts(tmp_path):
    lines = [
        *(csv_line(30, "Women", "Apparel"), csv_line(4, "Men", "Footwear"), csv_line(17, "Men", "Accessories")),
        *(csv_line(5, "Boys"), csv_line(6, "Women", name="Set, of two"), csv_line(8)),
    ]
    pictures = {30: solid(RED), 4: solid(GREEN, (90, 90)), 17: solid(BLUE, (30, 40)), 5: solid(WHITE), 99: solid(WHITE)}
    source = write_catalogue(tmp_path / "catalogue", lines, pictures)
    prepared = images.load(images.prepare(source, tmp_path / "prepared", sizes=[8, (4, 6)], workers=1))
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
        "class_counts": [1, 0, 0, 1, 1, 0],
        "split_counts": {name: int((index["split"] == name).sum()) for name in ("train", "validation", "test")},
        "nested_copies_ignored": 0,
        "source": "catalogue",
        "drawn": False,
    }
    with pytest.raises(InputError, match=r"images of 32x32 were not prepared; there are: 8x8, 4x6"):
        prepared.array(32)
    with pytest.raises(InputError, match="masks of 8x8 were not prepared"):
        prepared.array(8, "masks")


def test_subsets(tmp_path):
    colours = {i: (i, 0, 0) for i in range(1, 41)}
    prepared = prepare(tmp_path, {i: solid(colour) for i, colour in colours.items()}, sizes=[4])
    parts = [prepared.subset(name, 4) for name in ("train", "validation", "test")]
    assert [len(part.rows) for part in parts] == [30, 4, 6]
    assert sorted(np.concatenate([part.rows for part in parts])) == list(range(40))
    ids = prepared.index["id"].to_numpy()
    assert all((part.images[part.rows][:, 0, 0, 0] == ids[part.rows]).all() for part in parts)
    assert (parts[0].labels == 2).all()
    assert len(prepared.subset("train", 4, classes=[2, 3]).rows) == 30
    assert len(prepared.subset("train", 4, classes=[1]).rows) == 0


def test_unreadable_files_are_left_out_and_named(tmp_path):
    jpeg = encode(np.asarray(Image.effect_noise((200, 200), 80).convert("RGB")), "JPEG")
    pictures = {i: solid((i, i, i)) for i in range(1, 8)}
    pictures |= {2: jpeg[: len(jpeg) // 2], 4: b"", 6: b"<html>404 not found</html>"}
    prepared = prepare(tmp_path, pictures, sizes=[5, 7])
    assert prepared.index["id"].tolist() == [1, 3, 5, 7]
    for size in (5, 7):
        assert prepared.array(size)[:, 0, 0, 0].tolist() == [1, 3, 5, 7]  # rows moved up together with the index
        assert prepared.array(size).shape == (4, size, size, 3)
    reasons = {entry["id"]: entry["reason"] for entry in prepared.manifest["unreadable"]}
    assert sorted(reasons) == [2, 4, 6]
    assert "truncated" in reasons[2]
    assert "cannot identify image file" in reasons[4]
    assert prepared.manifest["counts"]["unreadable_images"] == 3
    assert not list((tmp_path / "prepared").glob("*.kept.npy"))


def test_a_catalogue_without_one_readable_picture(tmp_path):
    with pytest.raises(InputError, match=r"none of the 2 pictures can be read"):
        prepare(tmp_path, {1: b"", 2: b"x"})
    assert not (tmp_path / "prepared").exists()


def test_identical_pictures_stay_together(tmp_path):
    pictures = {i: solid((i, 255 - i, 0)) for i in range(1, 60)}
    pictures |= {100 + i: pictures[i] for i in range(1, 11)}
    prepared = prepare(tmp_path, pictures, sizes=[4])
    index = prepared.index.set_index("id")
    assert prepared.manifest["counts"]["duplicate_groups"] == 10
    assert index.loc[[101, 110, 59], "group"].tolist() == [1, 10, 59]
    assert all(index.loc[i, "split"] == index.loc[100 + i, "split"] for i in range(1, 11))


def test_a_finished_folder_is_returned_at_once_and_replaced_by_other_settings(tmp_path):
    source = write_catalogue(tmp_path / "catalogue", [csv_line(1), csv_line(2)], {1: solid(RED), 2: solid(BLUE)})
    folder = tmp_path / "prepared"

    def state(**options):
        images.prepare(source, folder, **{"sizes": [8], "workers": 1, **options})
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}

    first = state()
    assert state() == first
    assert state(workers=2) == first  # does not change the result
    assert sorted(state(sizes=[8, 9])) == ["images_8x8.npy", "images_9x9.npy", "index.parquet", "manifest.json"]
    assert state(fit="pad") != first
    before = state()
    (source / "images" / "1.jpg").write_bytes(solid(GREEN, (61, 81)))
    assert state() != before  # the source has changed
    assert images.load(folder).array(8)[0, 0, 0].tolist() == list(GREEN)


def test_the_manifest_is_what_makes_a_folder_finished(tmp_path):
    prepared = prepare(tmp_path, {1: solid(RED)})
    newest = max(prepared.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "manifest.json"
    assert len(prepared.checksum((8, 6))) == 64
    newest.unlink()
    with pytest.raises(InputError, match="not a finished preparation"):
        images.load(prepared.folder)
    images.prepare(tmp_path / "catalogue", prepared.folder, sizes=[(8, 6)], workers=1)
    again = images.load(prepared.folder)
    assert again.checksum((8, 6)) == prepared.checksum((8, 6))
    newest.write_text("{ broken")
    with pytest.raises(InputError, match="not a finished preparation"):
        images.load(prepared.folder)


def test_a_preparation_that_fails_leaves_the_earlier_one(tmp_path):
    prepared = prepare(tmp_path, {1: solid(RED)})
    (tmp_path / "catalogue" / "masks").mkdir()
    (tmp_path / "catalogue" / "masks" / "1.png").write_bytes(b"no mask")
    with pytest.raises(OSError, match="cannot identify"):
        images.prepare(tmp_path / "catalogue", prepared.folder, sizes=[16], workers=1)
    assert images.load(prepared.folder).manifest == prepared.manifest
    (tmp_path / "catalogue" / "masks" / "1.png").write_bytes(solid(3, mode="L"))
    images.prepare(tmp_path / "catalogue", prepared.folder, sizes=[16], workers=1)
    assert (images.load(prepared.folder).array(16, "masks") == 3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "stretch"}, "fit must be one of squash, pad, crop; found 'stretch'"),
        ({"sizes": []}, r"sizes must be sides .* found \[\]"),
        ({"sizes": [0]}, "sizes must be"),
        ({"sizes": [[80, 60, 3]]}, "sizes must be"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, {1: solid(RED)}, **options)


def test_a_source_without_a_usable_product(tmp_path):
    source = write_catalogue(tmp_path / "catalogue", [csv_line(1, "Boys"), csv_line(2)], {1: solid(RED)})
    with pytest.raises(InputError, match="no Men or Women product with an image"):
        images.prepare(source, tmp_path / "prepared", sizes=[8])


def test_threads_do_not_change_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 3)  # many chunks from few pictures
    source = write_catalogue(
        tmp_path / "catalogue", [csv_line(i) for i in range(1, 12)], {i: solid((i, 0, 0)) for i in range(1, 12)}
    )
    one = images.load(images.prepare(source, tmp_path / "one", sizes=[4], workers=1))
    four = images.load(images.prepare(source, tmp_path / "four", sizes=[4], workers=4))
    assert one.checksum(4) == four.checksum(4)
    assert one.index.equals(four.index)
    assert json.dumps(one.manifest["settings"]) == json.dumps(four.manifest["settings"])


# --- batches ----------------------------------------------------------------------------------------------------------


def image_set(count=23, height=6, width=5) -> images.ImageSet:
    """Random pictures; the set holds every second row of the array."""
    pixels = np.random.default_rng(1).integers(0, 256, (2 * count, height, width, 3), dtype=np.uint8)
    return images.ImageSet(pixels, np.arange(0, 2 * count, 2), np.arange(count) % 6)


def collect(data, **options) -> tuple[np.ndarray, np.ndarray]:
    """All pixels as uint8 (N, H, W, 3), and all labels, of one pass."""
    parts = list(images.batches(data, **{"batch_size": 7, **options}))
    pixels = torch.cat([images.denormalise(pixels) for pixels, _ in parts])
    return pixels.numpy(), torch.cat([labels for _, labels in parts]).numpy()


def test_batches_in_order():
    data = image_set()
    parts = list(images.batches(data, batch_size=7))
    assert [tuple(pixels.shape) for pixels, _ in parts] == [(7, 3, 6, 5)] * 3 + [(2, 3, 6, 5)]
    for pixels, labels in parts:
        assert pixels.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert pixels.is_contiguous(memory_format=torch.channels_last)
    pixels, labels = collect(data)
    assert (pixels == data.images[::2]).all()
    assert (labels == data.labels).all()


def test_normalising_by_hand_and_back():
    values = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 1, 1, 3)
    expected = [(0 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (255 / 255 - 0.406) / 0.225]
    assert images.normalise(values).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(images.denormalise(images.normalise(every)), every)


def test_drop_last():
    data = image_set(23)
    sizes = [len(labels) for _, labels in images.batches(data, batch_size=7, drop_last=True)]
    assert sizes == [7, 7, 7]
    assert [len(labels) for _, labels in images.batches(data, batch_size=23, drop_last=True)] == [23]
    assert list(images.batches(data, batch_size=24, drop_last=True)) == []


def test_shuffling_depends_on_seed_and_epoch():
    data = image_set()
    passes = {(seed, epoch): collect(data, seed=seed, epoch=epoch)[0] for seed in (0, 1) for epoch in (0, 1)}
    again = collect(data, seed=1, epoch=1)[0]
    assert (passes[1, 1] == again).all()
    keys = list(passes)
    assert all((passes[a] != passes[b]).any() for i, a in enumerate(keys) for b in keys[:i])
    originals = {picture.tobytes(): label for picture, label in zip(data.images[::2], data.labels, strict=True)}
    pixels, labels = collect(data, epoch=3)
    assert {picture.tobytes() for picture in pixels} == set(originals)  # every sample once: there are as many
    assert len(pixels) == len(originals)
    assert [originals[picture.tobytes()] for picture in pixels] == labels.tolist()  # each with its own label


def test_flipping_mirrors_about_half():
    data = image_set(200)
    straight, _ = collect(data, epoch=2)
    flipped, _ = collect(data, epoch=2, flip=True)
    kept = (flipped == straight).all(axis=(1, 2, 3))
    mirrored = (flipped == straight[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 70 <= mirrored.sum() <= 130  # four standard deviations


def test_moving_by_hand():
    picture = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3, 1).expand(3, 2, 3, 3)  # [[0, 1, 2], [3, 4, 5]]
    shifts = torch.tensor([[0, 1], [-1, 0], [0, 1]])
    moved = images._move(picture, shifts, torch.tensor([False, False, True]))[..., 0]
    assert moved[0].tolist() == [[1, 2, 2], [4, 5, 5]]  # looks one column further right; the edge repeats
    assert moved[1].tolist() == [[0, 1, 2], [0, 1, 2]]  # looks one row further up
    assert moved[2].tolist() == [[1, 0, 0], [4, 3, 3]]  # mirrored, then the mirror image's right edge repeats


def test_cropping_shifts_by_at_most_that_many_pixels():
    height, width, reach = 7, 6, 2
    grid = np.stack([*np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), np.zeros((height, width))], -1)
    data = images.ImageSet(np.repeat(grid[None].astype(np.uint8), 300, 0), np.arange(300), np.zeros(300, np.int64))
    pixels, _ = collect(data, epoch=0, crop=reach)
    centre = pixels[:, 3, 3, :2].astype(int) - 3  # where the middle pixel came from
    assert set(map(tuple, centre)) == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    for picture, (down, right) in zip(pixels, centre, strict=True):
        assert (picture[:, 0, 0] == np.clip(np.arange(height) + down, 0, height - 1)).all()
        assert (picture[0, :, 1] == np.clip(np.arange(width) + right, 0, width - 1)).all()


def test_augmentation_does_not_depend_on_the_batch_size():
    data = image_set(50)
    first, labels = collect(data, batch_size=7, epoch=4, flip=True, crop=2)
    for batch_size in (1, 32, 50):
        other, other_labels = collect(data, batch_size=batch_size, epoch=4, flip=True, crop=2)
        assert (other == first).all()
        assert (other_labels == labels).all()


def test_validation_is_never_augmented():
    data = image_set()
    assert (collect(data, flip=True, crop=2)[0] == data.images[::2]).all()


@pytest.mark.gpu
def test_batches_are_the_same_on_the_gpu():
    data = image_set(50)
    for on_gpu, on_cpu in zip(
        images.batches(data, batch_size=7, device="cuda", epoch=1, flip=True, crop=2),
        images.batches(data, batch_size=7, device="cpu", epoch=1, flip=True, crop=2),
        strict=True,
    ):
        assert on_gpu[0].device.type == "cuda"
        assert on_gpu[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0])
        assert torch.equal(on_gpu[1].cpu(), on_cpu[1])
