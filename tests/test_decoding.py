"""Decoding and resizing, on pictures whose pixels are known beforehand, with Pillow at full resolution as reference."""

import io
import warnings

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, WHITE, encode, solid
from PIL import Image
from sklearn.datasets import load_sample_images

from fashionlib.data import decoding


def bands(*colours, height=10, width=10) -> np.ndarray:
    """Horizontal bands, each `height` rows high: uint8 (len(colours) * height, width, 3)."""
    return np.concatenate(
        [np.full((height, width, 3), colour, np.uint8) for colour in colours]
    )


# --- resizing ---------------------------------------------------------------------------------------------------------


def test_the_three_fits_by_hand():
    tall = bands(BLUE, RED, GREEN)  # 10 wide, 30 high
    cropped = decoding.resize(tall, (10, 10), "crop")  # the middle, at its own scale
    assert (cropped == RED).all()
    padded = decoding.resize(
        tall, (30, 30), "pad"
    )  # the picture in the middle, at its own scale
    assert (padded[:, :10] == WHITE).all()
    assert (padded[:, 20:] == WHITE).all()
    assert (padded[:, 10:20] == tall).all()
    squashed = decoding.resize(tall, (10, 10), "squash")
    assert [tuple(map(int, squashed[row, 5])) for row in (0, 9)] == [BLUE, GREEN]
    assert squashed[4, :, 0].min() > 200  # the red band is now a third of the height
    assert (squashed == squashed[:, :1]).all()


@pytest.mark.parametrize("fit", decoding.FITS)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (200, 3)])
def test_every_fit_gives_every_size(fit, size):
    for shape in ((30, 10), (3, 500), (1, 1), (64, 64)):
        pixels = np.full((*shape, 3), 200, np.uint8)
        resized = decoding.resize(pixels, size, fit)
        assert resized.shape == (*size, 3)
        assert resized.dtype == np.uint8
        assert np.isin(resized, (200, 255)).all()  # the picture, or padding


@pytest.mark.parametrize("fit", decoding.FITS)
def test_several_pictures_at_once_are_what_each_alone_is(fit):
    several = np.random.default_rng(0).integers(0, 256, (3, 301, 83, 3), dtype=np.uint8)
    for size in ((5, 8), (64, 64), (400, 90)):
        together = decoding.resize(several, size, fit, original=(330, 1201))
        alone = [
            decoding.resize(each, size, fit, original=(330, 1201)) for each in several
        ]
        assert (together == np.stack(alone)).all()


def test_enlarging_is_smooth():
    edge = np.repeat(
        np.array([[0, 0, 200, 200]], np.uint8)[..., None], 3, axis=2
    ).repeat(4, axis=0)
    enlarged = decoding.resize(edge, (40, 40))
    assert len(np.unique(enlarged)) > 10  # a ramp, not two blocks


def test_masks_keep_their_values():
    names = np.random.default_rng(0).choice([0, 1, 4], (50, 37)).astype(np.uint8)
    for fit in decoding.FITS:
        small = decoding.resize_mask(names, (13, 11), fit)
        assert small.shape == (13, 11)
        assert set(np.unique(small)) == {0, 1, 4}  # no mixtures such as 2 or 3
    wide = np.full((10, 20), 3, np.uint8)
    padded = decoding.resize_mask(wide, (20, 20), "pad")
    assert (padded[5:15] == 3).all()
    assert (padded[:5] == 0).all()  # padding is background
    reference = np.asarray(
        Image.fromarray(names).resize((11, 13), Image.Resampling.NEAREST)
    )
    assert (decoding.resize_mask(names, (13, 11)) == reference).all()


# --- decoding ---------------------------------------------------------------------------------------------------------


def photograph(height=1600, width=1200, quality=90) -> bytes:
    """Smooth noise at several scales, as large as a photograph of the full catalogue."""
    random = np.random.default_rng(3)
    sum_of_scales = np.zeros((height, width, 3))
    for cell in (400, 100, 25, 5):
        noise = random.integers(
            0, 256, (height // cell, width // cell, 3), dtype=np.uint8
        )
        sum_of_scales += (
            np.asarray(
                Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            )
            / 4.0
        )
    return encode(sum_of_scales.astype(np.uint8), "JPEG", quality=quality)


@pytest.mark.parametrize("size", [(64, 64), (80, 60), (224, 224), (300, 200)])
def test_decoding_at_scale_equals_decoding_whole(size):
    data = photograph()
    scaled, original = decoding.decode(data, size)
    assert original == (1200, 1600)
    assert (
        size[1] <= scaled.shape[1] < 1200
    )  # the decoder did part of the work, and left enough pixels
    assert size[0] <= scaled.shape[0] < 1600
    whole = Image.open(io.BytesIO(data)).resize(size[::-1], Image.Resampling.LANCZOS)
    difference = decoding.resize(scaled, size).astype(float) - np.asarray(whole)
    assert np.abs(difference).mean() < 1
    assert np.asarray(whole).std() > 20  # there was something to lose


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("side", [64, 224])
def test_photographs_are_within_a_grey_level_of_decoding_whole(scale, side):
    for (
        pixels
    ) in load_sample_images().images:  # scikit-learn's two photographs, 640 x 427
        enlarged = Image.fromarray(pixels).resize(
            (scale * 640, scale * 427), Image.Resampling.BICUBIC
        )
        data = encode(np.asarray(enlarged), "JPEG", quality=90)
        scaled, original = decoding.decode(data, (224, 224))
        whole = Image.open(io.BytesIO(data)).resize(
            (side, side), Image.Resampling.LANCZOS
        )
        difference = decoding.resize(scaled, (side, side), original=original).astype(
            float
        ) - np.asarray(whole)
        assert np.abs(difference).mean() < 1


def test_padding_is_within_a_grey_level_too():
    for pixels in load_sample_images().images:
        enlarged = Image.fromarray(pixels).resize(
            (1283, 961), Image.Resampling.BICUBIC
        )  # no multiples of 4
        data = encode(np.asarray(enlarged), "JPEG", quality=90)
        scaled, original = decoding.decode(data, (96, 96))
        assert scaled.shape[1] < 1283
        whole = np.asarray(Image.open(io.BytesIO(data)))
        difference = decoding.resize(scaled, (96, 96), "pad", original=original).astype(
            float
        )
        difference -= decoding.resize(whole, (96, 96), "pad")
        assert np.abs(difference).mean() < 1


def test_a_small_file_is_decoded_whole():
    pixels, original = decoding.decode(encode(bands(RED, BLUE), "JPEG"), (64, 64))
    assert (pixels.shape, original) == ((20, 10, 3), (10, 20))


def sixteen_bit() -> bytes:
    return encode(np.full((80, 60), 0x80FF, np.uint16))


def palette(**options) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (60, 80), BLUE).quantize(4).save(stream, "GIF", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (solid(RED), RED),
        (solid(RED, file_format="JPEG", quality=95), RED),
        (solid(RED, file_format="JPEG", quality=95, progressive=True), RED),
        (solid(128, mode="L", file_format="JPEG"), (128, 128, 128)),
        (solid((0, 255, 255, 0), mode="CMYK", file_format="JPEG", quality=95), RED),
        (palette(), BLUE),
        (sixteen_bit(), (128, 128, 128)),
        (solid((0, 0, 255, 255), mode="RGBA"), BLUE),
        (solid((0, 0, 255, 0), mode="RGBA"), WHITE),
        (solid((100, 0), mode="LA"), WHITE),
        (solid(1, mode="1"), WHITE),
        (solid(RED, file_format="WEBP", lossless=True), RED),
        (solid(RED, file_format="BMP"), RED),
    ],
    ids=[
        "png",
        "jpeg",
        "progressive",
        "greyscale",
        "cmyk",
        "palette",
        "16-bit",
        "opaque",
        "transparent",
        "grey-alpha",
        "bit",
        "webp",
        "bmp",
    ],
)
def test_every_kind_becomes_rgb(data, expected):
    pixels, original = decoding.decode(data, (8, 6))
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.uint8
    assert original == (60, 80)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_turned_upright(orientation):
    left, right = (
        bands(RED, GREEN, height=200, width=100),
        bands(BLUE, WHITE, height=200, width=100),
    )
    upright = Image.fromarray(np.concatenate([left, right], axis=1))
    turn = (
        Image.Transpose
    )  # what the camera has done to the picture: the inverse of what the tag asks for
    undo = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
    }
    undo |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(np.asarray(stored), "JPEG", quality=95, exif=exif)
    pixels, original = decoding.decode(data, (40, 20))
    assert original == (200, 400)
    assert (
        pixels.shape[0] == 2 * pixels.shape[1] < 400
    )  # scaled while decoding, whichever way it lies
    small = decoding.resize(pixels, (40, 20)).astype(int)
    for rows, columns, colour in (
        (0, 0, RED),
        (1, 0, GREEN),
        (0, 1, BLUE),
        (1, 1, WHITE),
    ):
        part = small[
            2 + 20 * rows : 18 + 20 * rows, 2 + 10 * columns : 8 + 10 * columns
        ]
        assert np.abs(part - colour).max() <= 6


def with_tags(tags: bytes) -> bytes:
    """A JPEG of a red band over a blue one, with `tags` in the place of its EXIF data."""
    data, header = encode(bands(RED, BLUE), "JPEG", quality=95), b"Exif\0\0" + tags
    return (
        data[:2]
        + b"\xff\xe1"
        + (len(header) + 2).to_bytes(2, "big")
        + header
        + data[2:]
    )


def orientation_tag(kind: int, value: bytes) -> bytes:
    """EXIF data with nothing but an orientation of the given TIFF type: 2 is text, 3 a whole number, 5 a fraction."""
    return (
        b"II*\0\x08\0\0\0\x01\0\x12\x01"
        + bytes([kind, 0, 1, 0, 0, 0])
        + value.ljust(4, b"\0")
        + bytes(4)
    )


@pytest.mark.parametrize(
    "tags",
    [
        *(
            orientation_tag(2, b"6"),
            orientation_tag(3, b"\0"),
            orientation_tag(3, b"\x09"),
            orientation_tag(5, b"\x1a"),
        ),
        *(b"II*", b"II+\0\x08\0\0\0", b"junk", b""),
    ],
    ids=["text", "0", "9", "fraction", "short", "other", "junk", "none"],
)
def test_tags_that_make_no_sense_do_not_cost_the_picture(tags):
    pixels, original = decoding.decode(with_tags(tags), (10, 5))
    assert (pixels.shape, original) == ((20, 10, 3), (10, 20))
    assert np.abs(pixels[2].astype(int) - RED).max() <= 6


@pytest.mark.parametrize(
    "between",
    [b"", b"\xff", b"\xff\xfe\0\x06note"],
    ids=["first", "fill byte", "comment"],
)
def test_a_rotation_is_seen_wherever_its_tag_stands(between):
    data = with_tags(orientation_tag(3, b"\x06"))
    pixels, original = decoding.decode(data[:2] + between + data[2:], (5, 10))
    assert (pixels.shape, original) == ((10, 20, 3), (20, 10))


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [(259, 4, (70_000).to_bytes(4, "little")), (282, 2, b"72\0\0")],
    ids=["a number too large for its tag", "a word for a number"],
)
def test_a_rotated_picture_with_another_damaged_tag_is_turned(tag, kind, value):
    """What cannot be written again need not be: the picture is wanted, not its tags."""
    entries = [(274, 3, b"\x06\0\0\0"), (tag, kind, value)]
    fields = [
        number.to_bytes(2, "little") + bytes([form, 0, 1, 0, 0, 0]) + held
        for number, form, held in entries
    ]
    tags = b"II*\0\x08\0\0\0\x02\0" + b"".join(sorted(fields)) + bytes(4)
    pixels, original = decoding.decode(with_tags(tags), (5, 10))
    assert (pixels.shape, original) == ((10, 20, 3), (20, 10))
    assert np.abs(pixels[:, 12:].astype(int) - RED).max() <= 6  # above became right


def test_a_rotated_cmyk_photograph():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn to the right
    stream = io.BytesIO()
    Image.fromarray(bands(RED, BLUE, height=80, width=80)).convert("CMYK").save(
        stream, "JPEG", quality=95, exif=exif
    )
    pixels, original = decoding.decode(stream.getvalue(), (20, 40))
    assert original == (160, 80)
    small = decoding.resize(pixels, (20, 40), original=original).astype(int)
    assert np.abs(small[:, 25:35] - RED).max() <= 6  # above became right
    assert np.abs(small[:, 5:15] - BLUE).max() <= 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file is no picture"),
        (b"<html>404 not found</html>", "begins with b'<html>404 no' is no picture"),
        (photograph()[:9000], "truncated"),
        (solid(RED)[:60], "truncated|broken|no picture"),
        (encode(np.zeros((8, 8), np.float32), "TIFF"), "mode F"),
    ],
    ids=["empty", "html", "jpeg", "png", "float"],
)
def test_what_cannot_be_read_has_a_reason(data, reason):
    with pytest.raises(decoding.UNREADABLE, match=reason):
        decoding.decode(data, (64, 64))


@pytest.mark.parametrize(
    "side", [10_000, 20_000]
)  # beyond Pillow's warning, and beyond its own limit
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    assert len(stream.getvalue()) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(decoding.UNREADABLE, match="pixels"):
            decoding.decode(stream.getvalue(), (64, 64))


def test_a_jpeg_with_a_blemish_is_still_decoded():
    data = solid(RED, (64, 64), file_format="JPEG")
    pixels, _ = decoding.decode(data + b"trailing bytes", (8, 8))
    assert np.abs(pixels.astype(int) - RED).max() <= 3


def test_the_digest_tells_pictures_apart():
    pixels = np.zeros((4, 6, 3), np.uint8)
    digests = {
        decoding.digest(pixels, (6, 4)),
        decoding.digest(pixels, (12, 8)),
        decoding.digest(pixels + 1, (6, 4)),
    }
    digests.add(decoding.digest(pixels.reshape(6, 4, 3), (6, 4)))
    assert len(digests) == 4
    assert decoding.digest(np.asfortranarray(pixels), (6, 4)) in digests
