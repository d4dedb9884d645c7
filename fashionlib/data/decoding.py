"""One file to pixels: decoded at the scale that is needed, upright, RGB, then resized.

    pixels, original = decoding.decode(data, (224, 224))   # uint8 (H, W, 3)
    small = decoding.resize(pixels, (64, 64), "pad", original=original)

A large JPEG is scaled down while it is decoded, which is most of the speed: 1800x2400
pixels to 224 and 64 take 4.5 ms on 2 cores (benchmarks/results/prepare.json). What is
odd is handled on purpose: greyscale, CMYK, palette, 16-bit, transparent and rotated
images are converted; a truncated, empty or absurdly large file is an error of
UNREADABLE that says why.
"""

from __future__ import annotations

import functools
import io
import math
import struct
from collections.abc import Callable, Sequence

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from fashionlib.runtime import InputError

RESIZE_MODES = ("squash", "pad", "crop")
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
JPEG = ("JPEG", "MPO")  # MPO: how Pillow calls a JPEG that holds several images
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million; the catalogue's largest has 21
APP1, START_OF_SCAN = b"\xff\xe1", b"\xff\xda"  # APP1 holds EXIF and XMP
SCALES = (8, 4, 2, 1)  # other scales shift colour against brightness
RESERVE = 1.2  # times the wanted sides: with 1, the decoder's coarse filter is all
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
TURNS = {  # EXIF's orientation: what puts the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# --- decoding -------------------------------------------------------------------------


def decode(
    data: bytes, smallest: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a file to RGB, uint8 (H, W, 3), and its own upright (width, height).

    smallest: (height, width), pixels. A large JPEG is scaled down to 1/2, 1/4 or 1/8 by
    the decoder (DCT scaling), as long as it stays larger than that; of a large file of
    another kind, blocks of pixels are averaged. Greyscale, CMYK, palette and 16-bit
    images become RGB, transparent ones are laid on white, EXIF's rotation is applied.
    Raises one of UNREADABLE for a file that cannot be read.
    Taught in: chapter 1
    """
    size = _plain_jpeg(data)
    pixels = _decode_jpeg(data, size, smallest) if size else None
    if pixels is not None:
        return pixels, size
    with _open(data) as image:
        if image.width * image.height > MAX_PIXELS:
            found = f"{image.width} x {image.height} pixels"
            raise ValueError(f"{found}; at most {MAX_PIXELS:,} are decoded")
        orientation = _orientation(image)
        if image.format in JPEG:  # of the others it only says whether they end early
            pixels = _decode_jpeg(data, image.size, smallest)
        if pixels is not None and image.mode in ("RGB", "L") and orientation == 1:
            return pixels, image.size
        return _decode_other(image, orientation, smallest)


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a grey or coloured JPEG without EXIF and XMP, else None.

    Without Pillow, which takes as long to say so as to decode 60x80 pixels.
    """
    import simplejpeg

    if APP1 in data[: data.find(START_OF_SCAN)]:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    plain = colours in ("Gray", "RGB", "YCbCr") and width * height <= MAX_PIXELS
    return (width, height) if plain else None


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        found = f"a file that begins with {data[:12]!r}" if data else "an empty file"
        raise ValueError(f"{found} is no image of a known kind") from error


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF counts them; 1, upright, where there is none or it is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (struct.error, SyntaxError, TypeError, ValueError):
        return 1  # the tags are damaged, the pixels may be whole
    return orientation if orientation in TURNS else 1


def _decode_jpeg(
    data: bytes, size: tuple[int, int], smallest: tuple[int, int]
) -> np.ndarray | None:
    """By libjpeg-turbo; None where it finds fault: Pillow then decides, and says why.

    size: (width, height) of the file; smallest: (height, width). Raises ValueError for
    a file with fewer pixels than it claims: Pillow would fill up with grey.
    """
    import simplejpeg

    for scale in SCALES:
        width, height = (math.ceil(side / scale) for side in size)
        if height >= RESERVE * smallest[0] and width >= RESERVE * smallest[1]:
            break
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=1
        )
    except ValueError as error:
        if "remature end" in str(error):
            raise ValueError(f"the image is truncated: {error}") from error
        return None


def _decode_other(
    image: Image.Image, orientation: int, smallest: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """What is no plain JPEG, by Pillow. ImageOps.exif_transpose trips over bad tags."""
    wanted = tuple(round(RESERVE * side) for side in smallest)  # (height, width)
    sideways = orientation >= 5  # width and height change places
    original = image.size[::-1] if sideways else image.size
    image.draft("RGB", wanted if sideways else wanted[::-1])  # scales a JPEG
    if orientation > 1:
        image = image.transpose(TURNS[orientation])
    image = _to_rgb(image)
    factor = min(image.height // wanted[0], image.width // wanted[1]) // 2
    return np.array(image.reduce(max(1, factor))), original  # means of square blocks


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        high_bytes = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(high_bytes).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: numbers without a known range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def decode_mask(data: bytes) -> np.ndarray:
    """uint8 (H, W) of a ground-truth mask. Raises one of UNREADABLE.

    Taught in: chapter 3
    """
    with _open(data) as mask:
        return np.asarray(mask.convert("L"))


def digest(pixels: np.ndarray, original: tuple[int, int]) -> str:
    """128 bits (XXH3) of decoded pixels, uint8, and the file's own (width, height).

    Equal for equal images.
    Taught in: chapter 1
    """
    import xxhash

    hasher = xxhash.xxh3_128(repr((original, pixels.shape)).encode())
    hasher.update(np.ascontiguousarray(pixels))
    return hasher.hexdigest()


# --- resizing -------------------------------------------------------------------------


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    resize_mode: str = "squash",
    *,
    original: tuple[int, int] | None = None,
) -> np.ndarray:
    """Antialiased (Lanczos) uint8 array of `size` = (height, width).

    pixels: one image, uint8 (H, W, 3), or several of one shape, (N, H, W, 3), which
    take half the time of one by one; returned in the same form. original: (width,
    height) before `decode` scaled.
    resize_mode: `squash` ignores the aspect ratio, as the study did; `pad` keeps it and
    adds white; `crop` keeps it and cuts. Raises InputError for another one.
    Equal to Pillow at full resolution within a grey level on average.
    Taught in: chapter 1
    """
    several = pixels if pixels.ndim == 4 else pixels[None]
    extent = [float(side) for side in several.shape[1:3]]
    if original:
        sides = zip(original[::-1], several.shape[1:3], strict=True)
        extent = [_filled(whole, side) for whole, side in sides]
    filter_ = _lanczos_torch if resized_by() == "torch" else _lanczos_pillow
    resized = _resize(several, extent, size, resize_mode, filter_, background=255)
    return resized if pixels.ndim == 4 else resized[0]


def resize_mask(
    mask: np.ndarray, size: tuple[int, int], resize_mode: str = "squash"
) -> np.ndarray:
    """Nearest-neighbour uint8 array of `size` = (height, width) of a mask (H, W).

    Its values are names, not amounts: no mixtures. Padding is 0, background.
    Taught in: chapter 1
    """
    return _resize(mask[None], mask.shape, size, resize_mode, _nearest, background=0)[0]


def check_resize_mode(resize_mode: str) -> None:
    """Raise InputError for what is none of RESIZE_MODES.

    Taught in: chapter 1
    """
    if resize_mode not in RESIZE_MODES:
        modes = ", ".join(RESIZE_MODES)
        raise InputError(f"resize_mode must be one of {modes}; found {resize_mode!r}.")


def _filled(whole: int, side: int) -> float:
    """Of `side` decoded pixels, how many a file's side of `whole` pixels fills.

    1281 pixels at a quarter fill 320.25 of 321.
    """
    scale = max(1, round(whole / side))
    return whole / scale if math.ceil(whole / scale) == side else float(side)


def _resize(
    pixels: np.ndarray,
    extent: Sequence[float],
    size: tuple[int, int],
    resize_mode: str,
    filter_: Callable,
    *,
    background: int,
) -> np.ndarray:
    """Images (N, H, W, ...), of which `extent` = (rows, columns) count, to `size`.

    filter_(pixels, extent, size) squashes.
    """
    check_resize_mode(resize_mode)
    if resize_mode == "crop":
        pixels, extent = _crop(pixels, extent, size)
    if resize_mode != "pad":
        return filter_(pixels, extent, size)
    scale = min(size[0] / extent[0], size[1] / extent[1])
    height, width = (max(1, round(side * scale)) for side in extent)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    framed = np.full((len(pixels), *size, *pixels.shape[3:]), background, np.uint8)
    inside = framed[:, top : top + height, left : left + width]
    inside[:] = filter_(pixels, extent, (height, width))
    return framed


def _crop(
    pixels: np.ndarray, extent: Sequence[float], size: tuple[int, int]
) -> tuple[np.ndarray, tuple[float, float]]:
    """The middle of images (N, H, W, ...) in the aspect ratio of `size`; its extent."""
    scale = max(size[0] / extent[0], size[1] / extent[1])
    rows, columns = (
        min(side, max(1, round(wanted / scale)))
        for side, wanted in zip(extent, size, strict=True)
    )
    top, left = int(extent[0] - rows) // 2, int(extent[1] - columns) // 2
    bottom, right = top + math.ceil(rows), left + math.ceil(columns)
    return pixels[:, top:bottom, left:right], (rows, columns)


@functools.cache
def resized_by() -> str:
    """`torch`, or `pillow` where torch has no Lanczos for bytes (below 2.15).

    Pillow's takes eight times as long, and differs by half a grey level on average. It
    is printed once that it stands in.
    Taught in: chapter 1
    """
    import torch

    try:
        _lanczos_torch(np.zeros((1, 2, 2, 3), np.uint8), (2.0, 2.0), (1, 1))
    except (NotImplementedError, ValueError, RuntimeError):
        print(f"torch {torch.__version__} cannot resize bytes by Lanczos; Pillow does")
        return "pillow"
    return "torch"


def _lanczos_torch(
    pixels: np.ndarray, extent: Sequence[float], size: tuple[int, int]
) -> np.ndarray:
    import torch

    whole = np.require(pixels, requirements=["C", "W"])  # what from_numpy can share
    planes = torch.from_numpy(whole).permute(0, 3, 1, 2)  # (N, 3, H, W), channels_last
    # only factors tell torch of fractional sides; it rounds the size down
    factors = [(size[0] + 1e-6) / extent[0], (size[1] + 1e-6) / extent[1]]
    resized = torch.nn.functional.interpolate(
        planes, scale_factor=factors, mode="lanczos", antialias=True
    )
    return resized[:, :, : size[0], : size[1]].permute(0, 2, 3, 1).numpy()


def _lanczos_pillow(
    pixels: np.ndarray, extent: Sequence[float], size: tuple[int, int]
) -> np.ndarray:
    box = (0, 0, extent[1], extent[0])
    images = [Image.fromarray(each) for each in pixels]
    lanczos = Image.Resampling.LANCZOS
    return np.stack([image.resize(size[::-1], lanczos, box) for image in images])


def _nearest(
    masks: np.ndarray, extent: Sequence[float], size: tuple[int, int]
) -> np.ndarray:
    images = [Image.fromarray(mask) for mask in masks]
    nearest = Image.Resampling.NEAREST
    return np.stack([image.resize(size[::-1], nearest) for image in images])
