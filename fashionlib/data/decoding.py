"""One file to pixels: decoded at the scale it is needed, upright, RGB, and resized without aliasing.

    pixels, original = decoding.decode(data, (224, 224))     # uint8 (H, W, 3), at least 224x224 where the file has that
    small = decoding.resize(pixels, (64, 64), "pad")

What is odd is handled on purpose: greyscale, CMYK, palette, 16-bit, transparent and rotated pictures are converted;
a truncated, empty or absurdly large file is an error of UNREADABLE with the reason.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
import xxhash
from PIL import ExifTags, Image, UnidentifiedImageError

FITS = ("squash", "pad", "crop")
FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
)  # a JPEG of several pictures opens as MPO
MAX_PIXELS = (
    Image.MAX_IMAGE_PIXELS
)  # 89 million; the largest picture of the catalogue has 21 million
HALVED = 2  # sides, over those wanted, that halving leaves at least to Lanczos
RESERVE = 1.2  # the sides that the decoder leaves, over those wanted: with 1 its coarse filter would be all there is
TURNS = {  # EXIF's orientation: what puts the picture upright; ImageOps.exif_transpose trips over other, damaged tags
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
APP1, START_OF_SCAN, FILL = b"\xff\xe1", b"\xff\xda", b"\xff\xff"  # markers of a JPEG
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def decode(
    data: bytes, smallest: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode to RGB, uint8 (H, W, 3), of at least `smallest` (height, width) where the file has that many pixels.

    A large JPEG is scaled down by the decoder itself (DCT scaling). Greyscale, CMYK, palette and 16-bit pictures become
    RGB, transparent ones are laid on white, EXIF rotation is applied. Also returns the original, upright
    (width, height). Raises one of UNREADABLE for a file that cannot be read. Taught in: chapter 1.
    """
    if (size := _plain_jpeg(data)) and (
        pixels := _decode_jpeg(data, size, smallest)
    ) is not None:
        return pixels, size
    with _opened(data) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(
                f"{picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are decoded"
            )
        orientation = _orientation(picture)
        if (
            picture.format in ("JPEG", "MPO")
            and picture.mode in ("RGB", "L")
            and orientation == 1
        ):
            pixels = _decode_jpeg(data, picture.size, smallest)
            if pixels is not None:
                return pixels, picture.size
        sideways = orientation >= 5  # width and height change places
        original = picture.size[::-1] if sideways else picture.size
        wanted = [round(RESERVE * side) for side in smallest]
        picture.draft("RGB", wanted if sideways else wanted[::-1])
        upright = picture.transpose(TURNS[orientation]) if orientation > 1 else picture
        return np.array(_to_rgb(upright)), original


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a grey or coloured JPEG without an APP1 segment, where EXIF and XMP would be; else None.

    Found out in 4 us; Pillow takes 22.
    """
    place = 2
    while (marker := data[place : place + 2]) != START_OF_SCAN:
        if marker[:1] != b"\xff" or marker in (APP1, FILL):
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (
        (width, height)
        if colours in ("Gray", "RGB", "YCbCr") and width * height <= MAX_PIXELS
        else None
    )


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        found = f"a file that begins with {data[:12]!r}" if data else "an empty file"
        raise ValueError(f"{found} is no picture of a known kind") from error


def _orientation(picture: Image.Image) -> int:
    """1 to 8 as EXIF counts them; 1, which is upright, where the tag is missing or cannot be understood."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (
        struct.error,
        SyntaxError,
        TypeError,
        ValueError,
    ):  # the tags are damaged, the pixels may be whole
        return 1
    return orientation if orientation in TURNS else 1


def _decode_jpeg(
    data: bytes, size: tuple[int, int], smallest: tuple[int, int]
) -> np.ndarray | None:
    """libjpeg-turbo's own scaling; None for a file that it finds fault with: Pillow then decides, and says why.

    size: (width, height) of the file. Of the scales, only halves keep brightness and colour in one place.
    """
    wanted = (RESERVE * smallest[1], RESERVE * smallest[0])
    scaled = ([-(-side // scale) for side in size] for scale in (8, 4, 2))
    width, height = next(
        (sides for sides in scaled if sides[0] >= wanted[0] and sides[1] >= wanted[1]),
        size,
    )
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=1
        )
    except ValueError:
        return None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert(
            "RGB"
        )
    if picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode}: numbers without a known range")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def decode_mask(data: bytes) -> np.ndarray:
    """uint8 (H, W) of a ground-truth mask. Raises one of UNREADABLE. Taught in: chapter 3."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as mask:
        return np.asarray(mask.convert("L"))


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    fit: str = "squash",
    *,
    original: tuple[int, int] | None = None,
) -> np.ndarray:
    """Antialiased uint8 array of `size` = (height, width): Lanczos, equal to Pillow's within a grey level.

    pixels: one picture (H, W, 3), or several of one shape, (N, H, W, 3): eight take a third less time than one
    by one. Returned in the same form.
    fit: `squash` ignores the aspect ratio, as the study did; `pad` keeps it and adds white; `crop` keeps it and cuts,
    at whole pixels of what was decoded.
    original: (width, height) before `decode` scaled: 321 rows at a quarter of 1281 are 320.25, and are taken as such.
    Taught in: chapter 1.
    """
    extent = [float(side) for side in pixels.shape[-3:-1]]
    if original:
        extent = [
            _covered(whole, side)
            for whole, side in zip(original[::-1], pixels.shape[-3:-1], strict=True)
        ]
    several = pixels if pixels.ndim == 4 else pixels[None]
    made = _fit(several, extent, size, fit, _lanczos, 255)
    return made if several is pixels else made[0]


def _covered(whole: int, side: int) -> float:
    """How much of `side` pixels a file's side of `whole` fills, after scaling by 1, 1/2, 1/4 or 1/8 and rounding up."""
    return next(
        (whole / scale for scale in (1, 2, 4, 8) if math.ceil(whole / scale) == side),
        float(side),
    )


def resize_mask(
    mask: np.ndarray, size: tuple[int, int], fit: str = "squash"
) -> np.ndarray:
    """Nearest-neighbour uint8 array (H, W) of a mask: its values are names, not amounts. Padding is background.

    Taught in: chapter 1.
    """
    return _fit(mask[None], mask.shape, size, fit, _nearest, 0)[0]


def _fit(
    pixels: np.ndarray,
    extent: Sequence[float],
    size: tuple[int, int],
    fit: str,
    scale_to: Callable,
    background: int,
) -> np.ndarray:
    """pixels: (N, H, W, ...), of which `extent` = (rows, columns) count; `scale_to` squashes them to a size."""
    (height, width), (rows, columns) = size, extent
    if fit == "crop":
        scale = max(height / rows, width / columns)
        extent = [
            min(side, max(1, round(wanted / scale)))
            for side, wanted in zip(extent, size, strict=True)
        ]
        top, left = int(rows - extent[0]) // 2, int(columns - extent[1]) // 2
        pixels = pixels[
            :, top : top + math.ceil(extent[0]), left : left + math.ceil(extent[1])
        ]
    if fit != "pad":
        return scale_to(pixels, extent, size)
    scale = min(height / rows, width / columns)
    inner = max(1, round(rows * scale)), max(1, round(columns * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    framed = np.full(
        (len(pixels), height, width, *pixels.shape[3:]), background, np.uint8
    )
    framed[:, top : top + inner[0], left : left + inner[1]] = scale_to(
        pixels, extent, inner
    )
    return framed


def _lanczos(
    pixels: np.ndarray, extent: Sequence[float], size: tuple[int, int]
) -> np.ndarray:
    """torch's, on bytes: Pillow's result in a third of its time. What is far too large is halved first."""
    import torch

    while (
        min(side / wanted for side, wanted in zip(extent, size, strict=True))
        >= 2 * HALVED
    ):
        pixels, extent = (
            np.stack([_halved(picture) for picture in pixels]),
            [side / 2 for side in extent],
        )
    planes = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(
        0, 3, 1, 2
    )  # channels_last
    factors = [
        (wanted + 1e-6) / side for wanted, side in zip(size, extent, strict=True)
    ]  # the size is rounded down
    scaled = torch.nn.functional.interpolate(
        planes, scale_factor=factors, mode="lanczos", antialias=True
    )
    return scaled[:, :, : size[0], : size[1]].permute(0, 2, 3, 1).numpy()


def _halved(pixels: np.ndarray) -> np.ndarray:
    """The mean of every 2x2 pixels; of an odd side, the last line counts twice."""
    import cv2

    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = cv2.copyMakeBorder(
            pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE
        )
    return cv2.resize(
        pixels, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA
    )


def _nearest(
    masks: np.ndarray, extent: Sequence[float], size: tuple[int, int]
) -> np.ndarray:
    return np.stack(
        [
            Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
            for mask in masks
        ]
    )


def digest(pixels: np.ndarray, original: tuple[int, int]) -> str:
    """128 bits (XXH3) of what was decoded and of the original (width, height): equal for equal pictures.

    Taught in: chapter 1.
    """
    hasher = xxhash.xxh3_128(repr((original, pixels.shape)).encode())
    hasher.update(np.ascontiguousarray(pixels))
    return hasher.hexdigest()
