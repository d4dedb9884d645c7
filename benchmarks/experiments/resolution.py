"""What resizing loses.

    python benchmarks/experiments/resolution.py    # two hours on one core of an EPYC

Resolution: ResNet10 from scratch with the recipe of profiles/small-224, for fewer
epochs, on the real 224x224 images, shrunk to seven sides; every network is tested at
the neighbors' sides, too (Touvron et al. 2019). Two seeds, each with first weights and
a split of its own: the networks are scored on the images of both test sets. All sides
have the stem of ImageNet's networks, those up to 64 the small one, too. And what the
way to 64x64 and back does to images in the eyes of the classifier.

Shape: the network of profiles/small on a fraction of the real 60x80 images, squashed,
padded and cropped to 64x64, and as they are. Stopped, it goes on where it was.

Measured: with one network 64x64 costs nothing against 224x224 that 1,368 images could
show, 32x32 three points; squashing does no worse than padding, cropping loses 1.4
points.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring

from fashionlib import (
    catalogue,
    evaluation,
    gan_metrics,
    images,
    models,
    parameters,
    runtime,
    training,
)
from fashionlib.data import decoding, prepare
from fashionlib.training import Recipe

SEEDS, SIDES = (0, 1), (32, 48, 64, 96, 128, 160, 224)
STEMS = [(side, "small") for side in SIDES if side <= 64]
STEMS += [(side, "imagenet") for side in SIDES]  # the last one: full size
FULL = f"{SIDES[-1]}x{SIDES[-1]}, imagenet stem"
SMALL, SMALL_224 = (
    Recipe.from_parameters(parameters.for_profile("02_resnet152", profile))
    for profile in ("small", "small-224")
)
RECIPE = replace(SMALL_224, epochs=8)
ROUND_TRIP = (1, 2)  # the classes that the DCGAN is trained on
SHAPES = {"squash": (64, 64), "pad": (64, 64), "crop": (64, 64), "as it is": (80, 60)}
SHAPE_IMAGES = 3_000
# the weights' average looks back over a twentieth of all steps, as in profiles/small
SHAPE_RECIPE = replace(SMALL, epochs=4)


def subset(
    prepared: images.Prepared, name: str, size: images.Size, seed: int
) -> images.ImageSet:
    """The images of one set under the split of this seed."""
    index = prepared.index
    split = catalogue.split(index["label"], index["group"], seed=seed)
    rows = np.flatnonzero(split == name)
    labels = index["label"].to_numpy("int64")
    return images.ImageSet(prepared.array(size), rows, labels[rows])


def train(
    prepared: images.Prepared,
    size: images.Size,
    recipe: Recipe,
    *,
    stem: str = "small",
    count: int = sys.maxsize,
) -> nn.Module:
    """A network from scratch, on the recipe's seed's training set or `count` of it."""
    data = images.random_subset(subset(prepared, "train", size, recipe.seed), count)
    runtime.seed_everything(recipe.seed)
    model = models.build("resnet10", stem=stem)
    settings = {"data": prepared.checksum(size), "images": len(data.rows), "stem": stem}
    checkpoint = prepared.folder.with_name(f"{prepared.folder.name}-training")
    training.fit(model, data, recipe=recipe, checkpoint=checkpoint, settings=settings)
    return model


def correct(model: nn.Module, data: images.ImageSet) -> dict[str, np.ndarray]:
    """Whether class, gender and category of each image are found, bool (M,) each."""
    logits, labels = training.predict(model, data, flip=True)
    predicted, labels = logits.argmax(1).numpy(), labels.numpy()
    return {
        "class": predicted == labels,
        "gender": predicted % 2 == labels % 2,
        "category": predicted // 2 == labels // 2,
    }


def together(runs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `correct` found of all seeds, behind each other."""
    return {kind: np.concatenate([run[kind] for run in runs]) for kind in runs[0]}


def summary(runs: list[dict[str, np.ndarray]], labels: np.ndarray) -> dict:
    """Accuracies over the test images of all seeds, with an interval, and each seed's.

    labels: int64 (M,), of the images of all seeds behind each other.
    """
    every = together(runs)
    found = {f"{kind}_accuracy": float(each.mean()) for kind, each in every.items()}
    recall = [float(every["class"][labels == label].mean()) for label in range(6)]
    return found | {
        "ci95": evaluation.accuracy(every["class"]).ci95,
        "recall": recall,
        "each": [float(run["class"].mean()) for run in runs],
        "pictures": len(labels),
    }


def gap(first: np.ndarray, second: np.ndarray) -> list:
    """Difference of two accuracies on the same images and its interval."""
    pair = torch.from_numpy(first), torch.from_numpy(second)
    difference = float(first.mean() - second.mean())
    return [difference, evaluation.agresti_min_interval(*pair)]


def against(
    runs: list[dict[str, np.ndarray]],
    others: list[dict[str, np.ndarray]],
    labels: np.ndarray,
) -> dict:
    """`gap` to the other networks: of each kind over all images, and of each class."""
    mine, theirs = together(runs), together(others)
    gaps = {kind: gap(mine[kind], theirs[kind]) for kind in mine}
    rows = [labels == label for label in range(6)]
    gaps["classes"] = [gap(mine["class"][each], theirs["class"][each]) for each in rows]
    return gaps


def speed(data: images.ImageSet, stem: str) -> float:
    """Images/s of a training, the median of three short epochs."""
    few = images.random_subset(data, 512)
    model = models.build("resnet10", stem=stem)
    history = training.fit(model, few, recipe=replace(RECIPE, epochs=3))
    return len(few.rows) / float(np.median([epoch["seconds"] for epoch in history]))


def round_trip(model: nn.Module, prepared: images.Prepared, label: int) -> dict:
    """What the way to 64x64 and back does to half of a class: Frechet distances.

    To the other half (beside the floor, the same images as they were), and to itself.
    """
    rows = np.flatnonzero(prepared.index["label"] == label)
    halves = np.array_split(np.random.default_rng(0).permutation(rows), 2)
    count, array = min(map(len, halves)), prepared.array(SIDES[-1])
    reference, half = (array[np.sort(each[:count])] for each in halves)
    back = decoding.resize(decoding.resize(half, (64, 64)), half.shape[1:3])

    def embed(pixels: np.ndarray) -> torch.Tensor:
        return models.extract_features(model, images.from_array(pixels))[0]

    sides = {"floor": half, "there and back": back}
    scores = gan_metrics.scores(embed, reference, sides)
    scores |= gan_metrics.scores(embed, half, {"before and after": back})
    distances = {side: found["frechet"] for side, found in scores.items()}
    return distances | {"pictures": count}


def resolutions(prepared: images.Prepared) -> tuple[dict, dict]:
    """What was found for each side and stem, and the round trip of each class."""
    tests = [subset(prepared, "test", 64, seed) for seed in SEEDS]
    labels = np.concatenate([test.labels for test in tests])
    results, kept = {}, {}
    for side, stem in STEMS:
        name, tested = f"{side}x{side}, {stem} stem", {}
        recipes = [replace(RECIPE, seed=seed) for seed in SEEDS]
        networks = [train(prepared, side, recipe, stem=stem) for recipe in recipes]
        for other in SIDES:
            if 0.5 <= other / side <= 2:
                tests = [subset(prepared, "test", other, seed) for seed in SEEDS]
                tested[other] = list(map(correct, networks, tests))
        kept[name] = tested[side]
        results[name] = {"side": side, "stem": stem} | summary(kept[name], labels)
        results[name]["tested_at"] = {}
        for other, runs in tested.items():
            found = summary(runs, labels)["class_accuracy"]
            results[name]["tested_at"][other] = found
    for name, found in results.items():
        found["against_224"] = against(kept[name], kept[FULL], labels)
        data = subset(prepared, "train", found["side"], 0)
        found["images_per_second"] = rate = speed(data, found["stem"])
        found["seconds_an_epoch"] = len(data.rows) / rate
    trips = {label: round_trip(networks[0], prepared, label) for label in ROUND_TRIP}
    return results, trips


def shapes(source: Path, work: Path) -> dict:
    """What was found for each way to make 60x80 images square, and as they are."""
    kept, results = {}, {}
    for name, size in SHAPES.items():
        mode = name if name in decoding.RESIZE_MODES else "squash"
        options = {"sizes": sorted({SHAPES["as it is"], size}), "resize_mode": mode}
        folder = prepare.prepare(source, work / name.replace(" ", "-"), **options)
        prepared, kept[name], tests = images.load(folder), [], []
        for seed in SEEDS:
            recipe = replace(SHAPE_RECIPE, seed=seed)
            model = train(prepared, size, recipe, count=SHAPE_IMAGES)
            tests.append(subset(prepared, "test", size, seed))
            kept[name].append(correct(model, tests[-1]))
        labels = np.concatenate([test.labels for test in tests])  # the same every time
    for name, runs in kept.items():
        gaps = {"against_squash": against(runs, kept["squash"], labels)}
        results[name] = summary(runs, labels) | gaps
    return results


def main() -> None:
    large = measuring.real_catalogue("fashion-product-images-224.zip")
    small = measuring.real_catalogue("fashion-product-images-small.zip")
    work = runtime.build_root() / "experiments" / "resolution"
    folder = prepare.prepare(large, work / "prepared", sizes=list(SIDES))
    prepared = images.load(folder)
    variants, trips = resolutions(prepared)
    square, rows = shapes(small, work), []
    for name, found in (variants | square).items():
        each = [100 * accuracy for accuracy in found["each"]]
        rows.append(measuring.row(name, each, "%", digits=2))
    budget = {
        "seeds": SEEDS,
        "resolution": asdict(RECIPE),
        "shape": asdict(SHAPE_RECIPE),
        "shape_pictures": SHAPE_IMAGES,
        "products": len(prepared.index),
        "threads": torch.get_num_threads(),
    }
    results = {"variants": variants, "shapes": square, "round_trip": trips}
    measuring.save("resolution", rows, {}, budget=budget, **results)


if __name__ == "__main__":
    main()
