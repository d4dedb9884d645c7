"""Draws the synthetic catalogue: a small copy of Kaggle's, with ground-truth masks.

It stands in for the real download, so that every chapter runs offline, and it knows two
things that photographs do not tell: which pixels are face, hair, garment or item, and
where the gender of a product shows (`head_share`).

    from fashionlib.data import synthetic
    folder = synthetic.draw("build/synthetic", products=1200, seed=0)

`<folder>/styles.csv` and `<folder>/images/<id>.jpg` are what Kaggle delivers, defects
included; `masks/<id>.png` and `catalogue.json` (settings and true counts) come on top.
What to draw (`describe`: a small record of parameters) is kept apart from drawing it
(`paint`). Measured: 1,200 products take 14 s of processor time, shared by the cores.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fashionlib import artifacts
from fashionlib.catalogue import COLUMNS
from fashionlib.runtime import InputError, progress

VERSION = 1  # raise it when other images are drawn: a folder of another one is refused
FACE, HAIR, GARMENT, ITEM = 1, 2, 3, 4  # mask values; GARMENT includes the body in it
CLASS_SHARES = (0.11, 0.13, 0.28, 0.21, 0.16, 0.11)  # in the order of CLASS_NAMES
DATE = 1_500_000_000  # of every file: the same seed gives the same folder
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


# --- the tables: colours, garments, heads, items --------------------------------------

COLOURS = {
    "Black": (32, 32, 36), "White": (242, 242, 240), "Blue": (52, 98, 176),
    "Brown": (105, 68, 44), "Grey": (132, 134, 138), "Red": (192, 38, 44),
    "Green": (52, 128, 78), "Pink": (232, 110, 158), "Navy Blue": (30, 42, 84),
    "Purple": (112, 62, 142), "Silver": (186, 190, 196), "Yellow": (240, 200, 70),
    "Beige": (214, 192, 156), "Gold": (206, 164, 76), "Maroon": (116, 28, 46),
    "Orange": (232, 122, 48), "Olive": (106, 108, 58), "Khaki": (168, 152, 112),
    "Peach": (246, 178, 148), "Lavender": (182, 164, 216), "Magenta": (196, 42, 124),
    "Teal": (26, 122, 128), "Tan": (180, 134, 90), "Turquoise Blue": (64, 184, 196),
}  # fmt: skip
PALETTES = {  # by use and wearer; "Unisex": only the head tells the gender
    "Men": "Black Blue Navy_Blue Grey Green White Olive Khaki Brown Maroon Red",
    "Women": "Pink Red Purple Orange Magenta Turquoise_Blue Peach Yellow White Black "
    "Lavender Teal",
    "Unisex": "Blue Red Green Grey White Black Yellow Teal Purple Orange Navy_Blue",
    "leather Men": "Black Brown Black Tan Navy_Blue Grey",
    "leather Women": "Red Tan Pink Black Beige Brown Purple",
    "metal": "Silver Gold",
    "lips": "Red Pink Maroon Peach Magenta",
    "beside": "Black Grey Blue Navy_Blue Beige White",  # what is worn with the product
}
SKINS = (
    (246, 214, 186),
    (234, 192, 156),
    (208, 158, 118),
    (164, 114, 80),
    (120, 80, 56),
)
HAIRS = ((28, 22, 20), (52, 36, 28), (86, 56, 36), (128, 82, 44))
BRANDS = (
    "Brookfield Lindenhof Marlowe Tavira Kestrelle Juniper_Lane Solvane Harrowmere "
    "Nimbury Ostrella"
)
LOOKS = {  # how the product's name calls a pattern; any other one is "Printed "
    "plain": "",
    "side stripe": "",
    "stripes": "Striped ",
    "pinstripes": "Striped ",
    "checks": "Checked ",
}
# the commas that make a row malformed
EXTRAS = ("", ", Pack of Two", ", Gift Box and Card, Pack of Two")
USAGES = {
    "Sports Shoes": "Sports",
    "Track Pants": "Sports",
    "Formal Shoes": "Formal",
    "Kurtas": "Ethnic",
}
PAIRS = (  # their names stay in the plural
    "Jeans",
    "Trousers",
    "Track Pants",
    "Shorts",
    "Capris",
    "Sunglasses",
    "Socks",
    "Earrings",
)

PLAIN, LINES = ("plain",), ("plain", "stripes", "pinstripes")
PRINTS, MOTIFS = (
    ("plain", "dots", "floral", "stripes"),
    ("plain", "star", "disc", "bars"),
)
CHECKS, STRIPE = (*LINES, "checks", "checks"), ("side stripe",)
NECKS, SHORT, HALF = ("boat", "v", "round"), (0.0, 0.15, 0.4), (0.38,)
Garment = namedtuple(
    "Garment", "sub weights dresses hem sleeves collars flare patterns"
)
# Weights for Men, Women and unisex; the part of the figure that is dressed; y of the
# hem (0 shoulders, 0.6 hips, 1.35 feet); sleeves (1: to the wrist); collars; how far
# the hem flares; patterns.
APPAREL = {
    "Tshirts": ("Topwear", (24, 10, 30), "top", 0.62, (0.36, 0.42),
                ("round", "v", "polo"), 0, (*LINES, *MOTIFS)),
    "Shirts": ("Topwear", (24, 4, 22), "top", 0.64, (0.4, 1.0), ("shirt",), 0, CHECKS),
    "Sweatshirts": ("Topwear", (7, 2, 12), "top", 0.62, (1.0,), ("round", "hood"), 0,
                    MOTIFS),
    "Jackets": ("Topwear", (6, 2, 8), "top", 0.62, (1.0,), ("zip",), 0, PLAIN),
    "Kurtas": ("Topwear", (5, 20, 0), "long", 1.0, (0.7, 1.0), ("mandarin",), 0.06,
               PRINTS),
    "Tops": ("Topwear", (0, 20, 0), "top", 0.55, SHORT, NECKS, 0.05, PRINTS),
    "Dresses": ("Dress", (0, 12, 0), "dress", 0.95, SHORT, NECKS, 0.13, PRINTS),
    "Sarees": ("Saree", (0, 7, 0), "saree", 1.34, (0.25,), ("boat",), 0.1, PRINTS),
    "Skirts": ("Bottomwear", (0, 6, 0), "skirt", 0.95, HALF, ("round",), 0.16, PRINTS),
    "Jeans": ("Bottomwear", (9, 7, 14), "legs", 1.3, HALF, ("round",), 0, PLAIN),
    "Trousers": ("Bottomwear", (9, 2, 8), "legs", 1.32, HALF, ("round",), 0, PLAIN),
    "Track Pants": ("Bottomwear", (5, 1, 6), "legs", 1.28, HALF, ("round",), 0, STRIPE),
    "Shorts": ("Bottomwear", (7, 1, 0), "legs", 0.95, HALF, ("round",), 0,
               ("plain", "checks")),
    "Capris": ("Bottomwear", (0, 4, 0), "legs", 1.1, HALF, ("round",), 0, PLAIN),
}  # fmt: skip
APPAREL = {name: Garment(*values) for name, values in APPAREL.items()}
CUTS = {  # half widths of figure and trouser hem; how much of the flare is used
    "Men": {
        "shoulder": 0.225,
        "waist": 0.172,
        "hip": 0.168,
        "ankle": 0.07,
        "flare": 0.3,
    },
    "Women": {
        "shoulder": 0.186,
        "waist": 0.122,
        "hip": 0.172,
        "ankle": 0.047,
        "flare": 1.0,
    },
    "Unisex": {
        "shoulder": 0.205,
        "waist": 0.15,
        "hip": 0.17,
        "ankle": 0.058,
        "flare": 0.6,
    },
}
HAIRCUTS = {  # "Unisex" where the head must not tell the gender
    "Men": ("short", "short", "crop", "curly", "bob"),
    "Women": ("long", "long", "wavy", "wavy", "bun", "bob"),
    "Unisex": ("bob", "curly", "short"),
}
BEARDS = {"Men": ("none", "stubble", "full", "moustache")}
FACES = {"Men": (1.04, 0.0), "Women": (0.96, 1.0), "Unisex": (1.0, 0.3)}  # width, lips
ARMS = (  # upper, lower arm in degrees from straight down, outwards
    (8, 3),
    (10, -6),
    (14, -2),
    (24, -16),
    (40, -46),
    (46, -58),
    (30, 24),
    (52, 150),
)
FRAMES = {  # where the shoulder line lies (in widths of the image), and the scale
    "upper": ((0.5, 0.44), 1.1),
    "full": ((0.5, 0.30), 0.69),
    "no head": ((0.5, 0.1), 1.2),
    "long, no head": ((0.5, 0.05), 0.88),
    "lower": ((0.5, -0.40), 1.12),
    "flat": ((0.5, 0.28), 1.22),
}

# Weights for Men and Women (alike where both wear it), the palette, patterns.
Item = namedtuple("Item", "category sub weights palette patterns")
ITEMS = {
    "Watches": Item("Accessories", "Watches", (30, 16), "leather", PLAIN),
    "Belts": Item("Accessories", "Belts", (12, 6), "leather", PLAIN),
    "Wallets": Item("Accessories", "Wallets", (12, 8), "leather", PLAIN),
    "Sunglasses": Item("Accessories", "Eyewear", (13, 8), "leather", PLAIN),
    "Ties": Item("Accessories", "Ties", (10, 0), "any", ("stripes", "checks", "dots")),
    "Backpacks": Item("Accessories", "Bags", (8, 3), "any", PLAIN),
    "Caps": Item("Accessories", "Headwear", (6, 1), "any", PLAIN),
    "Socks": Item("Accessories", "Socks", (9, 2), "any", LINES),
    "Handbags": Item("Accessories", "Bags", (0, 26), "leather", PLAIN),
    "Clutches": Item("Accessories", "Bags", (0, 7), "any", PRINTS),
    "Earrings": Item("Accessories", "Jewellery", (0, 11), "metal", PLAIN),
    "Necklace and Chains": Item("Accessories", "Jewellery", (1, 8), "metal", PLAIN),
    "Bracelet": Item("Accessories", "Jewellery", (1, 6), "metal", PLAIN),
    "Sports Shoes": Item("Footwear", "Shoes", (28, 12), "any", PLAIN),
    "Casual Shoes": Item("Footwear", "Shoes", (28, 9), "any", PLAIN),
    "Formal Shoes": Item("Footwear", "Shoes", (12, 0), "leather", PLAIN),
    "Sandals": Item("Footwear", "Sandal", (10, 6), "leather", PLAIN),
    "Flip Flops": Item("Footwear", "Flip Flops", (8, 6), "any", PLAIN),
    "Heels": Item("Footwear", "Shoes", (0, 28), "leather", PLAIN),
    "Flats": Item("Footwear", "Shoes", (0, 12), "leather", PLAIN),
    "Perfume and Body Mist": Item("Personal Care", "Fragrance", (6, 6), "any", PLAIN),
    "Deodorant": Item("Personal Care", "Fragrance", (5, 4), "any", PLAIN),
    "Lipstick": Item("Personal Care", "Lips", (0, 8), "lips", PLAIN),
    "Nail Polish": Item("Personal Care", "Nails", (0, 7), "any", PLAIN),
    "Free Gifts": Item("Free Items", "Free Gifts", (1, 1), "any", PLAIN),
    "Water Bottle": Item("Sporting Goods", "Sports Equipment", (1, 1), "any", PLAIN),
    "Cushion Covers": Item("Home", "Home Furnishing", (1, 1), "any", PRINTS),
}

# The drawings stand in drawings.txt, in a small language: `name: shape; shape; ...` (a
# name given again adds a variant). Shapes are: area (a smooth outline; a point given
# twice is a corner), plate (a straight one), line (with its radius), oval (centre, half
# axes), arc (radius; centre, half axes, from and to degrees), beads and dots (radius,
# count; on an arc, on a line), use (another drawing). `*` completes the right half of
# an outline, `&` adds the mirror image. Then comes the paint (-30: 30 % black, +30:
# 30 % white), and the points x,y: in widths of the image, y down, from the middle of an
# item or of a figure's shoulders.
DRAWINGS = Path(__file__).with_name("drawings.txt").read_text("utf-8")


# --- what to draw: records of parameters ----------------------------------------------


def describe(seed, product_id, *, head_share, gender=None, category=None):
    """The parameter record of one product, a dict of plain values.

    gender ("Men" or "Women") and category (0 Accessories, 1 Apparel, 2 Other) are drawn
    by lot unless given. It depends on the arguments alone, and each part of the record
    has its own random stream: two records that differ in `gender` only are equal
    wherever the gender must not show. `record["cue"]` names the one part ("head",
    "garment" or "item") that may tell it.
    Taught in: chapter 1
    """
    rngs = [np.random.default_rng([seed, product_id, part]) for part in range(5)]
    label = int(rngs[0].choice(6, p=CLASS_SHARES))
    category = label // 2 if category is None else category
    gender = gender or ("Men", "Women")[label % 2]
    record = {"id": product_id, "gender": gender, "category": category}
    record["scene"] = _scene(rngs[1])
    if category != 1:
        return record | {"cue": "item", "item": _item(rngs[2], gender, category)}
    cue = "head" if rngs[0].random() < head_share else "garment"
    garment = _garment(rngs[2], "Unisex" if cue == "head" else gender)
    head = _head(rngs[3], gender if cue == "head" else "Unisex")
    figure = _figure(rngs[4], garment["dresses"], cue)
    return record | {"cue": cue, "garment": garment, "head": head, "figure": figure}


def _pick(rng, options, weights=None):
    fractions = None if weights is None else np.array(weights) / sum(weights)
    return options[int(rng.choice(len(options), p=fractions))]


def _colour(rng, palette):
    return _pick(rng, PALETTES[palette].split()).replace("_", " ")


BACKGROUNDS = ("white", "near white", "gradient", "colour", "room")


def _scene(rng):
    return {
        "width": _pick(rng, (150, 180, 240, 300, 384), (44, 30, 18, 6, 2)),
        "background": _pick(rng, BACKGROUNDS, (60, 16, 12, 7, 5)),
        "tint": rng.integers(150, 236, 3).tolist(),
        "turn": float(rng.normal(0, 2)),
        "scale": float(rng.uniform(0.9, 1.06)),
        "shift": rng.uniform(-0.03, 0.03, 2).tolist(),
        "noise": float(rng.uniform(0.6, 2.2)),
        "quality": int(rng.integers(78, 95)),
    }


def _garment(rng, style):
    column = ("Men", "Women", "Unisex").index(style)
    weights = [kind.weights[column] for kind in APPAREL.values()]
    article = _pick(rng, list(APPAREL), weights)
    kind = APPAREL[article]
    cut = {
        name: size * float(rng.normal(1, 0.04)) for name, size in CUTS[style].items()
    }
    return cut | {
        "article": article,
        "dresses": kind.dresses,
        "colour": "Blue" if article == "Jeans" else _colour(rng, style),
        "second": _colour(rng, style),
        "beside": _colour(rng, "beside"),
        "pattern": _pick(rng, kind.patterns),
        "period": float(rng.uniform(0.03, 0.08)),
        "hem": kind.hem + float(rng.uniform(-0.03, 0.03)),
        "sleeve": _pick(rng, kind.sleeves),
        "collar": _pick(rng, kind.collars),
        "flare": kind.flare * cut["flare"] * float(rng.uniform(0.7, 1.3)),
    }


def _head(rng, style):
    width, lips = FACES[style]
    return {
        "style": style,
        "hair": _pick(rng, HAIRCUTS[style]),
        "hair_colour": _pick(rng, HAIRS),
        "beard": _pick(rng, BEARDS.get(style, ("none",))),
        "width": width * float(rng.normal(1, 0.02)),
        "lips": lips,
    }


def _figure(rng, dresses, cue):
    frames = {
        "top": ("upper", "full", "no head", "flat"),
        "legs": ("full", "full", "long, no head", "lower"),
    }
    frames = frames.get(dresses, ("full", "full", "long, no head", "full"))
    frame = _pick(rng, frames, (65, 12, 13, 10))
    if cue == "head" and frame not in ("upper", "full"):
        frame = frames[0]  # the only thing that tells the gender must be visible
    return {
        "frame": frame,
        "arms": [_pick(rng, ARMS, (5, 4, 4, 3, 2, 2, 1, 1)) for _ in "lr"],
        "stance": float(rng.uniform(0.0, 0.09)),
        "skin": _pick(rng, SKINS, (3, 4, 4, 2, 1)),
    }


def _item(rng, gender, category):
    kinds = {}
    for name, kind in ITEMS.items():
        if (kind.category == "Accessories") == (category == 0):
            kinds[name] = kind
    weights = [kind.weights[gender == "Women"] for kind in kinds.values()]
    article = _pick(rng, list(kinds), weights)
    kind = kinds[article]
    style = gender
    if not rng.random() < 0.88:  # some look like the other's
        style = ("Women", "Men")[gender == "Women"]
    palettes = {"leather": f"leather {style}", "any": style}
    return {
        "article": article,
        "style": style,
        "colour": _colour(rng, palettes.get(kind.palette, kind.palette)),
        "second": _colour(rng, style),
        "metal": _colour(rng, "metal"),
        "pattern": _pick(rng, kind.patterns),
        "period": float(rng.uniform(0.04, 0.09)),
        "size": (1.0 if style == "Men" else 0.88) * float(rng.normal(1, 0.06)),
        "variant": int(rng.integers(12)),
        "mirrored": bool(rng.random() < 0.3) and kind.category == "Footwear",
    }


# --- the canvas -----------------------------------------------------------------------


class Canvas:
    """An image beside the mask of its parts.

    The image is drawn at twice its size, for smooth edges when it is halved; a very
    large one is smooth enough.
    """

    def __init__(self, scene, centre, scale):
        self.width, self.height = scene["width"], scene["width"] * 4 // 3
        self.factor = 2 if self.width < 1000 else 1
        size = (self.width * self.factor, self.height * self.factor)
        self.image = _background(scene, *size)
        self.mask = Image.new("L", (self.width, self.height))
        self.pen, self.mask_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        turn, self.scale = math.radians(scene["turn"]), scale * scene["scale"]
        rotation = [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
        self.matrix = self.scale * np.array(rotation)
        self.centre = np.array(centre) + scene["shift"]

    def fill(self, outlines, paint, part):
        """Fill polygons (each N x 2) with a colour or a texture; `part` in the mask."""
        is_texture = isinstance(paint, Image.Image)
        stencil = Image.new("1", self.image.size) if is_texture else None
        pen = ImageDraw.Draw(stencil) if is_texture else self.pen
        for outline in outlines:
            pixels = (np.asarray(outline) @ self.matrix + self.centre) * self.width
            corners = (pixels * self.factor).ravel().tolist()
            pen.polygon(corners, fill=1 if is_texture else paint)
            self.mask_pen.polygon(pixels.ravel().tolist(), fill=part)
        if is_texture:
            self.image.paste(paint, mask=stencil)

    def stroke(self, points, radius, paint, part):
        """A line with round ends through N x 2 points; radius: one, or one a point."""
        points = np.asarray(points, float)
        radii = np.broadcast_to(np.asarray(radius, float), len(points))
        along = np.diff(points, axis=0)
        length = np.maximum(np.hypot(*along.T), 1e-9)[:, None]
        normal = np.stack([-along[:, 1], along[:, 0]], 1) / length
        start, end = normal * radii[:-1, None], normal * radii[1:, None]
        left = [points[:-1] + start, points[1:] + end]
        right = [points[1:] - end, points[:-1] - start]
        sides = np.stack([*left, *right], 1)
        joints = points[:, None] + radii[:, None, None] * _unit_circle(0, 360, 12)
        self.fill([*sides, *joints], paint, part)

    def texture(self, pattern, colour, second, period):
        """The plain colour, or an image of the pattern; period: in widths."""
        if pattern not in PATTERNS:
            return colour
        step = period * self.scale * self.width * self.factor
        width, height = self.image.size
        x, y = np.arange(width)[None] / step, np.arange(height)[:, None] / step
        level = np.broadcast_to(PATTERNS[pattern](x, y), (height, width))
        palette = np.array([colour, second, _blend(colour, second, 0.5)], np.uint8)
        return Image.fromarray(palette[level.astype(np.uint8)])

    def sketch(self, name, paints, part, *, variant=0, stretch=(1, 1)):
        """One of the DRAWINGS; paints: an RGB or a texture for its names of colours."""
        variants = _drawings()[name]
        for shape, extra, paint, numbers, points in variants[variant % len(variants)]:
            if shape == "use":
                self.sketch(paint, paints, part, stretch=stretch)
                continue
            points = _mirrored(points) if extra == "*" else np.array(points)
            outlines, radius = _outlines(shape, numbers, points)
            for side in (1, -1) if extra == "&" else (1,):
                placed = [outline * stretch * (side, 1) for outline in outlines]
                if radius is None:
                    self.fill(placed, _shade(paint, paints), part)
                else:
                    self.stroke(placed[0], radius, _shade(paint, paints), part)


def _checks(x, y):
    return np.array([0, 2, 1])[(x % 1 > 0.6).astype(int) + (y % 1 > 0.6)]


def _dots(x, y):
    lowered = y + 0.5 * (x // 1 % 2)  # every second column by half a period
    return (x % 1 - 0.5) ** 2 + (lowered % 1 - 0.5) ** 2 < 0.08


def _floral(x, y):
    waves = np.cos(5 * x + 2 * np.sin(3 * y)) * np.cos(5 * y + 2 * np.sin(3 * x))
    return waves > 0.35


PATTERNS = {  # (x, y) in periods -> 0 first colour, 1 second colour, 2 between
    "stripes": lambda x, y: y % 1 > 0.6,
    "pinstripes": lambda x, y: (1.6 * x) % 1 > 0.75,
    "checks": _checks,
    "dots": _dots,
    "floral": _floral,
}


@functools.cache
def _drawings():
    """DRAWINGS: name -> variants, each a list of what `_parse_shape` returns."""
    drawings = {}
    for block in re.split(r"\n(?! )", DRAWINGS.strip()):
        name, shapes = block.split(":")
        parsed = [_parse_shape(text) for text in shapes.split(";")]
        drawings.setdefault(name, []).append(parsed)
    return drawings


def _parse_shape(text):
    """(shape, extra, paint, numbers, points) of "area* skin-12 .05,-.3 .09,-.2"."""
    pattern = r"(\w+)([*&]?) (.+?)((?: [-.,\d]+)*)"
    shape, extra, paint, values = re.fullmatch(pattern, " ".join(text.split())).groups()
    numbers = [float(value) for value in values.split() if "," not in value]
    pairs = [value.split(",") for value in values.split() if "," in value]
    return shape, extra, paint, numbers, [(float(x), float(y)) for x, y in pairs]


@functools.cache
def _unit_circle(start, end, count):
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _outlines(shape, numbers, points):
    """The outlines of a shape, and None; of a stroke its line, and the radius."""
    if shape in ("area", "plate"):
        return [_curve(points) if shape == "area" else points], None
    if shape == "oval":
        return [points[0] + points[1] * _unit_circle(0, 360, 28)], None
    if shape == "line":
        return [points], numbers[0]
    count = int(numbers[1]) if len(numbers) > 1 else 40
    if shape == "dots":
        spots = np.linspace(points[0], points[1], count)
    else:  # arc, beads
        spots = points[0] + points[1] * _unit_circle(*points[2], count)
    if shape == "arc":
        return [spots], numbers[0]
    return list(spots[:, None] + numbers[0] * _unit_circle(0, 360, 16)), None


def _curve(points, steps=6):
    """A closed smooth curve through N x 2 points; a point given twice is a corner.

    Cubic Hermite, the slopes shortened so that there are no loops beside short edges.
    """
    end, before = np.roll(points, -1, 0), np.roll(points, 1, 0)
    slope = (end - before) / 2
    reach = np.minimum(np.hypot(*(end - points).T), np.hypot(*(points - before).T))
    steep = np.maximum(np.hypot(*slope.T), 1e-9)
    slope *= np.minimum(1, reach / steep)[:, None]
    t = (np.arange(steps) / steps)[None, :, None]
    along = t * t * (3 - 2 * t)
    between = points[:, None] * (1 - along) + end[:, None] * along
    leaving = slope[:, None] * t * (1 - t) ** 2
    arriving = np.roll(slope, -1, 0)[:, None] * t**2 * (1 - t)
    return (between + leaving - arriving).reshape(-1, 2)


def _mirrored(points):
    return np.array([*points, *((-x, y) for x, y in reversed(points))])


def _blend(colour, other, fraction):
    pairs = zip(colour, other, strict=True)
    return tuple(round(a + (b - a) * fraction) for a, b in pairs)


def _shade(paint, paints):
    """The paint of a drawing: "metal-30" is `paints["metal"]` with 30 % black."""
    name, sign, percent = re.fullmatch(r"(\w+)(?:([-+])(\d+))?", paint).groups()
    if not sign:
        return paints[name]
    other = WHITE if sign == "+" else BLACK
    return _blend(paints[name], other, int(percent) / 100)


def _background(scene, width, height):
    tint, kind = tuple(scene["tint"]), scene["background"]
    if kind == "gradient":
        ramp = Image.linear_gradient("L").resize((width, height))
        levels = [round(246 - 0.27 * level) for level in range(256)]
        return Image.merge("RGB", [ramp.point(levels)] * 3)
    plain = {"white": WHITE, "near white": (max(tint) // 5 + 204,) * 3}
    colour = plain.get(kind, _blend(tint, WHITE, 0.35))
    image = Image.new("RGB", (width, height), colour)
    if kind == "room":
        pen, floor = ImageDraw.Draw(image), round(height * (0.76 + scene["shift"][0]))
        pen.rectangle((0, floor, width, height), fill=_blend(tint, BLACK, 0.25))
        skirting = (0, floor - height // 50, width, floor)
        pen.rectangle(skirting, fill=_blend(tint, WHITE, 0.8))
        left = round(width * (0.1 if scene["shift"][1] > 0 else 0.62))
        window = (left, height // 9, left + width // 4, height // 3)
        pen.rectangle(window, fill=_blend(tint, WHITE, 0.7))
    return image


# --- drawing it -----------------------------------------------------------------------

BASICS = {"ink": (36, 34, 40), "chalk": (248, 248, 246), "iris": (48, 34, 28)}
BASICS |= {"tan": COLOURS["Tan"], "gold": COLOURS["Gold"]}


def paint(record, seed):
    """Draw one record: its image (RGB) and its mask (L, 0 to 4), 3 x 4 in shape.

    Taught in: chapter 1
    """
    canvas = _paint_item(record) if "item" in record else _paint_figure(record)
    rng = np.random.default_rng([seed, record["id"], 5])
    image = canvas.image if canvas.factor == 1 else canvas.image.reduce(canvas.factor)
    return _light(image, canvas.mask, record["scene"]["noise"], rng), canvas.mask


def _paint_item(record):
    item, scene = record["item"], record["scene"]
    canvas = Canvas(scene | {"turn": scene["turn"] * 3}, (0.5, 2 / 3), item["size"])
    colour, second = COLOURS[item["colour"]], COLOURS[item["second"]]
    paints = BASICS | {
        "colour": colour,
        "second": _blend(second, WHITE, 0.25) if second == colour else second,
        "metal": COLOURS[item["metal"]],
        "fabric": canvas.texture(item["pattern"], colour, second, item["period"]),
        "lens": _blend(BASICS["ink"], second, 0.3),
        "laces": (40, 40, 44) if min(colour) > 180 else BASICS["chalk"],
    }
    name = f"{item['article']} {item['style']}"
    if name not in _drawings():
        name = item["article"]
    stretch = (-1 if item["mirrored"] else 1, 1)
    canvas.sketch(name, paints, ITEM, variant=item["variant"], stretch=stretch)
    return canvas


def _paint_figure(record):
    garment, figure, head = record["garment"], record["figure"], record["head"]
    canvas = Canvas(record["scene"], *FRAMES[figure["frame"]])
    top, legs = _clothes(canvas, garment, figure["skin"])
    if figure["frame"] == "flat":  # nobody wears it: its inside shows at the neck
        inside = _shade("colour-50", top)
        _paint_top(canvas, garment, figure, top | {"skin": inside})
        return canvas
    hair = BASICS | {"hair": tuple(head["hair_colour"])}
    if f"behind {head['hair']}" in _drawings():
        canvas.sketch(f"behind {head['hair']}", hair, HAIR)
    _paint_legs(canvas, garment, figure, legs)
    neck, throat = [(0, -0.12), (0, 0.03)], _shade("skin-10", top)
    canvas.stroke(neck, (0.045, 0.06), throat, GARMENT)
    _paint_top(canvas, garment, figure, top)
    _paint_head(canvas, head, figure["skin"], hair)
    return canvas


def _clothes(canvas, garment, skin):
    """The paints above and below the waist: one is the product, one is beside it."""
    colour, second, beside = (
        COLOURS[garment[name]] for name in ("colour", "second", "beside")
    )
    second = _blend(second, WHITE, 0.5) if second == colour else second
    fabric = canvas.texture(garment["pattern"], colour, second, garment["period"])
    product = BASICS | {"colour": colour, "second": second, "fabric": fabric}
    product["skin"] = skin
    other = product | {"colour": beside, "fabric": beside}
    if garment["dresses"] == "saree":
        return product, product
    if garment["dresses"] in ("legs", "skirt"):
        return other, product
    return product, other


def _paint_legs(canvas, garment, figure, paints):
    """Legs and shoes, and over them trousers or a skirt in the paint "fabric"."""
    dresses, hip, stance = garment["dresses"], garment["hip"], figure["stance"]
    for side in (-1, 1):
        foot = side * (0.085 + stance)
        knee = (side * (0.09 + stance * 0.6), 0.97)
        leg = np.array([(side * hip * 0.52, 0.62), knee, (foot, 1.36)])
        canvas.stroke(leg, (0.075, 0.055, 0.035), paints["skin"], GARMENT)
        shoe = [(foot - 0.02, 1.375), (foot + 0.02, 1.375)]
        canvas.stroke(shoe, 0.03, (60, 50, 48), GARMENT)
        if dresses not in ("dress", "skirt"):
            _paint_trouser_leg(canvas, garment, paints, side, leg)
    waist = garment["waist"]
    seat = [(waist * 0.98, 0.4), (waist, 0.42), (hip, 0.58)]
    if dresses in ("skirt", "saree"):
        _paint_skirt(canvas, garment, paints, seat)
    elif dresses != "dress":
        outline = _curve(_mirrored([*seat, (hip * 1.02, 0.66), (0.03, 0.72)]))
        canvas.fill([outline], paints["fabric"], GARMENT)


def _paint_skirt(canvas, garment, paints, seat):
    hip, hem = garment["hip"], garment["hem"]
    low = hip + garment["flare"]
    outline = _curve(_mirrored([*seat, (low, hem), (low, hem)]))
    canvas.fill([outline], paints["fabric"], GARMENT)
    for fold in (-0.6, -0.2, 0.2, 0.6):
        line = [(fold * hip, 0.6), (fold * low, hem)]
        canvas.stroke(line, 0.003, _shade("colour-25", paints), GARMENT)


def _paint_trouser_leg(canvas, garment, paints, side, leg):
    """One trouser leg along `leg` (hip, knee, foot) down to the hem."""
    hem = garment["hem"] if garment["dresses"] == "legs" else 1.3
    end = np.array([np.interp(hem, leg[:, 1], leg[:, 0]), hem])
    nodes, radii = [*leg[:2], end], (garment["hip"] * 0.53, 0.072, garment["ankle"])
    if hem < 1:  # shorts end above the knee
        nodes, radii = [leg[0], end], (garment["hip"] * 0.53, 0.085)
    canvas.stroke(nodes, radii, paints["fabric"], GARMENT)
    if garment["pattern"] == "side stripe":
        places = zip(nodes, radii, strict=True)
        edge = [(x + side * radius * 0.8, y) for (x, y), radius in places]
        canvas.stroke(edge, 0.009, BASICS["chalk"], GARMENT)
    seam = [(side * 0.012, 0.68), (side * 0.03, min(hem, 0.95))]
    canvas.stroke(seam, 0.003, _shade("colour-35", paints), GARMENT)


def _paint_top(canvas, garment, figure, paints):
    """Torso and arms, then the details that tell a shirt from a T-shirt or a kurta."""
    _paint_torso(canvas, garment, paints)
    if garment["dresses"] == "saree":
        canvas.sketch("drape", paints, GARMENT)
    poses = figure["arms"] if figure["frame"] != "flat" else [(24, 20)] * 2
    for side, pose in zip((-1, 1), poses, strict=True):
        _paint_arm(canvas, garment, figure, paints, side, np.radians(pose))
    canvas.sketch(f"collar {garment['collar']}", paints, GARMENT)
    if garment["pattern"] in MOTIFS[1:]:
        canvas.sketch(f"motif {garment['pattern']}", paints, GARMENT)


def _paint_torso(canvas, garment, paints):
    shoulder, waist, hip = (garment[name] for name in ("shoulder", "waist", "hip"))
    hem, flare = 0.45, 0  # it ends at the waist of what is worn below
    if garment["dresses"] in ("top", "long", "dress"):
        hem, flare = garment["hem"], garment["flare"]
    low = np.interp(hem, (0.42, 0.6), (waist, hip)) + flare + 0.006
    neck = [(0.065, -0.015), (0.07, -0.01)]
    arm = [(shoulder * 0.9, 0.045), (shoulder * 0.82, 0.17)]
    hips = [(hip + 0.01 + flare * 0.3, 0.6)] if hem > 0.66 else []
    side = [*neck, *arm, (waist + 0.008, 0.40), *hips, (low, hem), (low, hem)]
    canvas.fill([_curve(_mirrored(side))], paints["fabric"], GARMENT)
    seam = [(-low * 0.97, hem - 0.015), (low * 0.97, hem - 0.015)]
    canvas.stroke(seam, 0.0025, _shade("colour-25", paints), GARMENT)


def _paint_arm(canvas, garment, figure, paints, side, pose):
    """One arm and its sleeve; pose: upper and lower arm in radians, as in ARMS."""
    reach = np.stack([side * np.sin(pose), np.cos(pose)], 1) * [[0.27], [0.24]]
    joint = np.array([side * (garment["shoulder"] - 0.05), 0.09])
    if figure["frame"] != "flat":
        elbow, wrist = joint + reach[0], joint + reach[0] + reach[1]
        nodes = [joint, elbow, wrist, wrist + reach[1] * 0.13]
        radii = (0.045, 0.038, 0.026, 0.032)
        canvas.stroke(nodes, radii, paints["skin"], GARMENT)
    if garment["sleeve"]:
        _paint_sleeve(canvas, garment["sleeve"], paints, joint, reach)
    crease = np.array([(side * -0.034, 0.1), (side * -0.03, 0.04)]) + joint
    canvas.stroke(crease, 0.0025, _shade("colour-20", paints), GARMENT)


def _paint_sleeve(canvas, length, paints, joint, reach):
    """From the shoulder's joint along upper and lower arm; length: 1 to the wrist."""
    upper, lower = min(length * 2, 1), max(length * 2 - 1, 0)
    nodes = [joint, joint + reach[0] * upper]
    last, width = reach[0], 0.048
    if lower:
        nodes.append(joint + reach[0] + reach[1] * lower)
        last, width = reach[1], 0.04
    radii = (0.055, 0.05, 0.04)[: len(nodes)]
    canvas.stroke(nodes, radii, paints["fabric"], GARMENT)
    cuff = last[::-1] * (1, -1) / np.hypot(*last) * width
    ends = [nodes[-1] - cuff, nodes[-1] + cuff]
    canvas.stroke(ends, 0.005, _shade("colour-30", paints), GARMENT)


def _paint_head(canvas, head, skin, paints):
    """Face, beard and hair."""
    lips, stretch = head["lips"], (head["width"], 1)
    paints = paints | {
        "skin": skin,
        "cheek": _blend(skin, (226, 90, 90), 0.12 + 0.15 * lips),
        "lips": _blend(_blend(skin, BLACK, 0.3), (196, 24, 52), lips),
        "beard": _blend(skin, paints["hair"], 0.3),
    }
    canvas.sketch("face", paints, FACE, stretch=stretch)
    if head["beard"] != "none":
        canvas.sketch(f"beard {head['beard']}", paints, FACE, stretch=stretch)
    canvas.sketch(f"face {head['style']}", paints, FACE)
    canvas.sketch(f"hair {head['hair']}", paints, HAIR)


def _light(image, mask, noise, rng):
    """Volume: light from the upper left, a soft shadow, folds, the camera's noise."""
    width, height = image.size
    shape = mask.point([0] + [255] * 255)
    blur = ImageFilter.BoxBlur(width / 40)
    soft = shape.filter(blur).filter(blur)
    reach = round(width / 50)
    relief = _moved(soft, reach, reach) - _moved(soft, -reach, -reach)
    folds = Image.fromarray(rng.normal(0, 1, (7, 9)).astype(np.float32))
    folds = np.asarray(folds.resize(image.size, Image.Resampling.BICUBIC))
    lit = 0.88 + 0.28 * relief + 0.035 * folds + 0.12 * _moved(soft, 0, 0)
    shadow = 1 - 0.22 * _moved(soft, -reach, round(-1.6 * reach))
    gain = np.where(np.asarray(shape), lit, shadow)
    grain = noise * rng.standard_normal((height, width), dtype=np.float32)
    pixels = np.asarray(image) * gain[..., None] + grain[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _moved(image, right, down):
    """A grey image as float32 in 0..1, seen (right, down) pixels further on, else 0."""
    shift = (1, 0, right, 0, 1, down)
    moved = image.transform(image.size, Image.Transform.AFFINE, shift)
    return np.asarray(moved, np.float32) / 255


# --- the catalogue --------------------------------------------------------------------


def draw(folder, *, products=1200, seed=0, head_share=0.4):
    """Draw a catalogue of `products` Men/Women rows with a readable image; its path.

    On top come rows of other genders (5 %), rows without an image, an image without a
    row and one truncated file (its row counts as no product). head_share: the fraction
    of the apparel that shows its gender in the head only; the rest does in the garment
    only. A finished catalogue with the same settings is left as it is.
    Raises InputError for settings that cannot be drawn, for a folder that holds
    anything else (nothing is ever deleted) or cannot be written, and for a full disk.
    Taught in: chapter 1
    """
    if not (60 <= products <= 50_000 and 0 <= head_share <= 1 and seed >= 0):
        raise InputError(
            "the synthetic catalogue needs 60 <= products <= 50000, seed >= 0 and "
            f"0 <= head_share <= 1; found products={products}, seed={seed}, "
            f"head_share={head_share}."
        )
    folder = Path(folder)
    settings = {"version": VERSION, "products": products, "seed": seed}
    settings["head_share"] = float(head_share)
    if _finished(folder, settings):
        return folder
    place = {"prefix": f".{folder.name}-", "dir": folder.parent}
    with contextlib.ExitStack() as stack:
        stack.enter_context(artifacts.writing(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = stack.enter_context(tempfile.TemporaryDirectory(**place))
        unfinished = Path(scratch, "catalogue")
        _draw_all(unfinished, settings)
        try:
            unfinished.rename(folder)  # replaces an empty folder, no other one
        except OSError:
            if not _finished(folder, settings):  # another process may have been faster
                raise
    return folder


def _finished(folder, settings):
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "catalogue.json").read_text("utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{folder} holds something that synthetic.draw did not make: name another "
            "folder."
        ) from None
    if found != settings:
        raise InputError(
            f"{folder} was drawn with {found}, asked for is {settings}: delete it or "
            "name another folder."
        )
    return True


def _draw_all(folder, settings):
    seed = settings["seed"]
    plan = _plan(settings["products"], seed)
    records = [_record(entry, settings) for entry in plan]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    _save_all(folder, plan, records, seed)
    rows = [",".join(COLUMNS)]
    for entry, record in zip(plan, records, strict=True):
        if entry["row"]:
            rows.append(_row(record, entry, seed))
    (folder / "styles.csv").write_text("\n".join(rows) + "\n", "utf-8")
    facts = {"settings": settings, **_truth(plan, records)}
    (folder / "catalogue.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    for path in folder.rglob("*"):
        os.utime(path, (DATE, DATE))


def _save_all(folder, plan, records, seed):
    """All images and masks, by processes; the few large ones first, to end together."""
    from joblib import Parallel, delayed

    originals = []
    for entry, record in zip(plan, records, strict=True):
        if entry["image"] and not entry["copy_of"]:
            originals.append((record, entry))
    originals.sort(key=lambda pair: -pair[0]["scene"]["width"])
    jobs = [delayed(_save)(folder, *pair, seed) for pair in originals]
    saved = Parallel(n_jobs=-1, batch_size=8, return_as="generator")(jobs)
    for _ in progress(saved, "drawing the synthetic catalogue", total=len(jobs)):
        pass
    for entry in plan:
        if entry["copy_of"]:
            for name in ("images/{}.jpg", "masks/{}.png"):
                original = folder / name.format(entry["copy_of"])
                shutil.copyfile(original, folder / name.format(entry["id"]))


SOUND = {  # a product without a defect
    "gender": None,
    "image": True,
    "row": True,
    "copy_of": None,
    "commas": 0,
    "mode": "RGB",
    "width": None,
    "truncated": False,
    "other_label": False,  # a copy that contradicts its original
}


def _plan(products, seed):
    """One entry per product: its id, and the real catalogue's defects that it shows."""
    defects = _defects(products)
    extra = sum(_is_extra(defect) for defect in defects)
    count = products + extra
    ids = np.random.default_rng([seed]).permutation(np.arange(1163, 60000))[:count]
    places = np.random.default_rng([seed, products]).permutation(count)
    places = iter(places.tolist())
    plan = [{"id": number, **SOUND} for number in ids.tolist()]
    for defect in defects:
        plan[next(places)].update(defect)
    for group in range(_scaled(12, products, least=3)):
        original, copies = plan[next(places)]["id"], 2 if group == 1 else 1
        for _ in range(copies):
            plan[next(places)].update(copy_of=original, other_label=group == 0)
    return plan


def _scaled(count, products, least=1):
    """How many of `products` what `count` of 1,200 show."""
    return max(least, round(count * products / 1200))


def _defects(products):
    genders = ("Unisex", "Boys", "Girls", "Unisex", "Unisex")
    others = _scaled(63, products, least=3)
    defects = [{"gender": genders[number % 5]} for number in range(others)]
    defects += [{"image": False}] * _scaled(4, products)
    defects += [{"row": False}, {"truncated": True}, {"mode": "CMYK"}, {"commas": 2}]
    defects += [{"commas": 1}] * _scaled(5, products)
    defects += [{"mode": "L"}] * _scaled(12, products)
    return defects + [{"width": 1800}] * _scaled(3, products)


def _is_extra(defect):
    """Whether an entry with this defect counts as no product."""
    return not {"gender", "image", "row", "truncated"}.isdisjoint(defect)


def _record(entry, settings):
    shown = {"Boys": "Men", "Girls": "Women"}.get(entry["gender"])
    source, share = entry["copy_of"] or entry["id"], settings["head_share"]
    record = describe(settings["seed"], source, head_share=share, gender=shown)
    if entry["width"]:
        record["scene"]["width"] = entry["width"]
    if entry["other_label"]:
        record["gender"] = {"Men": "Women", "Women": "Men"}[record["gender"]]
    return record


def _save(folder, record, entry, seed):
    image, mask = paint(record, seed)
    stream = io.BytesIO()
    quality = record["scene"]["quality"]
    image.convert(entry["mode"]).save(stream, "JPEG", quality=quality)
    data = stream.getvalue()
    if entry["truncated"]:
        data = data[: len(data) // 2]
    (folder / "images" / f"{entry['id']}.jpg").write_bytes(data)
    mask.save(folder / "masks" / f"{entry['id']}.png")


def _row(record, entry, seed):
    """One line of styles.csv; a malformed one has commas inside its last field."""
    rng = np.random.default_rng([seed, entry["id"], 6])
    part = record.get("item") or record["garment"]
    article, colour = part["article"], part["colour"]
    kind = ITEMS.get(article) or APPAREL[article]
    category = getattr(kind, "category", "Apparel")
    gender = entry["gender"] or record["gender"]
    noun = article
    if article not in PAIRS and category != "Footwear":
        noun = re.sub("(?<=ch|ss)es$|s$", "", article)
    brand = _pick(rng, BRANDS.split()).replace("_", " ")
    look = LOOKS.get(part["pattern"], "Printed ")
    name = f"{brand} {gender} {colour} {look}{noun}{EXTRAS[entry['commas']]}"
    season = _pick(rng, ("Summer", "Fall", "Winter", "Spring"), (48, 26, 19, 7))
    year, usage = rng.integers(2011, 2019), USAGES.get(article, "Casual")
    fields = (entry["id"], gender, category, kind.sub, article, colour)
    return ",".join(map(str, (*fields, season, year, usage, name)))


def _truth(plan, records):
    """The counts that a correct reader of the finished folder finds."""
    classes = Counter()
    for entry, record in zip(plan, records, strict=True):
        whole = entry["row"] and entry["image"] and not entry["truncated"]
        if whole and not entry["gender"]:
            classes[2 * record["category"] + (record["gender"] == "Women")] += 1
    conflicts = {entry["copy_of"] for entry in plan if entry["other_label"]}
    return {
        "rows": sum(entry["row"] for entry in plan),
        "malformed_rows": sum(entry["commas"] > 0 for entry in plan),
        "images": sum(entry["image"] for entry in plan),
        "rows_without_image": sum(not entry["image"] for entry in plan),
        "images_without_row": sum(not entry["row"] for entry in plan),
        "unreadable_images": sum(entry["truncated"] for entry in plan),
        "duplicate_groups": len({entry["copy_of"] for entry in plan} - {None}),
        "duplicate_label_conflicts": len(conflicts),
        "products": classes.total(),
        "class_counts": [classes[label] for label in range(6)],
    }
