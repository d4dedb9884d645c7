"""What each ingredient is worth to the DCGAN: python benchmarks/experiments/gan_recipes.py (about 90 minutes).

Class 1 (Women/Accessories) of the real 60x80 catalogue, 700 steps of 64 pictures, the paper's networks, two seeds: the
paper's recipe, the same with one ingredient changed, and `dcgan.BEST`. Judged by the Frechet distance in the features
of chapter 2's classifier (of `make report PROFILE=small`), at equal numbers of pictures. Stopped, it goes on where it
was.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring
from conftest import real_data_folder

from fashionlib import artifacts, classifier, dcgan, images, judging, preparation, runtime

STEPS, BATCH, SEEDS, LABEL = 700, 64, (0, 1), 1
VARIANTS = {
    "the paper's recipe": {},
    "average of the weights": {"ema": 0.99},
    "hinge loss": {"loss": "hinge"},
    "a discriminator twice as fast": {"discriminator_rate": 4e-4},
    "spectral normalisation": {"spectral_norm": True},
    "gradient penalty": {"r1": 1.0},
    "augmentation inside the game": {"augment": True},
    "no flips": {"flip": False},
    "the best": dcgan.BEST,
}


def judge(generator, real: np.ndarray, held: np.ndarray, model, size) -> dict:
    """Distances of as many generated pictures as there are in `real`, and of `held`, which is their floor."""
    count = len(real)
    drawn = dcgan.sample(generator, dcgan.noise(count, seed=1))
    known, floor, made = (judging.embed(model, pixels, size=size)[0] for pixels in (real, held, drawn))
    precision, recall = judging.precision_and_recall(known, made)
    found = {"frechet": judging.frechet_distance(known, made), "floor": judging.frechet_distance(known, floor)}
    found |= {"kernel": judging.kernel_distance(known, made), "precision": precision, "recall": recall}
    return found | {"variety": judging.variety(drawn) / judging.variety(real), "pictures": count}


def main() -> None:
    if not (folder := real_data_folder()):
        sys.exit("gan_recipes: the real catalogue is needed; FASHION_REAL_DATA must name the folder with its zips")
    work = runtime.build_root() / "experiments" / "gan_recipes"
    source = folder / "fashion-product-images-small.zip"
    prepared = images.load(preparation.prepare(source, work / "prepared", sizes=[dcgan.SIZE]))
    model, settings = classifier.load(artifacts.require("small", "classifier.safetensors").parent)
    train = dcgan.of_classes(prepared, [LABEL])
    halves = np.array_split(np.random.default_rng(0).permutation(train.rows), 2)
    count = min(map(len, halves))
    real, held = (train.images[np.sort(half[:count])] for half in halves)
    epochs = math.ceil(STEPS / (len(train.rows) // BATCH))
    results = {}
    for name, changed in VARIANTS.items():
        runs = []
        for seed in SEEDS:
            recipe = dcgan.Recipe(epochs=epochs, batch_size=BATCH, seed=seed, **changed)
            checkpoint = work / f"{name.replace(' ', '-')}-{seed}.safetensors"
            result = dcgan.fit(train, recipe=recipe, checkpoint=checkpoint, settings={"data": prepared.checksum(64)})
            found = judge(result.generator, real, held, model, settings["size"])
            runs.append(found | {"seconds": result.seconds, "alarms": result.alarms})
        results[name] = runs
    rows = [measuring.row(name, [run["frechet"] for run in runs], "Frechet") for name, runs in results.items()]
    rows.append(measuring.row("floor: real against real", [results["the best"][0]["floor"]], "Frechet"))
    plain, best = (np.mean([run["frechet"] for run in results[name]]) for name in ("the paper's recipe", "the best"))
    budget = {"steps": STEPS, "batch_size": BATCH, "class": LABEL, "seeds": SEEDS, "best": dcgan.BEST}
    measuring.save("gan_recipes", rows, {"gan_best_vs_plain": round(plain / best, 2)}, budget=budget, variants=results)


if __name__ == "__main__":
    main()
