"""What each ingredient of the recipe is worth.

    python benchmarks/experiments/ablation.py    # an hour and a half on 2 cores

The recipe of profiles/small-imagenet with one ingredient left out, or put in, at a
time: EfficientNet-Lite0 from ImageNet's weights on 6,000 training images of the real
60x80 catalogue, 3 epochs, two seeds, judged on the validation set with the mirrored
images averaged. The test set is not looked at. Stopped, it goes on where it was.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring

from fashionlib import evaluation, images, models, parameters, runtime, training
from fashionlib.data import prepare
from fashionlib.training import Recipe

SIZE = (80, 60)
IMAGES = 6_000
SEEDS = (0, 1)
PROFILE = parameters.for_profile("02_resnet152", "small-imagenet")
NETWORK = {name: PROFILE[name] for name in ("architecture", "weights", "enlarge")}
RECIPE = replace(Recipe.from_parameters(PROFILE), epochs=3)
WHOLE = "the whole recipe"
VARIANTS = {
    WHOLE: {},
    "no weight decay": {"weight_decay": 0.0},
    "a constant rate of 3e-4 instead of one cycle": {
        "schedule": "constant",
        "learning_rate": 3e-4,
    },
    "no label smoothing": {"label_smoothing": 0.0},
    "no flips": {"flip": False},
    "no shifts": {"crop": 0},
    "no stage frozen": {"frozen_until": "none"},
    "BatchNorm's statistics kept": {"frozen_batch_norm": True},
    "rates that fall to 0.7 from stage to stage": {"layer_decay": 0.7},
}
PROBE = "the head begins as a linear probe"
NO_FLIP = "no mirrored images at test time"


def train(prepared: images.Prepared, recipe: Recipe, probe_first=False) -> dict:
    """Correct validation images, with and without mirrored ones; seconds of training.

    Keys correct, correct_without_flip, count and seconds.
    """
    train = images.random_subset(prepared.subset("train", SIZE), IMAGES)
    validation = prepared.subset("validation", SIZE)
    runtime.seed_everything(recipe.seed)
    model = models.build(**NETWORK)
    settings = NETWORK | {"data": prepared.checksum(SIZE), "images": IMAGES}
    history = training.fit(
        model,
        train,
        recipe=recipe,
        probe_first=probe_first,
        checkpoint=prepared.folder.parent / "training",
        settings=settings,
    )
    found = {"count": len(validation.rows)}
    for name, flip in {"correct": True, "correct_without_flip": False}.items():
        logits, labels = training.predict(model, validation, flip=flip)
        found[name] = int((logits.argmax(1) == labels).sum())
    return found | {"seconds": sum(record["seconds"] for record in history)}


def summary(runs: list[dict], key: str = "correct") -> dict:
    """Mean accuracy of the seeds, the interval of one of them, and that of each seed.

    The seeds share their images, which are not twice as many. Also: the seconds of one
    training.
    """
    each, count = [run[key] / run["count"] for run in runs], runs[0]["count"]
    mean = sum(each) / len(each)
    interval = evaluation.wilson_interval(round(mean * count), count)
    seconds = sum(run["seconds"] for run in runs) / len(runs)
    return {"accuracy": mean, "ci95": interval, "each": each, "seconds": seconds}


def measure(prepared: images.Prepared) -> dict[str, dict]:
    """{variant: its summary}."""
    runs = {}
    for name, changed in VARIANTS.items():
        recipes = [replace(RECIPE, **changed, seed=seed) for seed in SEEDS]
        runs[name] = [train(prepared, recipe) for recipe in recipes]
    recipes = [replace(RECIPE, seed=seed) for seed in SEEDS]
    runs[PROBE] = [train(prepared, recipe, probe_first=True) for recipe in recipes]
    results = {name: summary(each) for name, each in runs.items()}
    return results | {NO_FLIP: summary(runs[WHOLE], "correct_without_flip")}


def main() -> None:
    source = measuring.real_catalogue("fashion-product-images-small.zip")
    work = runtime.build_root() / "experiments" / "ablation"
    prepared = images.load(prepare.prepare(source, work / "prepared", sizes=[SIZE]))
    results = measure(prepared)
    rows = []
    for name, found in results.items():
        each = [100 * accuracy for accuracy in found["each"]]
        rows.append(measuring.row(name, each, "%", digits=2))
    budget = {"size": SIZE, "pictures": IMAGES, "seeds": SEEDS}
    budget |= NETWORK | asdict(RECIPE)
    measuring.save("ablation", rows, {}, budget=budget, variants=results)


if __name__ == "__main__":
    main()
