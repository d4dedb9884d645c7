"""What the first weights are worth.

    python benchmarks/experiments/transfer.py    # two hours on one core of an AMD EPYC

ResNet18 on the real 60x80 catalogue, shrunk to 48x64, from three starts: random
weights, ImageNet's where they can be had, and weights trained in this very catalogue on
a label that the task does not use, `articleType`, over all genders. Each is given 1 %,
10 % and 100 % of the six-class labels, as a linear probe and fully fine-tuned, with
three seeds; the rate of fine-tuning is chosen for each start on the validation set.
Products of the test set and their twins are in no training, pre-training included:
groups never cross the split. Stopped, it goes on where it was.

Measured: targeted weights gain 6.3 points with 304 labels and 2.5 with 3,034; with all
30,343 the 1.1 are undecided.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring

from fashionlib import artifacts, evaluation, images, models, runtime, training
from fashionlib.data import prepare

SIZE, SEEDS = (64, 48), (0, 1, 2)
CLASSES = range(6)  # not -1, the other genders
# fraction of the labels: passes over them; the few are seen more often
EPOCHS = {0.01: 40, 0.1: 12, 1.0: 4}
RATES = (2e-3, 5e-4)
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
    model = models.build("resnet18", classes=kinds)
    settings = {"data": prepared.checksum(SIZE), "kinds": kinds}
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
        models.build("resnet18", weights="imagenet")
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


def correct(model: nn.Module, prepared: images.Prepared, name: str) -> np.ndarray:
    """Which images of a set are answered correctly, bool (M,)."""
    data = prepared.subset(name, SIZE, CLASSES)
    logits, labels = training.predict(model, data)
    return (logits.argmax(1) == labels).numpy()


def fine_tuned(
    prepared: images.Prepared, start: Start, fraction: float, seed: int, rate: float
) -> nn.Module:
    """The whole network trained from this start, with this fraction of the labels."""
    data = labeled(prepared, fraction, seed)
    runtime.seed_everything(seed)
    model = models.build("resnet18", weights=start.weights[seed])
    recipe = replace(RECIPE, epochs=EPOCHS[fraction], learning_rate=rate, seed=seed)
    settings = {"start": start.name, "pretraining_epochs": RECIPE.epochs}
    settings |= {"data": prepared.checksum(SIZE), "images": len(data.rows)}
    checkpoint = prepared.folder.parent / f"{start.name}-{fraction:g}"
    training.fit(model, data, recipe=recipe, checkpoint=checkpoint, settings=settings)
    return model


def probed(
    prepared: images.Prepared, start: Start, fraction: float, seed: int
) -> nn.Module:
    """The network as it starts, with the head that fits the labels best."""
    runtime.seed_everything(seed)
    model = models.build("resnet18", weights=start.weights[seed])
    models.set_head_to_probe(model, labeled(prepared, fraction, seed))
    return model


def try_rates(prepared: images.Prepared, start: Start) -> dict[float, float]:
    """Validation accuracy with a tenth of the labels, by the rate of fine-tuning."""
    tried = {}
    for rate in RATES:
        model = fine_tuned(prepared, start, 0.1, SEEDS[0], rate)
        tried[rate] = float(correct(model, prepared, "validation").mean())
    return tried


def compare(prepared: images.Prepared, starts: list[Start], rates: dict) -> dict:
    """{(start, way, fraction): for each seed which test images are correct}."""
    runs = defaultdict(list)
    for seed in SEEDS:
        for start in starts:
            rate = max(rates[start.name], key=rates[start.name].get)
            for fraction in EPOCHS:
                model = fine_tuned(prepared, start, fraction, seed, rate)
                found = correct(model, prepared, "test")
                runs[start.name, "fine-tuning", fraction].append(found)
                model = probed(prepared, start, fraction, seed)
                found = correct(model, prepared, "test")
                runs[start.name, "probe", fraction].append(found)
    return runs


def summary(runs: list[np.ndarray], scratch: list[np.ndarray]) -> dict:
    """Mean accuracy and that of each seed, and the gain over scratch.

    The gain's first interval is over the seeds: it contains the luck of the first
    weights and of the chosen labels. The second is over the products of the test set.
    """
    each, others = np.mean(runs, axis=1), np.mean(scratch, axis=1)  # (seeds,)
    accuracy = evaluation.mean_interval(each)
    of_products = np.mean(runs, axis=0) - np.mean(scratch, axis=0)
    return {
        "accuracy": accuracy.value,
        "each": each,
        "seeds_ci95": accuracy.ci95,
        "gain": evaluation.mean_interval(each - others),  # and gain_ci95
        "gain_products_ci95": evaluation.mean_interval(of_products).ci95,
    }


# --- all of it ------------------------------------------------------------------------


def main() -> None:
    source = measuring.real_catalogue("fashion-product-images-small.zip")
    work = runtime.build_root() / "experiments" / "transfer"
    folder = prepare.prepare(source, work / "prepared", sizes=[SIZE], all_genders=True)
    prepared = images.load(folder)
    starts, pretraining, missing = find_starts(prepared, work)
    rates = {start.name: try_rates(prepared, start) for start in starts}
    runs = compare(prepared, starts, rates)
    results, rows = {}, []
    for (name, way, fraction), found in runs.items():
        about = summary(found, runs["scratch", way, fraction])
        ways = results.setdefault(name, {"probe": {}, "fine-tuning": {}})
        ways[way][f"{fraction:g}"] = about
        label = f"{name}, {way}, {fraction:.0%} of the labels"
        rows.append(measuring.row(label, (100 * about["each"]).tolist(), "%", digits=2))
    counts = {f"{each:g}": len(labeled(prepared, each, 0).rows) for each in EPOCHS}
    budget = asdict(RECIPE) | {
        "size": SIZE,
        "seeds": SEEDS,
        "epochs": {f"{fraction:g}": epochs for fraction, epochs in EPOCHS.items()},
        "pretraining_epochs": RECIPE.epochs,
        "test_pictures": len(found[0]),
        "threads": torch.get_num_threads(),
        "labels": counts,
    }
    more = {"pretraining": pretraining, "rates": rates, "not_measured": missing}
    measuring.save("transfer", rows, {}, budget=budget, starts=results, **more)


if __name__ == "__main__":
    main()
