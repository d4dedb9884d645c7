"""Batches, their order, augmentation and normalization, on images of known pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fashionlib import images


def image_set(count=23, height=6, width=5) -> images.ImageSet:
    """Random pictures; the set holds every second row of the array."""
    pixels = np.random.default_rng(1).integers(
        0, 256, (2 * count, height, width, 3), dtype=np.uint8
    )
    return images.ImageSet(pixels, np.arange(0, 2 * count, 2), np.arange(count) % 6)


def random_pixels(count, side) -> torch.Tensor:
    return images.normalize(
        torch.from_numpy(image_set(count, side, side).images[:count])
    )


def collect(data, **options) -> tuple[np.ndarray, np.ndarray]:
    """All pixels as uint8 (N, H, W, 3), and all labels, of one pass."""
    parts = list(images.batches(data, **{"batch_size": 7, **options}))
    pixels = torch.cat([images.denormalize(pixels) for pixels, _ in parts])
    return pixels.numpy(), torch.cat([labels for _, labels in parts]).numpy()


def test_batches_in_order():
    data = image_set()
    parts = list(images.batches(data, batch_size=7))
    assert [tuple(pixels.shape) for pixels, _ in parts] == [(7, 3, 6, 5)] * 3 + [
        (2, 3, 6, 5)
    ]
    for pixels, labels in parts:
        assert pixels.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert pixels.is_contiguous(memory_format=torch.channels_last)
    pixels, labels = collect(data)
    assert (pixels == data.images[::2]).all()
    assert (labels == data.labels).all()


def test_normalising_by_hand_and_back():
    values = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 1, 1, 3)
    expected = [
        (0 / 255 - 0.485) / 0.229,
        (128 / 255 - 0.456) / 0.224,
        (255 / 255 - 0.406) / 0.225,
    ]
    assert images.normalize(values).flatten().tolist() == pytest.approx(
        expected, abs=1e-6
    )
    every = (
        torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    )
    assert torch.equal(images.denormalize(images.normalize(every)), every)


def test_shuffling_depends_on_seed_and_epoch():
    data = image_set()
    passes = {
        (seed, epoch): collect(data, seed=seed, epoch=epoch)[0]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    again = collect(data, seed=1, epoch=1)[0]
    assert (passes[1, 1] == again).all()
    keys = list(passes)
    assert all(
        (passes[a] != passes[b]).any() for i, a in enumerate(keys) for b in keys[:i]
    )
    originals = {
        picture.tobytes(): label
        for picture, label in zip(data.images[::2], data.labels, strict=True)
    }
    pixels, labels = collect(data, epoch=3)
    assert {picture.tobytes() for picture in pixels} == set(
        originals
    )  # every sample once: there are as many
    assert len(pixels) == len(originals)
    assert [
        originals[picture.tobytes()] for picture in pixels
    ] == labels.tolist()  # each with its own label


def test_flipping_mirrors_about_half():
    data = image_set(200)
    straight, _ = collect(data, epoch=2)
    flipped, _ = collect(data, epoch=2, flip=True)
    kept = (flipped == straight).all(axis=(1, 2, 3))
    mirrored = (flipped == straight[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 70 <= mirrored.sum() <= 130  # four standard deviations


def test_moving_by_hand():
    picture = np.repeat(
        np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1), 3, axis=3
    )  # [[0, 1, 2], [3, 4, 5]]
    shifts = np.array([[0, 1], [-1, 0], [0, 1], [1, -1]])
    mirrored = torch.tensor([False, False, True, False])
    rows = torch.zeros(4, dtype=torch.int64)
    moved = images._gather(picture, rows, torch.from_numpy(shifts), mirrored)[..., 0]
    assert moved[0].tolist() == [
        [1, 2, 2],
        [4, 5, 5],
    ]  # looks one column further right; the edge repeats
    assert moved[1].tolist() == [[0, 1, 2], [0, 1, 2]]  # looks one row further up
    assert moved[2].tolist() == [
        [1, 0, 0],
        [4, 3, 3],
    ]  # mirrored, then the mirror image's right edge repeats
    assert moved[3].tolist() == [
        [3, 3, 4],
        [3, 3, 4],
    ]  # one row down, one column to the left


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    reach=st.integers(0, 4),
)
def test_moving_equals_moving_pixel_by_pixel(seed, height, width, reach):
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (6, height, width, 3), dtype=np.uint8)
    rows, mirrored = random.integers(0, 6, 4), random.random(4) < 0.5
    shifts = random.integers(-reach, reach + 1, (4, 2))
    places = [torch.from_numpy(each) for each in (rows, shifts, mirrored)]
    moved = images._gather(pictures, *places).numpy()
    for picture, row, (down, right), mirror in zip(
        moved, rows, shifts, mirrored, strict=True
    ):
        source = pictures[row, :, ::-1] if mirror else pictures[row]
        lines = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        assert (picture == source[lines][:, columns]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_in_other_precisions(dtype, monkeypatch):
    data = image_set()
    expected = torch.cat([pixels for pixels, _ in images.batches(data, batch_size=7)])
    for cache in (2**18, 1):  # the whole batch at once, and a picture at a time
        monkeypatch.setattr(images, "CACHE", cache)
        found = [
            pixels for pixels, _ in images.batches(data, batch_size=7, dtype=dtype)
        ]
        assert {pixels.dtype for pixels in found} == {dtype}
        assert all(
            pixels.is_contiguous(memory_format=torch.channels_last) for pixels in found
        )
        assert torch.equal(
            torch.cat(found), expected.to(dtype)
        )  # rounded once, at the end


def test_cropping_shifts_by_at_most_that_many_pixels():
    height, width, reach = 7, 6, 2
    grid = np.stack(
        [
            *np.meshgrid(np.arange(height), np.arange(width), indexing="ij"),
            np.zeros((height, width)),
        ],
        -1,
    )
    data = images.ImageSet(
        np.repeat(grid[None].astype(np.uint8), 300, 0),
        np.arange(300),
        np.zeros(300, np.int64),
    )
    pixels, _ = collect(data, epoch=0, crop=reach)
    centre = pixels[:, 3, 3, :2].astype(int) - 3  # where the middle pixel came from
    assert set(map(tuple, centre)) == {
        (y, x) for y in range(-2, 3) for x in range(-2, 3)
    }
    for picture, (down, right) in zip(pixels, centre, strict=True):
        assert (
            picture[:, 0, 0] == np.clip(np.arange(height) + down, 0, height - 1)
        ).all()
        assert (
            picture[0, :, 1] == np.clip(np.arange(width) + right, 0, width - 1)
        ).all()


def test_augmentation_does_not_depend_on_the_batch_size():
    data = image_set(50)
    first, labels = collect(data, batch_size=7, epoch=4, flip=True, crop=2)
    for batch_size in (1, 32, 50):
        other, other_labels = collect(
            data, batch_size=batch_size, epoch=4, flip=True, crop=2
        )
        assert (other == first).all()
        assert (other_labels == labels).all()


def test_validation_is_never_augmented():
    data = image_set()
    assert (collect(data, flip=True, crop=2)[0] == data.images[::2]).all()


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [
        (0, 16, []),
        (1, 16, [(0, 1)]),
        (16, 16, [(0, 16)]),
        (17, 16, [(0, 17)]),
        (18, 16, [(0, 16), (16, 18)]),
        (33, 16, [(0, 16), (16, 33)]),
        (3, 2, [(0, 3)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_an_image_left_over_belongs_to_the_batch_before(count, batch_size, expected):
    assert images.batch_bounds(count, batch_size) == expected
    data = image_set(count)
    sizes = [end - start for start, end in expected]
    for first in range(len(expected)):
        options = {"batch_size": batch_size, "epoch": 0, "first_batch": first}
        found = [len(labels) for _, labels in images.batches(data, **options)]
        assert found == sizes[first:]
    in_order = [len(labels) for _, labels in images.batches(data, batch_size=16)]
    assert in_order == [min(16, count - start) for start in range(0, count, 16)]


def test_an_epoch_can_be_gone_on_with():
    data = image_set(50)
    options = {"batch_size": 7, "epoch": 1, "flip": True, "crop": 2}
    whole = list(images.batches(data, **options))
    for first in (0, 3, len(whole)):
        rest = list(images.batches(data, first_batch=first, **options))
        assert len(rest) == len(whole) - first
        assert all(
            torch.equal(a[0], b[0]) for a, b in zip(rest, whole[first:], strict=True)
        )


def test_processes_share_every_batch():
    """50 images in batches of 16: of the last two, a third process gets a copy."""
    data = image_set(50)
    options = {"batch_size": 16, "epoch": 1, "flip": True, "crop": 2}
    shares = [
        list(images.batches(data, rank=rank, world_size=3, **options))
        for rank in range(3)
    ]
    for batch, (pixels, labels) in enumerate(images.batches(data, **options)):
        together = [torch.cat([share[batch][i] for share in shares]) for i in (0, 1)]
        order = [
            place
            for rank in range(3)
            for place in range(len(labels))[rank::3] or [len(labels) - 1]
        ]
        assert torch.equal(together[0], pixels[order])
        assert torch.equal(together[1], labels[order])


def test_pictures_on_the_device_give_the_same_batches():
    data = image_set(50)
    there = images.ImageSet(torch.from_numpy(data.images), data.rows, data.labels)
    options = {"batch_size": 7, "epoch": 1, "flip": True, "crop": 2}
    for ours, theirs in zip(
        images.batches(there, **options), images.batches(data, **options), strict=True
    ):
        assert torch.equal(ours[0], theirs[0])
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours[1], theirs[1])


def test_a_set_moves_to_a_gpu_where_half_of_its_free_memory_holds_it(monkeypatch):
    data, gpu = image_set(20), torch.device("cuda")
    size = 20 * 6 * 5 * 3
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _device: tensor)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * size, 0))
    found = images.to_device(data, gpu)
    assert torch.equal(found.images, torch.from_numpy(data.images[data.rows]))
    assert found.rows.tolist() == list(range(20))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * size - 1, 0))
    assert images.to_device(data, gpu) is data
    assert images.to_device(data, torch.device("cpu")) is data


def test_a_random_subset_is_a_sample_of_the_whole_set():
    """Labels cluster, as they do in the order of ids."""
    data = image_set(600)._replace(labels=np.repeat(np.arange(6), 100))
    few = images.random_subset(data, 120, seed=1)
    assert np.bincount(few.labels).min() > 8  # 20 expected of each class
    assert len(set(few.rows)) == 120
    assert set(few.rows) <= set(data.rows)
    whole = images.random_subset(data, 10_000)
    assert sorted(whole.rows) == data.rows.tolist()
    assert (images.random_subset(data, 50, 1).rows == few.rows[:50]).all()


def test_a_sample_has_the_classes_of_the_whole_set_whatever_their_order():
    """Over many seeds the fractions are right: each row is as likely as any other."""
    data = image_set(600)._replace(labels=np.repeat([0, 1], [400, 200]))
    fractions = [
        images.random_subset(data, 60, seed).labels.mean() for seed in range(50)
    ]
    assert np.mean(fractions) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("present", [[4], [2, 3], [0, 2, 4]])
def test_subsets_of_a_set_that_lacks_classes(present):
    data = image_set(60)._replace(labels=np.resize(present, 60))
    for few in (
        images.random_subset(data, 12),
        images.balanced_subset(data, 12),
        images.stratified_subset(data, 0.2),
    ):
        assert sorted(set(few.labels)) == present
        assert len(set(few.rows)) == len(few.rows) <= 12
    nothing = data._replace(rows=data.rows[:0], labels=data.labels[:0])
    assert len(images.random_subset(nothing, 5).rows) == 0


def test_a_balanced_subset_has_as_many_of_each_class():
    labels = np.repeat(np.arange(6), [3, 50, 50, 50, 50, 97])
    few = images.balanced_subset(image_set(300)._replace(labels=labels), 60)
    assert np.bincount(few.labels).tolist() == [3, 10, 10, 10, 10, 10]


def test_stratified_subsets_hold_each_other():
    labels = np.repeat(np.arange(6), [2, 20, 40, 60, 80, 98])
    data = image_set(300)._replace(labels=labels)
    small, large = (images.stratified_subset(data, part) for part in (0.1, 0.5))
    assert np.bincount(small.labels).tolist() == [1, 2, 4, 6, 8, 10]
    assert np.bincount(large.labels).tolist() == [1, 10, 20, 30, 40, 49]
    assert set(small.rows) <= set(large.rows)


SUBSETS = {
    "random": lambda data, seed: images.random_subset(data, 120, seed),
    "balanced": lambda data, seed: images.balanced_subset(data, 120, seed),
    "stratified": lambda data, seed: images.stratified_subset(data, 0.2, seed),
}


@pytest.mark.parametrize("subset", SUBSETS.values(), ids=SUBSETS)
def test_no_subset_is_a_prefix_of_the_set_or_of_a_class(subset):
    """Ids cluster by class, and within a class by article: here two, 50 each."""
    data = image_set(600)._replace(labels=np.repeat(np.arange(6), 100))
    few = subset(data, 0)
    place = np.searchsorted(data.rows, few.rows)
    assert (data.labels[place] == few.labels).all()
    assert len(set(place)) == 120
    second_article = place % 100 >= 50
    assert 0.35 < second_article.mean() < 0.65  # over 3 standard deviations of a half
    counts = np.bincount(few.labels[second_article], minlength=6)
    assert counts.min() >= 3  # of about 10 in each class
    assert set(subset(data, 1).rows) != set(few.rows)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [False, True])
def test_batches_are_the_same_on_the_gpu(resident):
    data = image_set(50)
    there = images.to_device(data, torch.device("cuda")) if resident else data
    for on_gpu, on_cpu in zip(
        images.batches(there, batch_size=7, device="cuda", epoch=1, flip=True, crop=2),
        images.batches(data, batch_size=7, device="cpu", epoch=1, flip=True, crop=2),
        strict=True,
    ):
        assert on_gpu[0].device.type == "cuda"
        assert on_gpu[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0])
        assert torch.equal(on_gpu[1].cpu(), on_cpu[1])


def test_a_blurred_picture_keeps_its_colour():
    pixels = random_pixels(2, 64)
    smooth = images.blur(pixels, 3.2)
    assert smooth.shape == pixels.shape
    torch.testing.assert_close(
        smooth.mean((2, 3)), pixels.mean((2, 3)), atol=0.05, rtol=0
    )
    assert (smooth.std((2, 3)) < 0.3 * pixels.std((2, 3))).all()
    white = images.white(pixels)
    torch.testing.assert_close(images.blur(white, 3.2), white)


def test_a_blur_is_the_same_under_autocast():
    pixels = random_pixels(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = images.blur(pixels, 5.0)
    assert torch.equal(under, images.blur(pixels, 5.0))
    assert images.blur(pixels.bfloat16(), 5.0).dtype == torch.bfloat16
