"""What each ingredient of the recipe is worth: python benchmarks/experiments/ablation.py (about 40 minutes on 2 cores).

The recipe of profiles/small with one ingredient left out at a time, on 9,000 training pictures of the real 60x80
catalogue, 3 epochs, two seeds, judged on the validation part with the mirrored pictures averaged: the test part is
not looked at. Stopped, it goes on where it was.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring
from conftest import real_data_folder

from fashionlib import artifacts, evaluation, images, models, runtime
from fashionlib.data import prepare

SIZE = (80, 60)
PICTURES = 9_000
SEEDS = (0, 1)
SMALL = models.Recipe.of(artifacts.parameters_of("02_resnet152", "small"))
RECIPE = replace(SMALL, epochs=3, half_size_epochs=1)
WITHOUT = {
    "the whole recipe": {},
    "Adam without decay instead of AdamW": {"optimizer": "adam", "weight_decay": 0.0},
    "a constant rate of 1e-3 instead of one cycle": {
        "schedule": "constant",
        "learning_rate": 1e-3,
    },
    "no label smoothing": {"label_smoothing": 0.0},
    "no flips": {"flip": False},
    "no shifts": {"crop": 0},
    "full size from the start": {"half_size_epochs": 0},
    "no average of the weights": {"average": 0.0},
}
STEM = "ImageNet's stem instead of the small one"
NO_FLIP = "no mirrored pictures at test time"


def train(
    prepared: images.Prepared, name: str, recipe: models.Recipe, stem: str
) -> dict:
    """Hits on the validation part, with and without mirrored pictures, and the seconds of the training."""
    whole = prepared.subset("train", SIZE)
    chosen = np.random.default_rng(0).permutation(len(whole.rows))[:PICTURES]
    part = whole._replace(rows=whole.rows[chosen], labels=whole.labels[chosen])
    validation = prepared.subset("validation", SIZE)
    runtime.seed_everything(recipe.seed)
    model = models.build("resnet10", stem=stem)
    checkpoint = (
        prepared.folder.parent / f"{name.replace(' ', '-')}-{recipe.seed}.safetensors"
    )
    settings = {"stem": stem, "data": prepared.checksum(SIZE), "pictures": PICTURES}
    history = models.fit(
        model, part, recipe=recipe, checkpoint=checkpoint, settings=settings
    )
    hits = {}
    for flip in (True, False):
        logits, labels = models.predict(model, validation, flip=flip)
        hits[flip] = int((logits.argmax(1) == labels).sum())
    seconds = sum(record["seconds"] for record in history)
    return {"hits": hits, "count": len(validation.rows), "seconds": seconds}


def summary(runs: list[dict], flip: bool = True) -> dict:
    """Mean accuracy of the seeds with the 95 % interval of one of them, of each seed, the seconds of one training."""
    each = [run["hits"][flip] / run["count"] for run in runs]
    accuracy, count = (
        sum(each) / len(each),
        runs[0]["count"],
    )  # the seeds share their pictures: not twice as many
    interval = evaluation.accuracy_interval(round(accuracy * count), count)
    seconds = sum(run["seconds"] for run in runs) / len(runs)
    return {"accuracy": accuracy, "ci95": interval, "each": each, "seconds": seconds}


def main() -> None:
    if not (folder := real_data_folder()):
        sys.exit(
            "ablation: the real catalogue is needed; FASHION_REAL_DATA must name the folder with its zips"
        )
    work = runtime.build_root() / "experiments" / "ablation"
    source = folder / "fashion-product-images-small.zip"
    prepared = images.load(prepare.prepare(source, work / "prepared", sizes=[SIZE]))
    runs = {}
    for name, changed in WITHOUT.items():
        recipes = [replace(RECIPE, **changed, seed=seed) for seed in SEEDS]
        runs[name] = [train(prepared, name, recipe, "small") for recipe in recipes]
    runs[STEM] = [
        train(prepared, STEM, replace(RECIPE, seed=seed), "imagenet") for seed in SEEDS
    ]
    results = {name: summary(each) for name, each in runs.items()}
    results[NO_FLIP] = summary(runs["the whole recipe"], flip=False)
    rows = [
        measuring.row(
            name, [100 * accuracy for accuracy in found["each"]], "%", digits=2
        )
        for name, found in results.items()
    ]
    budget = {
        "size": SIZE,
        "pictures": PICTURES,
        "architecture": "resnet10",
        "seeds": SEEDS,
        **asdict(RECIPE),
    }
    measuring.save("ablation", rows, {}, budget=budget, variants=results)


if __name__ == "__main__":
    main()
