"""Decoding and resizing known pixels; Pillow at full resolution as second opinion."""

import io
import warnings

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, WHITE, encode, solid
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images

from fashionlib.data import decoding
from fashionlib.runtime import InputError

LANCZOS, BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC


def bands(*colours, height=10, width=10) -> np.ndarray:
    """Horizontal bands, each `height` rows high, uint8."""
    rows = [np.full((height, width, 3), colour, np.uint8) for colour in colours]
    return np.concatenate(rows)


def grey_levels(pixels: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference."""
    return float(np.abs(pixels.astype(float) - other).mean())


@pytest.fixture(params=["torch", "pillow"])
def resized_by(request, monkeypatch):
    """Both ways to resize; a torch below 2.15 has only the second one."""
    if request.param == "torch" and decoding.resized_by() == "pillow":
        pytest.skip("this torch cannot resize bytes by Lanczos")
    monkeypatch.setattr(decoding, "resized_by", lambda: request.param)
    return request.param


# --- resizing -------------------------------------------------------------------------


def test_the_three_modes_by_hand(resized_by):
    tall = bands(BLUE, RED, GREEN)  # 10 wide, 30 high
    cropped = decoding.resize(tall, (10, 10), "crop")  # the middle, at its own scale
    assert (cropped == RED).all()
    padded = decoding.resize(tall, (30, 30), "pad")  # at its own scale, too
    assert (padded[:, :10] == WHITE).all()
    assert (padded[:, 20:] == WHITE).all()
    assert (padded[:, 10:20] == tall).all()
    squashed = decoding.resize(tall, (10, 10), "squash")
    assert [tuple(map(int, squashed[row, 5])) for row in (0, 9)] == [BLUE, GREEN]
    assert squashed[4, :, 0].min() > 200  # the red band is now a third of the height
    assert (squashed == squashed[:, :1]).all()


def test_an_unknown_mode_is_refused():
    for resize in (decoding.resize, decoding.resize_mask):
        with pytest.raises(InputError, match="stretch"):
            resize(np.zeros((4, 4), np.uint8), (2, 2), "stretch")


@pytest.mark.parametrize("mode", decoding.RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (200, 3)])
def test_every_mode_gives_every_size(mode, size):
    for shape in ((30, 10), (3, 500), (1, 1), (64, 64)):
        pixels = np.full((*shape, 3), 200, np.uint8)
        resized = decoding.resize(pixels, size, mode)
        assert resized.shape == (*size, 3)
        assert resized.dtype == np.uint8
        assert np.isin(resized, (200, 255)).all()  # the image, or padding


@pytest.mark.parametrize("mode", decoding.RESIZE_MODES)
def test_several_images_at_once_are_what_each_alone_is(mode, resized_by):
    several = np.random.default_rng(0).integers(0, 256, (3, 301, 83, 3), dtype=np.uint8)
    original = (330, 1201)
    for size in ((5, 8), (64, 64), (400, 90)):
        together = decoding.resize(several, size, mode, original=original)
        for alone, expected in zip(several, together, strict=True):
            resized = decoding.resize(alone, size, mode, original=original)
            assert (resized == expected).all()


@pytest.mark.parametrize("mode", decoding.RESIZE_MODES)
def test_torch_and_pillow_agree(mode, monkeypatch):
    if decoding.resized_by() == "pillow":
        pytest.skip("this torch cannot resize bytes by Lanczos")
    image = load_sample_images().images[0]
    by = {}
    for name in ("torch", "pillow"):
        monkeypatch.setattr(decoding, "resized_by", lambda name=name: name)
        by[name] = decoding.resize(image, (50, 64), mode, original=(1280, 853))
    assert grey_levels(by["torch"], by["pillow"]) < 0.5


def test_a_torch_without_lanczos_for_bytes_is_said_once(monkeypatch, capsys):
    def missing(*arguments):
        raise ValueError("Anti-alias option is restricted to bilinear and bicubic")

    monkeypatch.setattr(decoding, "_lanczos_torch", missing)
    decoding.resized_by.cache_clear()
    try:
        for _ in range(2):
            assert decoding.resize(bands(RED), (4, 4)).shape == (4, 4, 3)
        assert decoding.resized_by() == "pillow"
        assert capsys.readouterr().out.count("Pillow does") == 1
    finally:
        decoding.resized_by.cache_clear()


def test_enlarging_is_smooth(resized_by):
    edge = np.zeros((4, 4, 3), np.uint8)
    edge[:, 2:] = 200
    enlarged = decoding.resize(edge, (40, 40))
    assert len(np.unique(enlarged)) > 10  # a ramp, not two blocks


def test_masks_keep_their_values():
    names = np.random.default_rng(0).choice([0, 1, 4], (50, 37)).astype(np.uint8)
    for mode in decoding.RESIZE_MODES:
        small = decoding.resize_mask(names, (13, 11), mode)
        assert small.shape == (13, 11)
        assert set(np.unique(small)) == {0, 1, 4}  # no mixtures such as 2 or 3
    wide = np.full((10, 20), 3, np.uint8)
    padded = decoding.resize_mask(wide, (20, 20), "pad")
    assert (padded[5:15] == 3).all()
    assert (padded[:5] == 0).all()  # padding is background
    reference = Image.fromarray(names).resize((11, 13), Image.Resampling.NEAREST)
    assert (decoding.resize_mask(names, (13, 11)) == np.asarray(reference)).all()


# --- at the scale that is needed ------------------------------------------------------


def photograph(height=1600, width=1200, file_format="JPEG", **options) -> bytes:
    """Smooth noise at several scales, as large as the full catalogue's images."""
    rng = np.random.default_rng(3)
    total = np.zeros((height, width, 3))
    for cell in (400, 100, 25, 5):
        shape = (height // cell, width // cell, 3)
        noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), BICUBIC)) / 4.0
    return encode(total.astype(np.uint8), file_format, **options)


def enlarged_samples(width: int, height: int):
    """scikit-learn's two photographs, 640 x 427 pixels, as JPEGs of another size."""
    for pixels in load_sample_images().images:
        larger = Image.fromarray(pixels).resize((width, height), BICUBIC)
        yield encode(np.asarray(larger), "JPEG", quality=90)


@pytest.mark.parametrize("size", [(64, 64), (80, 60), (224, 224), (300, 200)])
@pytest.mark.parametrize("file_format", ["JPEG", "BMP"])
def test_decoding_at_scale_equals_decoding_whole(size, file_format):
    data = photograph(file_format=file_format)
    scaled, original = decoding.decode(data, size)
    assert original == (1200, 1600)
    # the decoder did part of the work, and left enough pixels
    assert size[1] <= scaled.shape[1] < 1200
    assert size[0] <= scaled.shape[0] < 1600
    whole = np.asarray(Image.open(io.BytesIO(data)).resize(size[::-1], LANCZOS))
    resized = decoding.resize(scaled, size, original=original)
    assert grey_levels(resized, whole) < 1
    assert whole.std() > 20  # there was something to lose


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("side", [64, 224])
def test_photographs_are_within_a_grey_level_of_decoding_whole(scale, side):
    for data in enlarged_samples(scale * 640, scale * 427):
        scaled, original = decoding.decode(data, (224, 224))
        whole = Image.open(io.BytesIO(data)).resize((side, side), LANCZOS)
        resized = decoding.resize(scaled, (side, side), original=original)
        assert grey_levels(resized, np.asarray(whole)) < 1


def test_padding_is_within_a_grey_level_too():
    for data in enlarged_samples(1283, 961):  # no multiples of 4
        scaled, original = decoding.decode(data, (96, 96))
        assert scaled.shape[1] < 1283
        whole = np.asarray(Image.open(io.BytesIO(data)))
        padded = decoding.resize(scaled, (96, 96), "pad", original=original)
        assert grey_levels(padded, decoding.resize(whole, (96, 96), "pad")) < 1


def test_a_small_file_is_decoded_whole():
    pixels, original = decoding.decode(encode(bands(RED, BLUE), "JPEG"), (64, 64))
    assert (pixels.shape, original) == ((20, 10, 3), (10, 20))


# --- kinds of files -------------------------------------------------------------------


def palette() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (60, 80), BLUE).quantize(4).save(stream, "GIF")
    return stream.getvalue()


JPEG = {"file_format": "JPEG", "quality": 95}
KINDS = {
    "png": (solid(RED), RED),
    "jpeg": (solid(RED, **JPEG), RED),
    "progressive": (solid(RED, **JPEG, progressive=True), RED),
    "greyscale": (solid(128, mode="L", **JPEG), (128, 128, 128)),
    "cmyk": (solid((0, 255, 255, 0), mode="CMYK", **JPEG), RED),
    "palette": (palette(), BLUE),
    "16-bit": (encode(np.full((80, 60), 0x80FF, np.uint16)), (128, 128, 128)),
    "opaque": (solid((0, 0, 255, 255), mode="RGBA"), BLUE),
    "transparent": (solid((0, 0, 255, 0), mode="RGBA"), WHITE),
    "grey-alpha": (solid((100, 0), mode="LA"), WHITE),
    "bit": (solid(1, mode="1"), WHITE),
    "webp": (solid(RED, file_format="WEBP", lossless=True), RED),
    "bmp": (solid(RED, file_format="BMP"), RED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb(kind):
    data, expected = KINDS[kind]
    pixels, original = decoding.decode(data, (8, 6))
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.uint8
    assert original == (60, 80)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_turned_upright(orientation):
    left = bands(RED, GREEN, height=200, width=100)
    right = bands(BLUE, WHITE, height=200, width=100)
    stored = Image.fromarray(np.concatenate([left, right], axis=1))
    if orientation > 1:  # what the camera did: the inverse of what the tag asks for
        turn = decoding.TURNS[orientation]
        inverse = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
        inverse |= {Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
        stored = stored.transpose(inverse.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(np.asarray(stored), "JPEG", quality=95, exif=exif)
    pixels, original = decoding.decode(data, (40, 20))
    assert original == (200, 400)
    # scaled while decoding, whichever way it lies
    assert pixels.shape[0] == 2 * pixels.shape[1] < 400
    small = decoding.resize(pixels, (40, 20)).astype(int)
    corners = {(2, 2): RED, (22, 2): GREEN, (2, 12): BLUE, (22, 12): WHITE}
    for (top, at), colour in corners.items():
        assert np.abs(small[top : top + 16, at : at + 6] - colour).max() <= 6


def with_tags(tags: bytes, before: bytes = b"") -> bytes:
    """A JPEG of a red band over a blue one with `tags` as its EXIF data."""
    data, header = encode(bands(RED, BLUE), "JPEG", quality=95), b"Exif\0\0" + tags
    segment = b"\xff\xe1" + (len(header) + 2).to_bytes(2, "big") + header
    return data[:2] + before + segment + data[2:]


def tags_of(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF data of (tag, TIFF type, value); types: 2 text, 3 and 4 whole, 5 fraction"""
    fields = b""
    for tag, kind, value in sorted(entries):
        fields += tag.to_bytes(2, "little") + bytes([kind, 0, 1, 0, 0, 0])
        fields += value.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + bytes([len(entries), 0]) + fields + bytes(4)


ORIENTATION = 274
DAMAGED = {
    "text": tags_of((ORIENTATION, 2, b"6")),
    "0": tags_of((ORIENTATION, 3, b"\0")),
    "9": tags_of((ORIENTATION, 3, b"\x09")),
    "fraction": tags_of((ORIENTATION, 5, b"\x1a")),
    "short": b"II*",
    "other": b"II+\0\x08\0\0\0",
    "junk": b"junk",
    "none": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_tags_that_make_no_sense_do_not_cost_the_image(kind):
    pixels, original = decoding.decode(with_tags(DAMAGED[kind]), (10, 5))
    assert (pixels.shape, original) == ((20, 10, 3), (10, 20))
    assert np.abs(pixels[2].astype(int) - RED).max() <= 6


@pytest.mark.parametrize("before", [b"", b"\xff", b"\xff\xfe\0\x06note"])
def test_a_rotation_is_seen_wherever_its_tag_stands(before):
    data = with_tags(tags_of((ORIENTATION, 3, b"\x06")), before)
    pixels, original = decoding.decode(data, (5, 10))
    assert (pixels.shape, original) == ((10, 20, 3), (20, 10))


@pytest.mark.parametrize(
    "other",
    [(259, 4, (70_000).to_bytes(4, "little")), (282, 2, b"72")],
    ids=["a number too large for its tag", "a word for a number"],
)
def test_a_rotated_image_with_another_damaged_tag_is_turned(other):
    """What cannot be written again need not be: the image is wanted, not its tags."""
    data = with_tags(tags_of((ORIENTATION, 3, b"\x06"), other))
    pixels, original = decoding.decode(data, (5, 10))
    assert (pixels.shape, original) == ((10, 20, 3), (20, 10))
    assert np.abs(pixels[:, 12:].astype(int) - RED).max() <= 6  # above became right


def test_a_rotated_cmyk_photograph():
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn to the right
    image = Image.fromarray(bands(RED, BLUE, height=80, width=80)).convert("CMYK")
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, exif=exif)
    pixels, original = decoding.decode(stream.getvalue(), (20, 40))
    assert original == (160, 80)
    small = decoding.resize(pixels, (20, 40), original=original).astype(int)
    assert np.abs(small[:, 25:35] - RED).max() <= 6  # above became right
    assert np.abs(small[:, 5:15] - BLUE).max() <= 6


# --- what cannot be read --------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 not found</html>", "<html>"),
        (photograph()[:9000], "truncated"),
        (solid(RED)[:60], "truncated|broken|no image"),
        (encode(np.zeros((8, 8), np.float32), "TIFF"), "mode F"),
    ],
    ids=["empty", "html", "jpeg", "png", "float"],
)
def test_what_cannot_be_read_has_a_reason(data, reason):
    with pytest.raises(decoding.UNREADABLE, match=reason):
        decoding.decode(data, (64, 64))


@pytest.mark.parametrize("side", [10_000, 20_000])  # beyond Pillow's warning, its limit
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    data = solid(0, (side, side), mode="1")
    assert len(data) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(decoding.UNREADABLE, match="pixels"):
            decoding.decode(data, (64, 64))


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size than it holds."""
    start = data.index(b"\xff\xc0") + 5
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return data[:start] + sides + data[start + 4 :]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_with_fewer_pixels_than_it_claims_is_unreadable(mode, orientation):
    """Not filled up with grey, as Pillow does."""
    image = Image.open(io.BytesIO(photograph(300, 400))).convert(mode)
    stream, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(stream, "JPEG", exif=exif)
    data = stream.getvalue()
    assert decoding.decode(data, (64, 64))[0].any()
    end = b"\xff\xd9"
    for fewer in (claiming(data, 9000, 9000), claiming(data, 400, 330)):
        with pytest.raises(decoding.UNREADABLE, match="truncated"):
            decoding.decode(fewer, (64, 64))
    with pytest.raises(decoding.UNREADABLE, match="truncated"):
        decoding.decode(data[: len(data) // 2] + end, (64, 64))  # ended in good order


def test_a_jpeg_with_a_blemish_is_still_decoded():
    data = solid(RED, (64, 64), file_format="JPEG")
    pixels, _ = decoding.decode(data + b"trailing bytes", (8, 8))
    assert np.abs(pixels.astype(int) - RED).max() <= 3


def test_a_mask_is_decoded_or_has_a_reason():
    assert (decoding.decode_mask(solid(3, mode="L")) == 3).all()
    with pytest.raises(decoding.UNREADABLE, match="no mask"):
        decoding.decode_mask(b"no mask")


def test_the_digest_tells_images_apart():
    pixels = np.zeros((4, 6, 3), np.uint8)
    digests = {
        decoding.digest(pixels, (6, 4)),
        decoding.digest(pixels, (12, 8)),
        decoding.digest(pixels + 1, (6, 4)),
        decoding.digest(pixels.reshape(6, 4, 3), (6, 4)),
    }
    assert len(digests) == 4
    assert decoding.digest(np.asfortranarray(pixels), (6, 4)) in digests
