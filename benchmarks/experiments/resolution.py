"""What resizing loses: python benchmarks/experiments/resolution.py (about two hours on one core of an AMD EPYC).

Resolution: ResNet10 from scratch with the recipe of profiles/small-224, for fewer epochs, on the real 224x224 pictures,
shrunk to seven sides; every network is tested at the neighbours' sides, too (Touvron et al. 2019). Two seeds, each with
first weights and a split of its own: the networks are scored on the pictures of both test parts. All sides have the
stem of ImageNet's networks, those up to 64 the small one, too. And what the way to 64x64 and back does to pictures in
the eyes of the classifier.

Shape: the network of profiles/small on a part of the real 60x80 pictures, squashed, padded and cropped to 64x64, and
as they are. Stopped, it goes on where it was.

Measured: with one network 64x64 costs nothing against 224x224 that 1,368 pictures could show, 32x32 three points;
squashing does no worse than padding, cropping loses 1.4 points.
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
from conftest import real_data_folder

from fashionlib import (
    artifacts,
    catalogue,
    classifier,
    decoding,
    evaluation,
    images,
    judging,
    preparation,
    runtime,
)

SEEDS, SIDES = (0, 1), (32, 48, 64, 96, 128, 160, 224)
STEMS = [(side, "small") for side in SIDES if side <= 64] + [
    (side, "imagenet") for side in SIDES
]
RECIPE = replace(
    models.Recipe.of(artifacts.parameters_of("02_resnet152", "small-224")), epochs=8
)
ROUND_TRIP = (1, 2)  # the classes that the DCGAN is trained on
SHAPES = {"squash": (64, 64), "pad": (64, 64), "crop": (64, 64), "as it is": (80, 60)}
SHAPE_PICTURES = 3_000
SHAPE_RECIPE = replace(
    models.Recipe.of(artifacts.parameters_of("02_resnet152", "small")),
    epochs=4,
    half_size_epochs=1,
)


def part(
    prepared: images.Prepared, name: str, size: images.Size, seed: int
) -> images.ImageSet:
    """The pictures of one part under the split of this seed."""
    index = prepared.index
    rows = np.flatnonzero(
        catalogue.split(index["label"], index["group"], seed=seed) == name
    )
    return images.ImageSet(
        prepared.array(size), rows, index["label"].to_numpy("int64")[rows]
    )


def first(data: images.ImageSet, count: int | None) -> images.ImageSet:
    """As many of the pictures, drawn at random; None: all."""
    chosen = np.random.default_rng(0).permutation(len(data.rows))[:count]
    return data._replace(rows=data.rows[chosen], labels=data.labels[chosen])


def train(
    prepared: images.Prepared,
    size: images.Size,
    recipe: models.Recipe,
    checkpoint: Path,
    *,
    stem: str = "small",
    pictures: int | None = None,
) -> nn.Module:
    """One network from scratch, on all training pictures of the recipe's seed or on some of them."""
    data = first(part(prepared, "train", size, recipe.seed), pictures)
    runtime.seed_everything(recipe.seed)
    model = models.build("resnet10", stem=stem)
    settings = {
        "data": prepared.checksum(size),
        "pictures": len(data.rows),
        "stem": stem,
    }
    models.fit(model, data, recipe=recipe, checkpoint=checkpoint, settings=settings)
    return model


def hits(model: nn.Module, data: images.ImageSet) -> dict[str, np.ndarray]:
    """For each picture whether its class, gender and category are found."""
    logits, labels = models.predict(model, data, flip=True)
    predicted, labels = logits.argmax(1).numpy(), labels.numpy()
    pairs = {"class": (predicted, labels), "gender": (predicted % 2, labels % 2)}
    pairs["category"] = (predicted // 2, labels // 2)
    return {kind: found == true for kind, (found, true) in pairs.items()}


def summary(runs: list[dict[str, np.ndarray]], labels: np.ndarray) -> dict:
    """Accuracies over the test pictures of all seeds, with the interval of so many pictures, and of each seed."""
    together = {kind: np.concatenate([run[kind] for run in runs]) for kind in runs[0]}
    found = {
        f"{kind}_accuracy": float(values.mean()) for kind, values in together.items()
    }
    found["ci95"] = evaluation.accuracy_interval(
        int(together["class"].sum()), len(labels)
    )
    recall = [float(together["class"][labels == label].mean()) for label in range(6)]
    return found | {
        "recall": recall,
        "each": [float(run["class"].mean()) for run in runs],
        "pictures": len(labels),
    }


def apart(
    mine: list[dict[str, np.ndarray]],
    others: list[dict[str, np.ndarray]],
    labels: np.ndarray,
) -> dict:
    """Accuracy of mine minus that of the others on the same pictures, (difference, interval) over all and per class."""
    a, b = (
        {kind: np.concatenate([run[kind] for run in runs]) for kind in runs[0]}
        for runs in (mine, others)
    )

    def gap(kind: str, rows: np.ndarray | slice = slice(None)) -> list:
        pair = torch.from_numpy(a[kind][rows]), torch.from_numpy(b[kind][rows])
        return [
            float(a[kind][rows].mean() - b[kind][rows].mean()),
            evaluation.paired_interval(*pair),
        ]

    return {kind: gap(kind) for kind in a} | {
        "classes": [gap("class", labels == label) for label in range(6)]
    }


def speed(data: images.ImageSet, stem: str) -> float:
    """Images/s of a training, the median of three short epochs."""
    few = first(data, 512)
    model = models.build("resnet10", stem=stem)
    history = models.fit(model, few, recipe=replace(RECIPE, epochs=3))
    return len(few.rows) / float(np.median([epoch["seconds"] for epoch in history]))


def round_trip(model: nn.Module, prepared: images.Prepared, label: int) -> dict:
    """Frechet distances of one half of the pictures, which goes to 64x64 and back, to the other half and to itself."""
    rows = np.flatnonzero(prepared.index["label"] == label)
    halves = np.array_split(np.random.default_rng(0).permutation(rows), 2)
    count = min(map(len, halves))
    reference, half = (prepared.array(224)[np.sort(part[:count])] for part in halves)
    back = decoding.resize(decoding.resize(half, (64, 64)), (224, 224))

    def embed(pixels: np.ndarray) -> torch.Tensor:
        return gan_metrics.embed(model, pixels, size=224)[0]

    found = gan_metrics.scores(
        embed, reference, {"floor": half, "there and back": back}
    )
    found |= gan_metrics.scores(embed, half, {"before and after": back})
    return {side: row["frechet"] for side, row in found.items()} | {"pictures": count}


def resolutions(prepared: images.Prepared, work: Path) -> tuple[dict, dict]:
    """What was found for each side and stem, and the round trip of each class."""
    labels = np.concatenate([part(prepared, "test", 64, seed).labels for seed in SEEDS])
    results, kept, models = {}, {}, {}
    for side, stem in STEMS:
        name = f"{side}x{side}, {stem} stem"
        for seed in SEEDS:
            path = work / f"{side}-{stem}-{seed}.safetensors"
            models[seed] = train(
                prepared, side, replace(RECIPE, seed=seed), path, stem=stem
            )
        tested = {
            other: [
                hits(models[seed], part(prepared, "test", other, seed))
                for seed in SEEDS
            ]
            for other in SIDES
            if 0.5 <= other / side <= 2
        }
        kept[name] = tested[side]
        results[name] = {"side": side, "stem": stem} | summary(kept[name], labels)
        results[name]["tested_at"] = {
            other: summary(found, labels)["class_accuracy"]
            for other, found in tested.items()
        }
    for (side, stem), name in zip(
        STEMS, results, strict=True
    ):  # the last networks are those of full size
        results[name]["against_224"] = apart(
            kept[name], kept["224x224, imagenet stem"], labels
        )
        data = part(prepared, "train", side, 0)
        results[name]["images_per_second"] = rate = speed(data, stem)
        results[name]["seconds_an_epoch"] = len(data.rows) / rate
    return results, {
        label: round_trip(models[0], prepared, label) for label in ROUND_TRIP
    }


def shapes(source: Path, work: Path) -> dict:
    """What was found for each way to make 60x80 pictures square, and for leaving them as they are."""
    kept, labels = {}, None
    for name, size in SHAPES.items():
        fit = name if name in ("pad", "crop") else "squash"
        folder = prepare.prepare(
            source,
            work / name.replace(" ", "-"),
            sizes=sorted({(80, 60), size}),
            fit=fit,
        )
        prepared = images.load(folder)
        labels = np.concatenate(
            [part(prepared, "test", size, seed).labels for seed in SEEDS]
        )
        kept[name] = []
        for seed in SEEDS:
            recipe, path = (
                replace(SHAPE_RECIPE, seed=seed),
                work / f"{folder.name}-{seed}.safetensors",
            )
            model = train(prepared, size, recipe, path, pictures=SHAPE_PICTURES)
            kept[name].append(hits(model, part(prepared, "test", size, seed)))
    return {
        name: summary(found, labels)
        | {"against_squash": apart(found, kept["squash"], labels)}
        for name, found in kept.items()
    }


def main() -> None:
    if not (folder := real_data_folder()):
        sys.exit(
            "resolution: the real catalogue is needed; FASHION_REAL_DATA must name the folder with its zips"
        )
    work = runtime.build_root() / "experiments" / "resolution"
    source = folder / "fashion-product-images-224.zip"
    prepared = images.load(
        prepare.prepare(source, work / "prepared", sizes=list(SIDES))
    )
    variants, trips = resolutions(prepared, work)
    square = shapes(folder / "fashion-product-images-small.zip", work)
    rows = [
        measuring.row(name, [100 * each for each in found["each"]], "%", digits=2)
        for name, found in (variants | square).items()
    ]
    budget = {
        "seeds": SEEDS,
        "resolution": asdict(RECIPE),
        "shape": asdict(SHAPE_RECIPE),
    }
    budget |= {
        "shape_pictures": SHAPE_PICTURES,
        "products": len(prepared.index),
        "threads": torch.get_num_threads(),
    }
    measuring.save(
        "resolution",
        rows,
        {},
        budget=budget,
        variants=variants,
        shapes=square,
        round_trip=trips,
    )


if __name__ == "__main__":
    main()
