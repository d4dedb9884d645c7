"""What each ingredient is worth to the DCGAN: python benchmarks/experiments/gan_recipes.py (about 100 minutes).

Class 1 (Women/Accessories) of the real 60x80 catalogue, 700 steps of 64 pictures and the rest of their epoch, two
seeds: the paper's networks and recipe, the same with one ingredient changed, and `dcgan.BEST`. Judged by the Frechet
distance in the features of chapter 2's classifier (of `make report PROFILE=small`), at equal numbers of pictures.
Stopped, it goes on where it was.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring
from conftest import real_data_folder

from fashionlib import artifacts, dcgan, gan_metrics, images, models, runtime
from fashionlib.data import prepare

STEPS, BATCH, SEEDS, LABEL, OTHER = 700, 64, (0, 1), 1, 2
AVERAGE = {"ema": 0.99}
VARIANTS = {
    "the paper's recipe": {},
    "average of the weights": AVERAGE,
    "both learning rates doubled": {"learning_rate": 4e-4},
    "hinge loss": {"loss": "hinge"},
    "a discriminator twice as fast": {"discriminator_rate": 4e-4},
    "spectral normalisation": {"spectral_norm": True},
    "gradient penalty": {"r1": 1.0},
    "augmentation inside the game": {"augment": True},
    "no flips": {"flip": False},
    "two classes, told apart": {
        "conditional": True
    },  # Men/Apparel beside it, judged on class 1
    "the best": dcgan.BEST | AVERAGE,
}


def main() -> None:
    if not (folder := real_data_folder()):
        sys.exit(
            "gan_recipes: the real catalogue is needed; FASHION_REAL_DATA must name the folder with its zips"
        )
    work = runtime.build_root() / "experiments" / "gan_recipes"
    source = folder / "fashion-product-images-small.zip"
    prepared = images.load(
        prepare.prepare(source, work / "prepared", sizes=[dcgan.SIZE])
    )
    model, settings = models.load(
        artifacts.require("small", "classifier.safetensors").parent
    )
    train = dcgan.of_classes(prepared, [LABEL])
    both = dcgan.of_classes(prepared, [LABEL, OTHER])
    halves = np.array_split(np.random.default_rng(0).permutation(train.rows), 2)
    count = min(map(len, halves))
    real, held = (train.images[np.sort(half[:count])] for half in halves)
    sides, facts = {"floor": held}, {}
    for name, changed in VARIANTS.items():
        pictures = both if changed.get("conditional") else train
        epochs = math.ceil(STEPS / (len(pictures.rows) // BATCH))
        for seed in SEEDS:
            recipe = dcgan.Recipe(epochs=epochs, batch_size=BATCH, seed=seed, **changed)
            checkpoint = work / f"{name.replace(' ', '-')}-{seed}.safetensors"
            result = dcgan.fit(
                pictures,
                recipe=recipe,
                checkpoint=checkpoint,
                settings={"data": prepared.checksum(64)},
            )
            sides[name, seed] = dcgan.sample(
                result.generator, dcgan.noise(count, seed=1)
            )  # of several classes the first
            facts[name, seed] = {
                "pictures": count,
                "steps": len(result.history),
                "seconds": result.seconds,
            }
            facts[name, seed]["alarms"] = result.alarms

    def embed(pixels: np.ndarray) -> torch.Tensor:
        return gan_metrics.embed(model, pixels, size=settings["size"])[0]

    found = gan_metrics.scores(embed, real, sides)
    floor = {"floor": found.pop("floor")["frechet"]}
    results = {
        name: [found[name, seed] | floor | facts[name, seed] for seed in SEEDS]
        for name in VARIANTS
    }
    rows = [
        measuring.row(name, [run["frechet"] for run in runs], "Frechet")
        for name, runs in results.items()
    ]
    rows.append(measuring.row("floor: real against real", [floor["floor"]], "Frechet"))
    plain, best = (
        np.mean([run["frechet"] for run in results[name]])
        for name in ("the paper's recipe", "the best")
    )
    budget = {
        "steps": STEPS,
        "batch_size": BATCH,
        "class": LABEL,
        "seeds": SEEDS,
        "best": VARIANTS["the best"],
    }
    measuring.save(
        "gan_recipes",
        rows,
        {"gan_best_vs_plain": round(plain / best, 2)},
        budget=budget,
        variants=results,
    )


if __name__ == "__main__":
    main()
