"""Draws the embedded catalogue: a small synthetic copy of the Kaggle layout, with ground-truth masks.

It stands in for the real download, so that every chapter runs offline, and it knows two things that photographs do not
tell: which pixels are face, hair, garment or item, and where the gender of a product shows (`head_share`).

    from fashionlib import synthetic
    folder = synthetic.draw("build/synthetic", products=1200, seed=0)

`<folder>/styles.csv` and `<folder>/images/<id>.jpg` are what Kaggle delivers, defects included; `<folder>/masks/<id>.png`
and `<folder>/catalogue.json` (settings and true counts) come on top. What to draw (`describe`: a small record of
parameters) is kept apart from drawing it (`paint`). Measured: 1,200 products in SECONDS s on 2 cores.
"""

import io
import json
import math
import os
import shutil
import tempfile
from collections import Counter, namedtuple
from pathlib import Path

import joblib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fashionlib.runtime import InputError, progress

VERSION = 1  # raise it with every change of what is drawn: a folder of another version is refused
FACE, HAIR, GARMENT, ITEM = 1, 2, 3, 4  # mask values; GARMENT includes the body that wears it, so > 0 is the foreground
CLASS_SHARES = (0.11, 0.13, 0.28, 0.21, 0.16, 0.11)  # class = 2 x (Accessories, Apparel, Other) + (Men, Women)
COLUMNS = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
DATE = 1_500_000_000  # the modification time of every file: the same seed gives the same folder

COLOURS = {
    "Black": (32, 32, 36), "White": (242, 242, 240), "Blue": (52, 98, 176), "Brown": (105, 68, 44),
    "Grey": (132, 134, 138), "Red": (192, 38, 44), "Green": (52, 128, 78), "Pink": (232, 110, 158),
    "Navy Blue": (30, 42, 84), "Purple": (112, 62, 142), "Silver": (186, 190, 196), "Yellow": (240, 200, 70),
    "Beige": (214, 192, 156), "Gold": (206, 164, 76), "Maroon": (116, 28, 46), "Orange": (232, 122, 48),
    "Olive": (106, 108, 58), "Cream": (242, 232, 206), "Peach": (246, 178, 148), "Lavender": (182, 164, 216),
    "Khaki": (168, 152, 112), "Magenta": (196, 42, 124), "Teal": (26, 122, 128), "Tan": (180, 134, 90),
    "Turquoise Blue": (64, 184, 196),
}  # fmt: skip
# Colours by who the product is for; "Unisex" serves garments whose wearer is to be told from the head alone.
PALETTES = {
    "Men": "Black Blue Navy_Blue Grey Green White Olive Khaki Brown Maroon Red".split(),
    "Women": "Pink Red Purple Orange Magenta Turquoise_Blue Peach Yellow White Black Lavender Teal".split(),
    "Unisex": "Blue Red Green Grey White Black Yellow Teal Purple Orange Navy_Blue".split(),
    "Metal": "Silver Gold Silver Black".split(),
}
LEATHER = {"Men": "Black Brown Black Tan Navy_Blue Grey".split(), "Women": "Red Tan Pink Black Beige Brown Purple".split()}
SKINS = [(246, 214, 186), (234, 192, 156), (208, 158, 118), (164, 114, 80), (120, 80, 56)]
HAIRS = [(28, 22, 20), (52, 36, 28), (86, 56, 36), (128, 82, 44)]
SINGULAR = {name: name.removesuffix("es") for name in ("Watches", "Dresses", "Clutches")} | {
    name: name.removesuffix("s")
    for name in "Tshirts Shirts Sweatshirts Jackets Kurtas Tops Sarees Skirts Belts Wallets Ties Backpacks Caps Handbags".split()
} | {"Perfume and Body Mist": "Perfume", "Necklace and Chains": "Necklace", "Cushion Covers": "Cushion Cover"}
BRANDS = "Brookfield Lindenhof Marlowe Tavira Kestrelle Juniper_Lane Solvane Harrowmere Nimbury Ostrella".split()

# Garments: their weights for Men, Women and unisex; which part of the figure they dress; hem height (0 shoulder line,
# 0.6 hips, 1.35 feet); sleeve lengths (1 = to the wrist); collars; how far the hem flares; patterns.
Garment = namedtuple("Garment", "sub weights focus hem sleeves collars flare patterns")
PLAIN, LINES, PRINTS = ("plain",), ("plain", "stripes", "pinstripes"), ("plain", "dots", "floral", "stripes")
APPAREL = {
    "Tshirts": Garment("Topwear", (24, 10, 30), "top", 0.62, (0.36, 0.42), ("round", "v", "polo"), 0.0, (*LINES, "emblem")),
    "Shirts": Garment("Topwear", (24, 4, 22), "top", 0.64, (0.4, 1.0), ("shirt",), 0.0, (*LINES, "checks", "checks")),
    "Sweatshirts": Garment("Topwear", (7, 2, 12), "top", 0.62, (1.0,), ("round", "hood"), 0.0, (*PLAIN, "emblem")),
    "Jackets": Garment("Topwear", (6, 2, 8), "top", 0.62, (1.0,), ("zip",), 0.0, PLAIN),
    "Kurtas": Garment("Topwear", (5, 20, 0), "long", 1.0, (0.7, 1.0), ("mandarin",), 0.06, PRINTS),
    "Tops": Garment("Topwear", (0, 20, 0), "top", 0.55, (0.0, 0.15, 0.3), ("boat", "v"), 0.05, PRINTS),
    "Dresses": Garment("Dress", (0, 12, 0), "dress", 0.95, (0.0, 0.15, 0.4), ("boat", "v", "round"), 0.13, PRINTS),
    "Sarees": Garment("Saree", (0, 7, 0), "saree", 1.34, (0.25,), ("boat",), 0.1, PRINTS),
    "Skirts": Garment("Bottomwear", (0, 6, 0), "skirt", 0.95, (), (), 0.16, PRINTS),
    "Jeans": Garment("Bottomwear", (9, 7, 14), "legs", 1.3, (), (), 0.0, PLAIN),
    "Trousers": Garment("Bottomwear", (9, 2, 8), "legs", 1.32, (), (), 0.0, PLAIN),
    "Track Pants": Garment("Bottomwear", (5, 1, 6), "legs", 1.28, (), (), 0.0, ("side stripe",)),
    "Shorts": Garment("Bottomwear", (7, 1, 0), "legs", 0.95, (), (), 0.0, (*PLAIN, "checks")),
    "Capris": Garment("Bottomwear", (0, 4, 0), "legs", 1.1, (), (), 0.0, PLAIN),
}
# Figures and cuts: half widths of shoulder, waist, hip, trouser hem; share of the flare that is used.
CUTS = {
    "Men": {"shoulder": 0.225, "waist": 0.172, "hip": 0.168, "ankle": 0.07, "flare": 0.3},
    "Women": {"shoulder": 0.186, "waist": 0.122, "hip": 0.172, "ankle": 0.047, "flare": 1.0},
    "Unisex": {"shoulder": 0.205, "waist": 0.15, "hip": 0.17, "ankle": 0.058, "flare": 0.6},
}
# Heads: what the wearer's head looks like where it tells the gender, and where it must not ("Unisex").
HEADS = {
    "Men": {"hair": ("short", "short", "crop", "curly", "bob"), "beard": ("none", "stubble", "full", "moustache"),
            "lips": 0.0, "jaw": 1.1, "brow": 1.5},
    "Women": {"hair": ("long", "long", "wavy", "wavy", "bun", "bob"), "beard": ("none",), "lips": 1.0, "jaw": 0.88,
              "brow": 0.8},
    "Unisex": {"hair": ("bob", "curly", "short"), "beard": ("none",), "lips": 0.3, "jaw": 1.0, "brow": 1.1},
}  # fmt: skip
ARMS = [(8, 3), (10, -6), (14, -2), (24, -16), (40, -46), (46, -58), (30, 24), (52, 150)]  # upper, lower arm in degrees
BACKGROUNDS = ("white", "near white", "gradient", "colour", "room")


# --- What to draw: parameter records -------------------------------------------------------------------------------


def describe(seed, product_id, *, head_share, gender=None, category=None):
    """Return the parameter record of one product; it depends on the arguments alone.

    `gender` ("Men" or "Women") and `category` (0 Accessories, 1 Apparel, 2 Other) are drawn unless given. Each part of
    the record has its own random stream, so that two records that differ in `gender` only are equal wherever the
    gender must not show: `record["cue"]` names the one part ("head", "garment" or "item") that may tell it.
    """
    random = np.random.default_rng([seed, product_id, 0])
    drawn = int(random.choice(6, p=CLASS_SHARES))
    category, gender = drawn // 2 if category is None else category, gender or ("Men", "Women")[drawn % 2]
    record = {"id": product_id, "gender": gender, "category": category, "scene": _scene(seed, product_id)}
    if category != 1:
        random = np.random.default_rng([seed, product_id, 2])
        return record | {"cue": "item", "item": _item(random, gender, category)}
    cue = "head" if random.random() < head_share else "garment"
    garment = _garment(np.random.default_rng([seed, product_id, 2]), "Unisex" if cue == "head" else gender)
    head = _head(np.random.default_rng([seed, product_id, 3]), gender if cue == "head" else "Unisex")
    figure = _figure(np.random.default_rng([seed, product_id, 4]), garment["focus"], head_needed=cue == "head")
    return record | {"cue": cue, "garment": garment, "head": head, "figure": figure}


def _pick(random, options, weights=None):
    shares = None if weights is None else np.array(weights) / sum(weights)
    return options[int(random.choice(len(options), p=shares))]


def _scene(seed, product_id):
    random = np.random.default_rng([seed, product_id, 1])
    return {
        "width": _pick(random, (150, 180, 240, 300, 384), (44, 30, 18, 6, 2)),
        "background": _pick(random, BACKGROUNDS, (60, 16, 12, 7, 5)),
        "tint": random.integers(150, 236, 3).tolist(),
        "turn": float(random.normal(0, 2)),
        "scale": float(random.uniform(0.9, 1.06)),
        "shift": random.uniform(-0.03, 0.03, 2).tolist(),
        "noise": float(random.uniform(0.6, 2.2)),
        "quality": int(random.integers(78, 95)),
    }


def _colour(random, names):
    return _pick(random, names).replace("_", " ")


def _garment(random, style):
    names = list(APPAREL)
    article = _pick(random, names, [APPAREL[name].weights[("Men", "Women", "Unisex").index(style)] for name in names])
    kind, cut = APPAREL[article], CUTS[style]
    return {
        "article": article,
        "focus": kind.focus,
        "colour": "Blue" if article == "Jeans" else _colour(random, PALETTES[style]),
        "second": _colour(random, PALETTES[style]),
        "other": _colour(random, ("Black", "Grey", "Blue", "Navy_Blue", "Beige", "White")),  # what is worn with it
        "pattern": _pick(random, kind.patterns),
        "period": float(random.uniform(0.03, 0.08)),
        "hem": kind.hem + float(random.uniform(-0.03, 0.03)),
        "sleeve": _pick(random, kind.sleeves or (0.38,)),
        "collar": _pick(random, kind.collars or ("round",)),
        "flare": kind.flare * cut["flare"] * float(random.uniform(0.7, 1.3)),
        **{name: cut[name] * float(random.normal(1, 0.04)) for name in ("shoulder", "waist", "hip", "ankle")},
    }


def _head(random, style):
    look = HEADS[style]
    return {
        "hair": _pick(random, look["hair"]),
        "beard": _pick(random, look["beard"]),
        "lips": look["lips"],
        "jaw": look["jaw"] * float(random.normal(1, 0.03)),
        "brow": look["brow"] * float(random.normal(1, 0.1)),
        "hair_colour": _pick(random, HAIRS),
        "smile": float(random.uniform(0.3, 1)),
        "tilt": float(random.normal(0, 4)),
    }


def _figure(random, focus, *, head_needed):
    upper = focus == "top"
    frames = ("upper", "full", "headless", "flat") if upper else ("full", "full", "headless", "lower")
    weights = (70, 10, 12, 8) if upper else (50, 10, 15, 25 if focus in ("legs", "skirt") else 0)
    frame = _pick(random, frames, weights)
    shown = ("upper" if upper else "full") if head_needed and frame not in ("upper", "full") else frame
    return {
        "frame": shown,
        "arms": [_pick(random, ARMS, (5, 4, 4, 3, 2, 2, 1, 1)) for _ in "lr"],
        "stance": float(random.uniform(0.0, 0.09)),
        "skin": _pick(random, SKINS, (3, 4, 4, 2, 1)),
    }


def _item(random, gender, category):
    kinds = {name: kind for name, kind in ITEMS.items() if (kind.category == "Accessories") == (category == 0)}
    article = _pick(random, list(kinds), [kind.weights[gender == "Women"] for kind in kinds.values()])
    colours = {"leather": LEATHER, "metal": dict.fromkeys(PALETTES, PALETTES["Metal"])}.get(kinds[article].colours, PALETTES)
    tells = gender if random.random() < 0.85 else ("Women", "Men")[gender == "Women"]  # some look like the other's
    return {
        "article": article,
        "style": tells,
        "colour": _colour(random, colours[tells]),
        "second": _colour(random, PALETTES[tells]),
        "metal": _colour(random, ("Silver", "Gold")),
        "pattern": _pick(random, kinds[article].patterns),
        "period": float(random.uniform(0.04, 0.09)),
        "size": (1.0 if tells == "Men" else 0.86) * float(random.normal(1, 0.06)),
        "variant": int(random.integers(4)),
        "flip": bool(random.random() < 0.3),
    }


# --- The canvas ----------------------------------------------------------------------------------------------------


class Canvas:
    """A picture drawn at twice its size (smooth edges when halved), beside the mask of its parts at its own size.

    Points are (x, y) in widths of the picture, y down, around an origin that `centre`, `scale`, `turn` (degrees) place.
    """

    def __init__(self, scene, centre, scale):
        self.width, self.height = scene["width"], scene["width"] * 4 // 3
        self.factor = 2 if self.width < 1000 else 1  # a very large picture is smooth enough once it is resized
        self.picture = _background(scene, self.width * self.factor, self.height * self.factor)
        self.mask = Image.new("L", (self.width, self.height))
        self.pen, self.mask_pen = ImageDraw.Draw(self.picture), ImageDraw.Draw(self.mask)
        turn = math.radians(scene["turn"])
        self.scale = scale * scene["scale"]
        self.matrix = self.scale * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        self.centre = np.array(centre) + scene["shift"]

    def fill(self, outlines, colour, part=0):
        """Fill polygons with an RGB colour or a texture; `part` marks them in the mask, 0 leaves the mask as it is."""
        outlines = [(np.asarray(outline) @ self.matrix + self.centre) * self.width for outline in outlines]
        textured = isinstance(colour, Image.Image)
        stencil = Image.new("1", self.picture.size) if textured else None
        pen = ImageDraw.Draw(stencil) if textured else self.pen
        for outline in outlines:
            pen.polygon((outline * self.factor).ravel().tolist(), fill=1 if textured else colour)
            if part:
                self.mask_pen.polygon(outline.ravel().tolist(), fill=part)
        if textured:
            self.picture.paste(colour, mask=stencil)

    def area(self, points, colour, part=0, *, smooth=True):
        """Fill the closed outline through `points`."""
        self.fill([curve(points) if smooth else points], colour, part)

    def oval(self, centre, radii, colour, part=0):
        """Fill an ellipse with the half axes `radii`."""
        self.fill([arc(centre, radii, 0, 360)], colour, part)

    def stroke(self, points, radius, colour, part=0):
        """Draw a line with round ends; `radius` is one number or one per point."""
        points = np.asarray(points, float)
        radii = np.broadcast_to(np.asarray(radius, float), len(points))
        along = np.diff(points, axis=0)
        normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
        start, end = normal * radii[:-1, None], normal * radii[1:, None]
        sides = np.stack([points[:-1] + start, points[1:] + end, points[1:] - end, points[:-1] - start], 1)
        self.fill([*sides, *(arc(p, (r, r), 0, 360, 12) for p, r in zip(points, radii, strict=True))], colour, part)

    def texture(self, pattern, colour, second, period):
        """Return what fills a garment: a plain colour, or a picture of the pattern as large as the canvas."""
        if pattern not in PATTERNS:
            return colour
        step = period * self.scale * self.width * self.factor
        x, y = np.arange(self.picture.width)[None] / step, np.arange(self.picture.height)[:, None] / step
        level = np.broadcast_to(PATTERNS[pattern](x, y), (self.picture.height, self.picture.width)).astype(np.uint8)
        palette = np.array([colour, second, blend(colour, second, 0.5)], np.uint8)
        return Image.fromarray(palette[level])


PATTERNS = {  # (x, y) in periods -> 0 first colour, 1 second colour, 2 between
    "stripes": lambda x, y: y % 1 > 0.6,
    "pinstripes": lambda x, y: (1.6 * x) % 1 > 0.75,
    "checks": lambda x, y: np.array([0, 2, 1])[(x % 1 > 0.6).astype(int) + (y % 1 > 0.6)],
    "dots": lambda x, y: (x % 1 - 0.5) ** 2 + ((y + 0.5 * (x // 1 % 2)) % 1 - 0.5) ** 2 < 0.08,
    "floral": lambda x, y: np.cos(5 * x + 2 * np.sin(3 * y)) * np.cos(5 * y + 2 * np.sin(3 * x)) > 0.35,
}


def arc(centre, radii, start, end, count=28):
    """Return points on an ellipse from `start` to `end` degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], 1)


def curve(points, steps=6):
    """Return a closed smooth curve (cubic Hermite) through `points`; a point given twice is a corner."""
    start = np.asarray(points, float)
    end, before = np.roll(start, -1, 0), np.roll(start, 1, 0)
    slope = (end - before) / 2
    reach = np.minimum(np.hypot(*(end - start).T), np.hypot(*(start - before).T))
    slope *= np.minimum(1, reach / np.maximum(np.hypot(*slope.T), 1e-9))[:, None]  # no loops beside short edges
    t = (np.arange(steps) / steps)[None, :, None]
    smooth = t * t * (3 - 2 * t)
    ends = start[:, None] * (1 - smooth) + end[:, None] * smooth
    return (ends + slope[:, None] * t * (1 - t) ** 2 - np.roll(slope, -1, 0)[:, None] * t**2 * (1 - t)).reshape(-1, 2)


def both(points):
    """Complete a right-hand outline (top to bottom) with its mirror image."""
    return [*points, *((-x, y) for x, y in reversed(points))]


def blend(colour, other, share):
    """Mix two RGB colours; `share` is that of `other`."""
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


def darker(colour, share=0.3):
    """Return `colour` with a share of black."""
    return blend(colour, (0, 0, 0), share)


def lighter(colour, share=0.3):
    """Return `colour` with a share of white."""
    return blend(colour, (255, 255, 255), share)


def _background(scene, width, height):
    tint, kind = tuple(scene["tint"]), scene["background"]
    if kind == "gradient":
        ramp = Image.linear_gradient("L").resize((width, height))
        return Image.merge("RGB", [ramp.point([round(246 - 0.3 * (246 - 130) * v / 128) for v in range(256)])] * 3)
    flat = {"white": (255, 255, 255), "near white": lighter((max(tint),) * 3, 0.75)}.get(kind, lighter(tint, 0.35))
    picture = Image.new("RGB", (width, height), flat)
    if kind == "room":
        pen, floor = ImageDraw.Draw(picture), round(height * (0.76 + scene["shift"][0]))
        pen.rectangle((0, floor, width, height), fill=darker(tint, 0.25))
        pen.rectangle((0, floor - height // 50, width, floor), fill=lighter(tint, 0.8))
        left = round(width * (0.1 if scene["shift"][1] > 0 else 0.62))
        pen.rectangle((left, height // 9, left + width // 4, height // 3), fill=lighter(tint, 0.7))
    return picture


# --- Figures and garments ------------------------------------------------------------------------------------------

FRAMES = {  # where the shoulder line is put (in widths of the picture), and the scale
    "upper": ((0.5, 0.44), 1.1), "full": ((0.5, 0.30), 0.69), "headless": ((0.5, 0.1), 1.2),
    "lower": ((0.5, -0.40), 1.12), "flat": ((0.5, 0.28), 1.22),
}  # fmt: skip


def paint_figure(record):
    """Draw a garment, worn by a figure unless the frame is "flat"."""
    garment, figure = record["garment"], record["figure"]
    centre, scale = FRAMES[figure["frame"]]
    if figure["frame"] == "headless" and garment["focus"] != "top":
        scale = 0.88
    canvas = Canvas(record["scene"], centre, scale)
    colour, second, other = (COLOURS[garment[name]] for name in ("colour", "second", "other"))
    fabric = canvas.texture(garment["pattern"], colour, second, garment["period"])
    below = garment["focus"] in ("legs", "skirt")
    if figure["frame"] == "flat":
        paint_top(canvas, garment, figure, fabric, colour)
        return canvas
    paint_hair_behind(canvas, record["head"])
    paint_legs(canvas, garment, figure, fabric if below else other, colour if below else other)
    canvas.stroke([(0, -0.12), (0, 0.03)], (0.045, 0.06), darker(figure["skin"], 0.1), GARMENT)
    paint_top(canvas, garment, figure, other if below else fabric, other if below else colour)
    paint_head(canvas, record["head"], figure["skin"])
    return canvas


def paint_legs(canvas, garment, figure, fabric, colour):
    """Draw legs and shoes, and over them trousers, or the skirt that is the product."""
    focus, hip, skin = garment["focus"], garment["hip"], figure["skin"]
    hem = garment["hem"] if focus == "legs" else 1.3
    bare = focus in ("dress", "skirt")
    for side in (-1, 1):
        knee, foot = (side * (0.09 + figure["stance"] * 0.6), 0.97), (side * (0.085 + figure["stance"]), 1.36)
        leg = [(side * hip * 0.52, 0.62), knee, foot]
        canvas.stroke(leg, (0.075, 0.055, 0.035), skin, GARMENT)
        canvas.area(curve([(foot[0] - 0.045, 1.37), (foot[0], 1.33), (foot[0] + 0.045, 1.37), (foot[0], 1.41)]),
                    (60, 50, 48), GARMENT)  # fmt: skip
        if bare:
            continue
        share = min(max((hem - 0.97) / 0.39, 0), 1)
        end = (knee[0] + (foot[0] - knee[0]) * share, 0.97 + 0.39 * share if share else hem)
        wide = (hip * 0.53, 0.055 + garment["ankle"] * 0.35, garment["ankle"])
        nodes, radii = ([leg[0], knee, end], wide) if share else ([leg[0], end], wide[:2])
        canvas.stroke(nodes, radii, fabric, GARMENT)
        if garment["pattern"] == "side stripe":
            canvas.stroke([(x + side * r * 0.8, y) for (x, y), r in zip(nodes, radii, strict=True)], 0.009, (245, 245, 245))
        canvas.stroke([(side * 0.012, 0.68), (side * 0.03, 0.95)], 0.003, darker(colour, 0.35))
    top = [(garment["waist"] * 0.98, 0.4), (garment["waist"], 0.42), (hip, 0.58)]
    if focus == "skirt":
        low = hip + garment["flare"]
        canvas.area(both([*top, (low, garment["hem"]), (low, garment["hem"])]), fabric, GARMENT)
        for x in (-0.6, -0.2, 0.2, 0.6):
            canvas.stroke([(x * hip, 0.6), (x * low, garment["hem"])], 0.003, darker(colour, 0.25))
    elif not bare:
        canvas.area(both([*top, (hip * 1.02, 0.66), (0.03, 0.72)]), fabric, GARMENT)
        canvas.stroke([(-garment["waist"], 0.43), (garment["waist"], 0.43)], 0.006, darker(colour, 0.4))


def paint_top(canvas, garment, figure, fabric, colour):
    """Draw torso, arms and sleeves, then the details that tell a shirt from a T-shirt or a kurta."""
    below = garment["focus"] in ("legs", "skirt")
    shoulder, waist, hip = garment["shoulder"], garment["waist"], garment["hip"]
    hem = {"saree": 0.42}.get(garment["focus"], 0.45 if below else garment["hem"])
    low = np.interp(hem, (0.42, 0.6), (waist, hip)) + (0 if below else garment["flare"]) + 0.006
    side = [(0.065, -0.015), (0.07, -0.01), (shoulder * 0.9, 0.045), (shoulder * 0.82, 0.17), (waist + 0.008, 0.40)]
    hips = [(hip + 0.01 + garment["flare"] * 0.3, 0.6)] if hem > 0.66 else []
    if garment["focus"] == "saree":
        paint_saree(canvas, garment, fabric, colour)
    canvas.area(both([*side, *hips, (low, hem), (low, hem)]), fabric, GARMENT)
    paint_arms(canvas, garment, figure, fabric, colour)
    if hem > 0.66 and garment["focus"] == "long":
        for x in (-low, low):  # the side slits of a kurta
            canvas.stroke([(x * 0.97, hem - 0.01), (x * 0.9, 0.72)], 0.003, darker(colour, 0.35))
    canvas.stroke([(-low * 0.97, hem - 0.015), (low * 0.97, hem - 0.015)], 0.0025, darker(colour, 0.25))
    if garment["focus"] == "saree":
        drape = [(0.13, 0.0), (0.19, 0.03), (0.05, 0.3), (-0.15, 0.6), (-0.17, 0.42), (0.0, 0.2)]
        canvas.area(drape, fabric, GARMENT)
        canvas.stroke([(0.19, 0.03), (0.05, 0.3), (-0.15, 0.6)], 0.008, COLOURS["Gold"])
    paint_collar(canvas, garment, figure, hem, colour)
    if garment["pattern"] == "emblem":
        paint_emblem(canvas, garment)


def paint_saree(canvas, garment, fabric, colour):
    """Draw the pleated skirt of a saree with its border."""
    hip, low = garment["hip"], garment["hip"] + garment["flare"]
    canvas.area(both([(garment["waist"], 0.44), (hip, 0.58), (low, 1.36), (low, 1.36)]), fabric, GARMENT)
    for x in np.linspace(-0.4, 0.4, 5):
        canvas.stroke([(x * 0.1, 0.5), (x * low, 1.34)], 0.003, darker(colour, 0.25))
    canvas.stroke([(-low, 1.35), (low, 1.35)], 0.02, COLOURS["Gold"], GARMENT)


def paint_arms(canvas, garment, figure, fabric, colour):
    """Draw both arms in their pose, with a sleeve over the first part of each."""
    worn = figure["frame"] != "flat"
    poses = figure["arms"] if worn else [(24, 20)] * 2
    for side, (upper, lower) in zip((-1, 1), poses, strict=True):
        upper, lower = math.radians(upper), math.radians(lower)
        joint = np.array([side * (garment["shoulder"] - 0.05), 0.09])
        elbow = joint + 0.27 * np.array([side * math.sin(upper), math.cos(upper)])
        wrist = elbow + 0.24 * np.array([side * math.sin(lower), math.cos(lower)])
        if worn:
            canvas.stroke([joint, elbow, wrist], (0.045, 0.038, 0.027), figure["skin"], GARMENT)
            canvas.oval(wrist + (wrist - elbow) * 0.12, (0.032, 0.036), figure["skin"], GARMENT)
        if not garment["sleeve"]:
            continue
        share = garment["sleeve"] * 2
        nodes = [joint, joint + (elbow - joint) * min(share, 1)] + ([elbow + (wrist - elbow) * (share - 1)] if share > 1 else [])
        canvas.stroke(nodes, (0.055, 0.05, 0.04)[: len(nodes)], fabric, GARMENT)
        across = np.array([nodes[-1] - nodes[-2]])[0][::-1] * (1, -1)
        across = across / np.hypot(*across) * 0.044
        canvas.stroke([nodes[-1] - across, nodes[-1] + across], 0.005, darker(colour, 0.3))
        canvas.stroke([joint + (side * -0.034, 0.10), joint + (side * -0.03, 0.04)], 0.0025, darker(colour, 0.2))


def paint_collar(canvas, garment, figure, hem, colour):
    """Draw neckline, collar, buttons or zip."""
    kind, dark = garment["collar"], darker(colour, 0.35)
    skin = figure["skin"] if figure["frame"] != "flat" else darker(colour, 0.5)
    depth = {"round": 0.035, "v": 0.12, "boat": 0.05, "polo": 0.06, "shirt": 0.06, "hood": 0.04}.get(kind, 0.03)
    wide = 0.115 if kind == "boat" else 0.062
    canvas.area([(-wide, -0.02), (-wide, -0.02), (0, -0.035), (wide, -0.02), (wide, -0.02),
                 *([(0, depth)] * 2 if kind in ("v", "shirt", "polo") else [(wide * 0.6, depth * 0.8), (0, depth),
                 (-wide * 0.6, depth * 0.8)])], skin, GARMENT)  # fmt: skip
    if kind in ("shirt", "polo"):
        for side in (-1, 1):
            canvas.area([(side * 0.064, -0.035), (0, depth), (side * 0.05, depth + 0.045), (side * 0.09, 0.01)],
                        lighter(colour, 0.18), GARMENT, smooth=False)  # fmt: skip
    if kind == "hood":
        canvas.stroke(arc((0, -0.02), (0.1, 0.075), 10, 170), 0.025, lighter(colour, 0.12), GARMENT)
    if kind in ("round", "v", "boat"):
        edge = [(-wide, -0.02), (0, depth), (wide, -0.02)] if kind == "v" else arc((0, -0.02), (wide, depth + 0.02), 0, 180)
        canvas.stroke(edge, 0.006, dark)
    if kind in ("shirt", "polo", "zip", "mandarin"):
        end = hem - 0.02 if kind in ("shirt", "zip") else {"polo": 0.16, "mandarin": 0.3}[kind]
        canvas.stroke([(0, depth), (0, end)], 0.006 if kind == "zip" else 0.004, (225, 225, 225) if kind == "zip" else dark)
        for y in np.arange(depth + 0.05, end, 0.085) if kind != "zip" else ():
            canvas.oval((0.012, y), (0.008, 0.008), lighter(colour, 0.6))
    if kind in ("mandarin", "zip"):
        canvas.stroke([(-0.06, -0.02), (0, 0.03), (0.06, -0.02)], 0.014, lighter(colour, 0.15), GARMENT)


def paint_emblem(canvas, garment):
    """Draw a print on the chest: a star, a disc or three bars."""
    second, kind = COLOURS[garment["second"]], int(garment["period"] * 1000) % 3
    second = lighter(second, 0.4) if garment["second"] == garment["colour"] else second
    if kind == 0:
        angle = np.radians(np.arange(10) * 36 - 90)
        radius = np.where(np.arange(10) % 2, 0.035, 0.085)
        canvas.fill([np.stack([radius * np.cos(angle), 0.22 + radius * np.sin(angle)], 1)], second)
    elif kind == 1:
        canvas.oval((0, 0.22), (0.075, 0.075), second)
        canvas.oval((0, 0.22), (0.045, 0.045), lighter(second, 0.6))
    else:
        for row, width in enumerate((0.1, 0.07, 0.09)):
            canvas.stroke([(-width, 0.17 + row * 0.05), (width, 0.17 + row * 0.05)], 0.014, second)


def paint_hair_behind(canvas, head):
    """Draw the hair that falls behind neck and shoulders."""
    length = {"long": 0.16, "wavy": 0.1, "bob": -0.06}.get(head["hair"])
    if length is not None:
        wide = 0.125 if head["hair"] == "wavy" else 0.11
        canvas.area(both([(0.05, -0.32), (0.105, -0.24), (wide, -0.1), (wide + 0.01, length), (0.05, length + 0.01)]),
                    darker(head["hair_colour"], 0.2), HAIR)  # fmt: skip


def paint_head(canvas, head, skin):
    """Draw face, hair and beard."""
    jaw, colour = head["jaw"], head["hair_colour"]
    for side in (-1, 1):
        canvas.oval((side * 0.087, -0.19), (0.016, 0.026), darker(skin, 0.12), FACE)
    canvas.area(both([(0.05, -0.305), (0.088, -0.23), (0.085 * (jaw + 1) / 2, -0.16), (0.062 * jaw, -0.1),
                      (0.026 * jaw, -0.072)]), skin, FACE)  # fmt: skip
    paint_beard(canvas, head, skin)
    paint_face(canvas, head, skin)
    top = 0.315 if head["hair"] == "crop" else 0.338
    part = 0.03 * math.copysign(1, head["tilt"])
    canvas.area([(-0.096, -0.18), (-0.1, -0.25), (-0.055, -top), (0.0, -top - 0.008), (0.055, -top), (0.1, -0.25), (0.096, -0.18),
                 (0.08, -0.235), (0.045 + part, -0.272), (part, -0.262), (-0.045 + part, -0.268), (-0.08, -0.235)],
                colour, HAIR)  # fmt: skip
    if head["hair"] == "curly":
        for angle in range(180, 361, 20):
            x, y = arc((0, -0.225), (0.092, 0.105), angle, angle, 1)[0]
            canvas.oval((x, y), (0.03, 0.03), colour, HAIR)
    if head["hair"] == "bun":
        canvas.oval((0, -0.37), (0.045, 0.04), colour, HAIR)
    length = {"long": 0.17, "wavy": 0.11, "bob": -0.075}.get(head["hair"])
    for side in (-1, 1) if length is not None else ():
        wave = 0.022 if head["hair"] == "wavy" else 0.0
        lock = [(0.07, -0.29), (0.093, -0.2), (0.098 + wave, -0.11), (0.1 - wave * 0.5, length * 0.5 - 0.05), (0.105 + wave, length)]
        canvas.stroke([(side * x, y) for x, y in lock], (0.016, 0.02, 0.024, 0.024, 0.012), colour, HAIR)


def paint_beard(canvas, head, skin):
    """Draw a full beard, stubble or a moustache; it belongs to the face."""
    jaw, colour = head["jaw"], head["hair_colour"]
    if head["beard"] in ("full", "stubble"):
        shade = colour if head["beard"] == "full" else blend(skin, colour, 0.3)
        canvas.area(both([(0.04, -0.142), (0.087 * (jaw + 1) / 2, -0.175), (0.066 * jaw, -0.098), (0.03 * jaw, -0.066)]),
                    shade, FACE)  # fmt: skip
    if head["beard"] in ("full", "moustache"):
        canvas.stroke([(-0.034, -0.13), (0, -0.14), (0.034, -0.13)], 0.009, colour)


def paint_face(canvas, head, skin):
    """Draw eyes, brows, nose and mouth."""
    for side in (-1, 1):
        canvas.oval((side * 0.037, -0.2), (0.018, 0.0115), (250, 250, 248))
        canvas.oval((side * 0.037, -0.2), (0.009, 0.0095), (48, 34, 28))
        if head["lips"] > 0.5:
            canvas.stroke(arc((side * 0.037, -0.199), (0.019, 0.013), 190, 350, 8), 0.003, (24, 18, 18))
        brow = [(side * 0.018, -0.224), (side * 0.038, -0.231), (side * 0.057, -0.222)]
        canvas.stroke(brow, 0.0042 * head["brow"], darker(head["hair_colour"], 0.1))
        canvas.oval((side * 0.052, -0.155), (0.016, 0.011), blend(skin, (226, 90, 90), 0.12 + 0.15 * head["lips"]))
    canvas.stroke([(0.003, -0.19), (0.009, -0.163), (-0.003, -0.160)], 0.003, darker(skin, 0.2))
    lips = blend(darker(skin, 0.3), (196, 24, 52), head["lips"])
    smile = 0.012 * head["smile"]
    canvas.stroke([(-0.027, -0.122), (-0.012, -0.122 + smile), (0.012, -0.122 + smile), (0.027, -0.122)],
                  0.0045 + 0.004 * head["lips"], lips)  # fmt: skip


# --- Items ---------------------------------------------------------------------------------------------------------


def paint_item(record):
    """Draw an accessory, a shoe or a flask."""
    item, scene = record["item"], record["scene"]
    kind = ITEMS[item["article"]]
    canvas = Canvas(scene | {"turn": scene["turn"] * 3}, (0.5, 2 / 3), item["size"])
    if item["flip"] and kind.category == "Footwear":
        canvas.matrix = canvas.matrix * [[-1, 1], [-1, 1]]
    colour, second, metal = (COLOURS[item[name]] for name in ("colour", "second", "metal"))
    kind.paint(canvas, item, colour, second, metal)
    return canvas


def watch(canvas, item, colour, second, metal):
    """A wrist watch, upright: round and broad for men, often square or on a slim bracelet for women."""
    radius, slim = (0.21, 0.1) if item["style"] == "Men" else (0.16, 0.06)
    strap = metal if item["variant"] == 0 else colour
    canvas.area(both([(slim * 0.8, -0.52), (slim, -0.5), (slim * 1.3, 0), (slim, 0.5), (slim * 0.8, 0.52)]), strap, ITEM)
    for y in np.arange(-0.48, 0.49, 0.06 if item["variant"] == 0 else 0.96):
        canvas.stroke([(-slim, y), (slim, y)], 0.005, darker(strap, 0.35))
    if item["style"] == "Women" and item["variant"] == 1:
        box = [(-radius, -radius), (radius, -radius), (radius, radius), (-radius, radius)]
        canvas.area(box, metal, ITEM, smooth=False)
        canvas.area(np.array(box) * 0.78, lighter(second, 0.7), smooth=False)
    else:
        canvas.oval((0, 0), (radius, radius), darker(metal, 0.15), ITEM)
        canvas.oval((0, 0), (radius * 0.82, radius * 0.82), lighter(second, 0.75) if item["variant"] % 2 else (30, 30, 36))
    marks = (235, 200, 90) if item["variant"] % 2 == 0 else (40, 40, 44)
    for angle in range(0, 360, 30):
        canvas.stroke(arc((0, 0), (radius * 0.7,) * 2, angle, angle, 1), radius * 0.035, marks)
    canvas.stroke([(0.0, 0.0), (0.0, -radius * 0.6)], 0.007, marks)
    canvas.stroke([(0.0, 0.0), (radius * 0.45, radius * 0.2)], 0.009, marks)
    canvas.stroke([(radius + 0.005, 0), (radius + 0.025, 0)], 0.014, metal, ITEM)


def belt(canvas, item, colour, second, metal):
    """A closed belt seen from the front."""
    wide = 0.05 if item["style"] == "Men" else 0.028 + 0.01 * item["variant"]
    for start, shade in ((180, darker(colour, 0.4)), (0, colour)):  # the far half, the near half
        edge = arc((0, -0.03), (0.42, 0.1), start, start + 180)
        canvas.area(np.concatenate([edge - (0, wide), edge[::-1] + (0, wide)]), shade, ITEM, smooth=False)
    for shift in (-0.75, 0.75):
        canvas.stroke(arc((0, -0.03 + shift * wide), (0.42, 0.1), 3, 177), 0.003, lighter(colour, 0.3))
    box = np.array([(-0.07, -0.065), (0.07, -0.065), (0.07, 0.065), (-0.07, 0.065)]) * (1, wide / 0.046) + (-0.06, 0.068)
    canvas.area(box, metal, ITEM, smooth=False)
    canvas.area((box - box.mean(0)) * 0.62 + box.mean(0), colour, ITEM, smooth=False)
    canvas.stroke([(-0.06, 0.068), (0.0, 0.068)], 0.009, metal, ITEM)


def wallet(canvas, item, colour, second, metal):
    """A folded wallet: compact for men, long with a clasp for women."""
    x, y = (0.26, 0.2) if item["style"] == "Men" else (0.38, 0.17)
    corner = [(x - 0.02, -y), (x - 0.01, -y), (x, -y + 0.02), (x, y - 0.02), (x - 0.01, y), (x - 0.02, y)]
    canvas.area(both(corner), darker(colour, 0.25), ITEM)
    canvas.area(np.array(both(corner)) * (0.985, 0.95) + (0, -0.015), colour, ITEM)
    edge = np.array([(-x, -y), (x, -y), (x, y), (-x, y), (-x, -y)]) * 0.88
    canvas.stroke(edge, 0.003, lighter(colour, 0.35))
    if item["style"] == "Women":
        canvas.stroke([(-x, -0.03), (x, -0.03)], 0.004, darker(colour, 0.4))
        canvas.oval((0, -0.03), (0.028, 0.022), metal)
    else:
        canvas.stroke([(x * 0.45, y * 0.55), (x * 0.75, y * 0.55)], 0.012, lighter(colour, 0.25))


def sunglasses(canvas, item, colour, second, metal):
    """Sunglasses from the front: narrow or aviator for men, large and round for women."""
    wide, high = (0.17, 0.1) if item["style"] == "Men" else (0.18, 0.15)
    frame = metal if item["variant"] == 0 else colour
    lens = blend((40, 38, 44), second, 0.2 if item["style"] == "Men" else 0.45)
    canvas.stroke(arc((0, 0.0), (0.07, 0.05), 200, 340), 0.014, frame, ITEM)
    for side in (-1, 1):
        canvas.stroke([(side * 0.37, -0.07), (side * 0.42, -0.1), (side * 0.36, -0.19)], 0.014, frame, ITEM)
        shape = np.array([(-0.9, -0.75), (0.3, -1), (1, -0.8), (1, 0.1), (0.4, 1), (-0.6, 0.8), (-1, 0)]) * (wide, high)
        shape = shape * (side, 1) + (side * 0.21, 0.02)
        canvas.area((shape - shape.mean(0)) * 1.13 + shape.mean(0), frame, ITEM)
        canvas.area(shape, lens, ITEM)
        canvas.stroke([(side * 0.21 - 0.07, 0.04), (side * 0.21 + 0.02, -0.05)], 0.009, lighter(lens, 0.35))


def tie(canvas, item, colour, second, metal):
    """A knotted neck tie."""
    fabric = canvas.texture(item["pattern"], colour, lighter(second, 0.3), item["period"])
    canvas.area([(-0.04, -0.5), (0.04, -0.5), (0.095, 0.42), (0, 0.54), (-0.095, 0.42)], fabric, ITEM, smooth=False)
    canvas.area([(-0.075, -0.6), (0.075, -0.6), (0.045, -0.48), (-0.045, -0.48)], darker(colour, 0.15), ITEM, smooth=False)
    canvas.stroke([(-0.042, -0.478), (0.042, -0.478)], 0.005, darker(colour, 0.5))


def backpack(canvas, item, colour, second, metal):
    """A backpack with pocket, zips and straps."""
    canvas.stroke(arc((0, -0.4), (0.08, 0.1), 180, 360), 0.018, darker(colour, 0.3), ITEM)
    for side in (-1, 1):
        canvas.stroke([(side * 0.24, -0.25), (side * 0.33, 0.0), (side * 0.26, 0.38)], 0.028, darker(colour, 0.35), ITEM)
    canvas.area(both([(0.1, -0.42), (0.22, -0.36), (0.29, 0.0), (0.3, 0.36), (0.2, 0.43)]), colour, ITEM)
    canvas.area(both([(0.12, 0.03), (0.22, 0.06), (0.23, 0.32), (0.14, 0.36)]), blend(colour, second, 0.6))
    canvas.stroke(arc((0, -0.02), (0.24, 0.28), 195, 345), 0.007, (210, 210, 210))
    canvas.stroke([(-0.19, 0.11), (0.19, 0.11)], 0.007, (210, 210, 210))


def cap(canvas, item, colour, second, metal):
    """A baseball cap from the side."""
    canvas.area([(0.1, 0.1), (0.3, 0.08), (0.48, 0.15), (0.42, 0.19), (0.1, 0.17)], darker(second, 0.1), ITEM)
    canvas.area([(-0.32, 0.17), (-0.34, 0.0), (-0.22, -0.19), (0.0, -0.24), (0.2, -0.14), (0.26, 0.12), (0.24, 0.17), (0, 0.15)],
                colour, ITEM)  # fmt: skip
    for bend in (-0.12, 0.1):
        canvas.stroke([(-0.02, -0.24), (bend, -0.1), (bend * 1.4, 0.15)], 0.004, darker(colour, 0.35))
    canvas.oval((-0.02, -0.24), (0.022, 0.014), second, ITEM)


def socks(canvas, item, colour, second, metal):
    """A pair of socks."""
    fabric = canvas.texture(item["pattern"], colour, second, item["period"])
    high = -0.45 if item["style"] == "Men" else -0.18
    for shift in ((0.1, 0.05), (-0.08, -0.03)):
        sock = np.array([(-0.12, high), (-0.12, high), (0.1, high), (0.1, high), (0.1, 0.1), (0.28, 0.24), (0.3, 0.34), (0.2, 0.4),
                         (-0.02, 0.34), (-0.14, 0.24), (-0.12, 0.1)]) + shift  # fmt: skip
        canvas.area(sock, fabric, ITEM)
        canvas.stroke([sock[1] + (0, 0.03), sock[2] + (0, 0.03)], 0.03, second, ITEM)


HANDBAGS = [  # right half of the body; handle: height of its ends, half axes
    ([(0.25, -0.2), (0.26, -0.2), (0.34, 0.3), (0.33, 0.33), (0.3, 0.34)], (-0.17, 0.15, 0.28)),  # tote
    ([(0.0, -0.05), (0.2, -0.1), (0.3, -0.2), (0.37, 0.02), (0.27, 0.24), (0.1, 0.32)], (-0.16, 0.29, 0.36)),  # hobo
    ([(0.1, -0.24), (0.28, -0.18), (0.37, 0.05), (0.38, 0.26), (0.32, 0.3), (0.32, 0.3)], (-0.2, 0.13, 0.2)),  # bowling
    ([(0.32, -0.14), (0.34, -0.14), (0.34, -0.12), (0.33, 0.27), (0.32, 0.3), (0.3, 0.3)], (-0.12, 0.3, 0.46)),  # shoulder
]


def handbag(canvas, item, colour, second, metal):
    """A handbag: tote, hobo, bowling or shoulder bag."""
    half, (height, across, up) = HANDBAGS[item["variant"]]
    body = np.array(both(half))
    for lift, shade in ((0.03, 0.35), (0.0, 0.15)):
        canvas.stroke(arc((0, height), (across, up + lift), 180, 360), 0.015, darker(colour, shade), ITEM)
    canvas.area(body, colour, ITEM)
    canvas.stroke(arc((0, -0.05), (0.25, 0.1), 10, 170), 0.005, darker(colour, 0.35))
    if item["variant"] in (0, 3):
        canvas.area(both([(0.26, -0.17), (0.27, -0.1), (0.2, 0.02), (0.05, 0.06)]), darker(colour, 0.16))
    canvas.stroke([(-0.25, 0.24), (0.25, 0.24)], 0.004, lighter(colour, 0.3))
    canvas.oval((0, 0.04), (0.034, 0.026), metal)
    for side in (-1, 1):
        canvas.oval((side * across, height + 0.01), (0.022, 0.022), metal)


def clutch(canvas, item, colour, second, metal):
    """A clutch with flap and clasp."""
    fabric = canvas.texture(item["pattern"], colour, second, item["period"])
    canvas.area([(-0.4, -0.17), (0.4, -0.17), (0.38, 0.2), (-0.38, 0.2)], fabric, ITEM, smooth=False)
    canvas.area([(-0.4, -0.17), (0.4, -0.17), (0.0, 0.08)], darker(colour, 0.2), smooth=False)
    canvas.stroke([(-0.4, -0.17), (0.4, -0.17)], 0.016, metal, ITEM)
    canvas.oval((0, 0.06), (0.034, 0.034), metal)


def earrings(canvas, item, colour, second, metal):
    """A pair of earrings: drops, hoops or studs on a chain."""
    stone = COLOURS["Turquoise Blue"] if item["variant"] == 2 else second
    for side in (-1, 1):
        x = side * 0.19
        canvas.stroke(arc((x, -0.3), (0.03, 0.06), 120, 400), 0.007, metal, ITEM)
        canvas.stroke([(x, -0.24), (x, -0.1)], 0.012, metal, ITEM)
        if item["variant"] % 2:
            canvas.stroke(arc((x, 0.06), (0.12, 0.16), 0, 360), 0.017, metal, ITEM)
        else:
            canvas.area([(x, -0.14), (x, -0.14), (x + 0.1, 0.12), (x, 0.22), (x - 0.1, 0.12)], metal, ITEM)
            canvas.oval((x, 0.09), (0.058, 0.075), stone)
        for step in (-0.05, 0.0, 0.05):
            canvas.oval((x + step, 0.25 - abs(step) * 0.5), (0.017, 0.025), stone, ITEM)


def necklace(canvas, item, colour, second, metal):
    """A necklace laid out, of beads or of a chain, with a pendant."""
    chain = np.concatenate([arc((0, -0.15), (0.3, 0.42), -60, 90), arc((0, -0.15), (0.3, 0.42), 90, 240)])
    canvas.stroke(chain, 0.009, metal, ITEM)
    if item["variant"] % 2:
        for x, y in chain[6:-6:2]:
            canvas.oval((x, y), (0.028, 0.028), second, ITEM)
    canvas.area([(0, 0.24), (0, 0.24), (0.09, 0.38), (0, 0.48), (-0.09, 0.38)], metal, ITEM)
    canvas.oval((0, 0.37), (0.045, 0.055), second)


def bangle(canvas, item, colour, second, metal):
    """One to three bangles."""
    for ring in range(1 + item["variant"] % 3):
        y = 0.13 - ring * 0.13
        canvas.stroke(arc((0, y), (0.33, 0.2), 0, 360, 40), 0.03, metal if ring % 2 == 0 else second, ITEM)
        for x, dot in arc((0, y), (0.33, 0.2), 15, 165, 8):
            canvas.oval((x, dot), (0.016, 0.016), second if ring % 2 == 0 else metal)


def shoe(canvas, item, colour, second, metal):
    """A closed shoe from the side: sports, casual or formal."""
    kind, formal = item["article"], item["article"] == "Formal Shoes"
    sole = {"Sports Shoes": 0.085, "Casual Shoes": 0.06}.get(kind, 0.04)
    toe = 0.05 if formal else 0.0  # a formal toe is lower
    bottom = darker(colour, 0.5) if formal or not item["variant"] else (236, 236, 232)
    canvas.area([(-0.44, 0.11), (-0.45, 0.12 + sole), (-0.44, 0.13 + sole), (0.3, 0.13 + sole), (0.44, 0.1 + sole), (0.47, 0.1)],
                bottom, ITEM)  # fmt: skip
    high = -0.19 if item["style"] == "Men" else -0.16
    canvas.area([(-0.44, 0.13), (-0.45, 0.0), (-0.43, high), (-0.37, high - 0.02), (-0.22, -0.1), (-0.08, high), (0.0, high + 0.03),
                 (0.16, -0.04 + toe / 2), (0.33, -0.01 + toe), (0.44, 0.05 + toe / 2), (0.46, 0.12), (0.44, 0.13)],
                colour, ITEM)  # fmt: skip
    canvas.area([(-0.4, high + 0.01), (-0.22, -0.09), (-0.09, high + 0.02), (-0.2, -0.05), (-0.34, -0.09)], darker(colour, 0.55))
    if kind == "Sports Shoes":
        for step in range(3):
            canvas.stroke([(-0.2 + step * 0.08, 0.1), (-0.12 + step * 0.08, -0.04)], 0.018, second)
        canvas.stroke([(-0.43, 0.165), (0.43, 0.16)], 0.012, second)
        canvas.area([(-0.445, 0.1), (-0.44, -0.08), (-0.36, -0.02), (-0.34, 0.11)], second)
    if kind == "Casual Shoes" and item["variant"] % 2:
        canvas.area([(0.27, 0.12), (0.28, 0.0), (0.36, 0.0), (0.45, 0.07), (0.46, 0.12)], lighter(bottom, 0.2))
    laces = darker(colour, 0.45) if formal else (246, 246, 246)
    for step in range(0 if formal and item["variant"] % 2 else 4):
        x, y = -0.05 + step * 0.06, high + 0.06 + step * 0.028
        canvas.stroke([(x - 0.03, y + 0.04), (x + 0.03, y)], 0.009, laces)


def heel(canvas, item, colour, second, metal):
    """A pump with a high heel, or a flat."""
    lift = {"Flats": 0.02}.get(item["article"], 0.2 + 0.035 * item["variant"])
    back = 0.14 - lift
    if lift > 0.05:
        thin = 0.014 if item["variant"] % 2 else 0.03
        canvas.area([(-0.42, back), (-0.3, back + 0.05), (-0.37 + thin, 0.24), (-0.37 - thin, 0.24)], darker(colour, 0.3), ITEM, smooth=False)
    sole = [(-0.42, back + 0.03), (-0.25, back + 0.07), (0.05, 0.2), (0.3, 0.235), (0.44, 0.22)]
    canvas.stroke(sole, 0.018, darker(colour, 0.5), ITEM)
    canvas.area([(-0.43, back + 0.04), (-0.44, back - 0.05), (-0.4, back - 0.15), (-0.34, back - 0.1), (-0.2, back + 0.02),
                 (0.0, 0.12), (0.14, 0.1), (0.3, 0.14), (0.45, 0.215), (0.3, 0.225), (0.05, 0.19), (-0.25, back + 0.06)],
                colour, ITEM)  # fmt: skip
    canvas.area([(-0.36, back - 0.08), (-0.2, back + 0.03), (0.0, 0.13), (0.11, 0.11), (-0.05, 0.06), (-0.22, back - 0.01)],
                darker(colour, 0.45))  # fmt: skip
    if item["pattern"] == "dots":
        canvas.oval((0.2, 0.12), (0.04, 0.025), second, ITEM)
    if item["variant"] == 3:
        canvas.stroke(arc((-0.28, back - 0.14), (0.13, 0.04), 0, 360), 0.012, colour, ITEM)


def sandal(canvas, item, colour, second, metal):
    """A sandal from the side, with straps over an open foot bed."""
    thick = 0.045 if item["style"] == "Men" else 0.028
    canvas.area([(-0.42, 0.1), (0.0, 0.14), (0.4, 0.11), (0.46, 0.14), (0.4, 0.14 + 2 * thick), (-0.42, 0.13 + 2 * thick)],
                darker(colour, 0.45), ITEM)  # fmt: skip
    canvas.stroke([(-0.4, 0.11), (0.0, 0.15), (0.42, 0.13)], 0.014, COLOURS["Tan"], ITEM)
    width = thick * 0.8
    for path in ([(-0.4, 0.1), (-0.36, -0.1), (-0.24, -0.14), (-0.16, 0.12)], [(-0.05, 0.14), (0.06, -0.03), (0.16, -0.01), (0.22, 0.13)],
                 [(-0.3, -0.12), (-0.1, -0.09), (0.08, -0.02)], [(0.1, 0.0), (0.28, 0.05), (0.34, 0.13)]):  # fmt: skip
        canvas.stroke(path, width, colour, ITEM)
    canvas.oval((-0.13, -0.09), (0.02, 0.024), metal)


def flip_flop(canvas, item, colour, second, metal):
    """A pair of flip flops from above."""
    for side in (-1, 1):
        shift = np.array([side * 0.17, side * 0.02])
        foot = np.array([(-0.1, -0.34), (0.0, -0.41), (0.11, -0.33), (0.12, -0.15), (0.08, 0.1), (0.1, 0.3), (0.0, 0.4), (-0.09, 0.3), (-0.08, 0.05)])
        foot = foot * (side, 1) * (1 if item["style"] == "Men" else 0.85, 1) + shift
        canvas.area(foot + (0.012, 0.015), darker(colour, 0.45), ITEM)
        canvas.area(foot, colour, ITEM)
        canvas.stroke(np.array([(-0.1, -0.02), (-0.05, -0.17), (0.0, -0.26), (0.06, -0.17), (0.1, -0.02)]) + shift, 0.02, second, ITEM)


def bottle(canvas, item, colour, second, metal):
    """A flask: perfume, deodorant, nail polish or a water bottle."""
    wide, high, neck = {"Deodorant": (0.12, 0.34, 0.12), "Nail Polish": (0.13, 0.16, 0.06), "Water Bottle": (0.14, 0.36, 0.08)}.get(
        item["article"], ((0.22, 0.24, 0.08), (0.17, 0.28, 0.07), (0.25, 0.2, 0.06), (0.2, 0.2, 0.07))[item["variant"]]
    )
    tall = 0.32 if item["article"] == "Nail Polish" else 0.15
    canvas.area(both([(neck * 0.8, -high - tall), (neck, -high - tall + 0.01), (neck, -high + 0.05)]), darker(metal, 0.1)
                if item["article"] != "Nail Polish" else (36, 34, 38), ITEM)  # fmt: skip
    round_body = item["style"] == "Women" and item["article"] == "Perfume and Body Mist"
    body = [(neck, -high), (wide, -high * 0.4), (wide * 1.15, high * 0.3), (wide * 0.7, high)] if round_body else [
        (wide * 0.8, -high), (wide, -high + 0.03), (wide, high - 0.03), (wide * 0.94, high)]  # fmt: skip
    canvas.area(both(body), colour, ITEM)
    canvas.stroke([(-wide * 0.7, -high * 0.55), (-wide * 0.7, high * 0.7)], 0.014, lighter(colour, 0.5))
    if item["article"] != "Nail Polish":
        canvas.area([(-wide * 0.6, -0.05), (wide * 0.7, -0.05), (wide * 0.7, 0.1), (-wide * 0.6, 0.1)], lighter(second, 0.65), smooth=False)
        canvas.stroke([(-wide * 0.4, 0.025), (wide * 0.5, 0.025)], 0.009, darker(second, 0.3))


def lipstick(canvas, item, colour, second, metal):
    """A lipstick, open."""
    red = COLOURS[("Red", "Pink", "Maroon", "Peach")[item["variant"]]]
    canvas.area([(-0.06, 0.0), (-0.06, -0.25), (0.02, -0.37), (0.06, -0.32), (0.06, 0.0)], red, ITEM, smooth=False)
    canvas.area([(-0.075, -0.06), (0.075, -0.06), (0.075, 0.12), (-0.075, 0.12)], metal, ITEM, smooth=False)
    canvas.area([(-0.1, 0.1), (0.1, 0.1), (0.1, 0.44), (-0.1, 0.44)], (40, 36, 42), ITEM, smooth=False)
    canvas.stroke([(-0.07, 0.14), (-0.07, 0.4)], 0.009, (110, 104, 112))


def cushion(canvas, item, colour, second, metal):
    """A cushion."""
    fabric = canvas.texture("floral", colour, second, item["period"])
    canvas.area([(-0.36, -0.36), (0, -0.3), (0.36, -0.36), (0.3, 0), (0.36, 0.36), (0, 0.3), (-0.36, 0.36), (-0.3, 0)], fabric, ITEM)


# Items: weights for Men and Women (alike where both wear it), how they are coloured, patterns, what draws them.
Item = namedtuple("Item", "category sub weights colours patterns paint")
ITEMS = {
    "Watches": Item("Accessories", "Watches", (30, 16), "leather", PLAIN, watch),
    "Belts": Item("Accessories", "Belts", (12, 6), "leather", PLAIN, belt),
    "Wallets": Item("Accessories", "Wallets", (12, 8), "leather", PLAIN, wallet),
    "Sunglasses": Item("Accessories", "Eyewear", (13, 8), "leather", PLAIN, sunglasses),
    "Ties": Item("Accessories", "Ties", (10, 0), "any", ("stripes", "checks", "dots"), tie),
    "Backpacks": Item("Accessories", "Bags", (8, 3), "any", PLAIN, backpack),
    "Caps": Item("Accessories", "Headwear", (6, 1), "any", PLAIN, cap),
    "Socks": Item("Accessories", "Socks", (9, 2), "any", LINES, socks),
    "Handbags": Item("Accessories", "Bags", (0, 26), "leather", PLAIN, handbag),
    "Clutches": Item("Accessories", "Bags", (0, 7), "any", PRINTS, clutch),
    "Earrings": Item("Accessories", "Jewellery", (0, 11), "metal", PLAIN, earrings),
    "Necklace and Chains": Item("Accessories", "Jewellery", (1, 8), "metal", PLAIN, necklace),
    "Bracelet": Item("Accessories", "Jewellery", (1, 6), "metal", PLAIN, bangle),
    "Sports Shoes": Item("Footwear", "Shoes", (28, 12), "any", PLAIN, shoe),
    "Casual Shoes": Item("Footwear", "Shoes", (28, 9), "any", PLAIN, shoe),
    "Formal Shoes": Item("Footwear", "Shoes", (12, 0), "leather", PLAIN, shoe),
    "Sandals": Item("Footwear", "Sandal", (10, 6), "leather", PLAIN, sandal),
    "Flip Flops": Item("Footwear", "Flip Flops", (8, 6), "any", PLAIN, flip_flop),
    "Heels": Item("Footwear", "Shoes", (0, 28), "leather", ("plain", "dots"), heel),
    "Flats": Item("Footwear", "Shoes", (0, 12), "leather", ("plain", "dots"), heel),
    "Perfume and Body Mist": Item("Personal Care", "Fragrance", (6, 6), "any", PLAIN, bottle),
    "Deodorant": Item("Personal Care", "Fragrance", (5, 4), "any", PLAIN, bottle),
    "Lipstick": Item("Personal Care", "Lips", (0, 8), "any", PLAIN, lipstick),
    "Nail Polish": Item("Personal Care", "Nails", (0, 7), "any", PLAIN, bottle),
    "Free Gifts": Item("Free Items", "Free Gifts", (1, 1), "any", PLAIN, backpack),
    "Water Bottle": Item("Sporting Goods", "Sports Equipment", (1, 1), "any", PLAIN, bottle),
    "Cushion Covers": Item("Home", "Home Furnishing", (1, 1), "any", PLAIN, cushion),
}


# --- One picture ---------------------------------------------------------------------------------------------------


def paint(record, seed):
    """Draw one record; return the picture (RGB) and its mask (L, values 0..4), both width x height of the scene."""
    canvas = paint_item(record) if "item" in record else paint_figure(record)
    random = np.random.default_rng([seed, record["id"], 5])
    picture = canvas.picture if canvas.factor == 1 else canvas.picture.reduce(canvas.factor)
    return _light(picture, canvas.mask, record["scene"]["noise"], random), canvas.mask


def _light(picture, mask, noise, random):
    """Give the flat drawing volume: light from the upper left, a soft shadow, folds in the cloth, the camera's noise."""
    width, height = picture.size
    shape = mask.point([0] + [255] * 255)
    soft = shape.filter(ImageFilter.BoxBlur(width / 40)).filter(ImageFilter.BoxBlur(width / 40))
    reach = round(width / 50)
    relief = _moved(soft, reach, reach) - _moved(soft, -reach, -reach)
    folds = Image.fromarray(random.normal(0, 1, (7, 9)).astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    inside = np.asarray(shape, np.float32) / 255
    shadow = _moved(soft, -reach, round(-1.6 * reach))
    lit = 1 + 0.28 * relief + 0.035 * np.asarray(folds) - 0.12 * (1 - _moved(soft, 0, 0))
    gain = inside * lit + (1 - inside) * (1 - 0.22 * shadow)
    grain = noise * random.standard_normal((height, width), dtype=np.float32)
    pixels = np.asarray(picture, np.float32) * gain[..., None] + grain[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _moved(picture, right, down):
    """Return the grey picture as float32 in 0..1, seen (right, down) pixels further on; nothing lies beyond its edges."""
    moved = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down))
    return np.asarray(moved, np.float32) / 255


# --- The catalogue -------------------------------------------------------------------------------------------------


def draw(folder, *, products=1200, seed=0, head_share=0.4):
    """Draw a catalogue of `products` Men/Women rows with a readable image into `folder` and return its path.

    On top come the rows of other genders (5 %), rows without an image, an image without a row, and one truncated file.
    A finished catalogue with the same settings is left as it is. `head_share` of the apparel shows its gender in the
    head only, the rest in the garment only. Raises InputError for settings that cannot be drawn, and for a folder that
    holds anything else. Taught in: chapter 1.
    """
    if products < 60 or not 0 <= head_share <= 1 or seed < 0:
        raise InputError(
            f"synthetic.draw needs products >= 60, seed >= 0 and 0 <= head_share <= 1; "
            f"found products={products}, seed={seed}, head_share={head_share}"
        )
    folder = Path(folder)
    settings = {"version": VERSION, "products": products, "seed": seed, "head_share": float(head_share)}
    if _finished(folder, settings):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        unfinished = Path(scratch, "catalogue")
        _draw_all(unfinished, settings)
        try:
            unfinished.rename(folder)  # replaces an empty folder, never one with content
        except OSError:
            if not _finished(folder, settings):  # another process may have been faster
                raise
    return folder


def _finished(folder, settings):
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "catalogue.json").read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} holds something that synthetic.draw did not make: name another folder") from None
    if found != settings:
        raise InputError(f"{folder} holds a catalogue with {found}, asked for {settings}: delete it or name another folder")
    return True


def _draw_all(folder, settings):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    plan = _plan(settings["products"], settings["seed"])
    records = [_record(entry, settings) for entry in plan]
    jobs = [joblib.delayed(_save)(folder, record, entry, settings["seed"])
            for entry, record in zip(plan, records, strict=True) if entry["image"] and entry["copy_of"] is None]  # fmt: skip
    parallel = joblib.Parallel(n_jobs=-1, return_as="generator", batch_size=16)
    for _ in progress(parallel(jobs), "drawing the synthetic catalogue", total=len(jobs)):
        pass
    for entry in plan:
        if entry["copy_of"] is not None:
            for name in ("images/{}.jpg", "masks/{}.png"):
                shutil.copyfile(folder / name.format(entry["copy_of"]), folder / name.format(entry["id"]))
    rows = [_row(record, entry, settings["seed"]) for entry, record in zip(plan, records, strict=True) if entry["row"]]
    (folder / "styles.csv").write_text("\n".join([COLUMNS, *map(",".join, rows)]) + "\n")
    facts = {"settings": settings, **_truth(plan, records)}
    (folder / "catalogue.json").write_text(json.dumps(facts, indent=2) + "\n")
    for path in folder.rglob("*"):
        os.utime(path, (DATE, DATE))


def _plan(products, seed):
    """Return one entry per product: its id and which of the real catalogue's defects it shows."""
    random = np.random.default_rng([seed, products])
    share = products / 1200
    groups = max(3, round(12 * share))
    lost, others = max(1, round(4 * share)), max(3, round(0.053 * products))
    count = products + 2 + lost + others  # 2: the truncated file, and the image without a row
    ids = np.random.default_rng([seed]).permutation(np.arange(1163, 60000))[:count].tolist()
    plan = [{"id": number, "gender": None, "image": True, "row": True, "copy_of": None, "commas": 0, "mode": "RGB",
             "width": None, "flip": False, "truncated": False} for number in ids]  # fmt: skip
    roles = iter(random.permutation(count).tolist())

    def mark(times, **change):
        for _ in range(times):
            plan[next(roles)].update(change)

    for gender, part in (("Unisex", 0.6), ("Boys", 0.22), ("Girls", 0.18)):
        mark(max(1, round(others * part)), gender=gender) if gender != "Girls" else None
    mark(others - sum(entry["gender"] is not None for entry in plan), gender="Girls")
    mark(lost, image=False)
    mark(1, row=False)
    mark(1, truncated=True)
    mark(max(1, round(5 * share)), commas=1)
    mark(1, commas=2)
    mark(max(1, round(12 * share)), mode="L")
    mark(1, mode="CMYK")
    mark(max(1, round(3 * share)), width=1800)
    for group in range(groups):
        original = plan[next(roles)]["id"]
        mark(2 if group == 1 else 1, copy_of=original, flip=group == 0)  # group 0 contradicts itself, group 1 has three
    return plan


def _record(entry, settings):
    shown = {"Boys": "Men", "Girls": "Women"}.get(entry["gender"])
    source = entry["id"] if entry["copy_of"] is None else entry["copy_of"]
    record = describe(settings["seed"], source, head_share=settings["head_share"], gender=shown)
    if entry["width"]:
        record["scene"]["width"] = entry["width"]
    if entry["flip"]:
        record["gender"] = {"Men": "Women", "Women": "Men"}[record["gender"]]
    return record


def _save(folder, record, entry, seed):
    picture, mask = paint(record, seed)
    stream = io.BytesIO()
    picture.convert(entry["mode"]).save(stream, "JPEG", quality=record["scene"]["quality"])
    data = stream.getvalue()
    (folder / "images" / f"{entry['id']}.jpg").write_bytes(data[: len(data) // 2] if entry["truncated"] else data)
    mask.save(folder / "masks" / f"{entry['id']}.png")


def _row(record, entry, seed):
    """Return the fields of one line of styles.csv; a malformed one has commas inside its last field."""
    random = np.random.default_rng([seed, entry["id"], 6])
    part = record.get("item") or record["garment"]
    article, gender = part["article"], entry["gender"] or record["gender"]
    kind = ITEMS.get(article) or APPAREL[article]
    master = "Apparel" if record["category"] == 1 else kind.category
    usage = {"Sports Shoes": "Sports", "Track Pants": "Sports", "Formal Shoes": "Formal", "Ties": "Formal", "Kurtas": "Ethnic",
             "Sarees": "Ethnic"}.get(article, "Casual")  # fmt: skip
    pattern = {"plain": "", "pinstripes": "Striped ", "stripes": "Striped ", "checks": "Checked ", "dots": "Dotted ",
               "floral": "Printed ", "emblem": "Printed "}.get(part["pattern"], "")  # fmt: skip
    name = f"{_colour(random, BRANDS)} {gender} {part['colour']} {pattern}{SINGULAR.get(article, article)}"
    name += ("", ", Pack of Two", ", Gift Box and Card, Pack of Two")[entry["commas"]]
    season = _pick(random, ("Summer", "Fall", "Winter", "Spring"), (48, 26, 19, 7))
    return [str(entry["id"]), gender, master, kind.sub, article, part["colour"], season, str(random.integers(2011, 2019)), usage, name]


def _truth(plan, records):
    """Return the counts that a correct reader of the finished folder finds."""
    pairs = [(e, 2 * r["category"] + (r["gender"] == "Women")) for e, r in zip(plan, records, strict=True)]
    kept = [label for e, label in pairs if e["row"] and e["image"] and not e["truncated"] and e["gender"] is None]
    classes = Counter(kept)
    return {
        "rows": sum(e["row"] for e in plan),
        "malformed_rows": sum(e["commas"] > 0 for e in plan),
        "images": sum(e["image"] for e in plan),
        "rows_without_image": sum(e["row"] and not e["image"] for e in plan),
        "images_without_row": sum(e["image"] and not e["row"] for e in plan),
        "unreadable_images": sum(e["truncated"] for e in plan),
        "duplicate_groups": len({e["copy_of"] for e in plan} - {None}),
        "duplicate_label_conflicts": len({e["copy_of"] for e in plan if e["flip"]}),
        "products": len(kept),
        "class_counts": [classes[label] for label in range(6)],
    }
