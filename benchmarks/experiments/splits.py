"""What the way of splitting does to the accuracy.

    python benchmarks/experiments/splits.py    # 20 minutes on 2 cores

One network, one recipe, three splits of the real 60x80 catalogue: row by row (naive),
duplicate groups together (ours), and products of one name together, too. Reduced
budget: images of 30x40, 6 epochs. Every network is also scored apart on the test images
that have a near twin, or a namesake, in its training set. Stopped, it goes on where it
was.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring

from fashionlib import catalogue, evaluation, images, models, runtime, training
from fashionlib.data import duplicates, prepare

SIZE = (40, 30)
RECIPE = training.Recipe(
    epochs=6,
    batch_size=128,
    learning_rate=3e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
    flip=True,
    crop=2,
)
RELATIVES = {"near twin": "near_group", "namesake": "productDisplayName"}


def splits(index: pd.DataFrame) -> dict[str, pd.Series]:
    """The set of each product under each rule."""
    pairs = [duplicates.equal_pairs(index[column]) for column in RELATIVES.values()]
    groups = {
        "naive": index["id"],
        "grouped": index["near_group"],
        "name-grouped": duplicates.groups(index["id"], np.concatenate(pairs)),
    }
    found = {}
    for rule, group in groups.items():
        found[rule] = catalogue.split(index["label"], group, seed=0)
    return found


def accuracy(correct: np.ndarray) -> dict:
    """Number of images, accuracy and its interval, of bool (M,)."""
    if not len(correct):
        return {"images": 0, "accuracy": None, "ci95": None}
    value, interval, count = evaluation.accuracy(correct)
    return {"images": count, "accuracy": value, "ci95": interval}


def correct_in_test(
    prepared: images.Prepared, rule: str, rows: dict[str, np.ndarray]
) -> np.ndarray:
    """Train under one split: which test images are answered correctly, bool (M,)."""
    array, labels = prepared.array(SIZE), prepared.index["label"].to_numpy("int64")
    sets = {}
    for name, chosen in rows.items():
        sets[name] = images.ImageSet(array, chosen, labels[chosen])
    runtime.seed_everything(0)  # the same first weights under every rule
    model = models.build("resnet10", stem="small")
    training.fit(
        model,
        sets["train"],
        sets["validation"],
        recipe=RECIPE,
        checkpoint=prepared.folder.parent / "training",
        settings={"split": rule, "data": prepared.checksum(SIZE)},
    )
    logits, true = training.predict(model, sets["test"], flip=True)
    return (logits.argmax(1) == true).numpy()


def measure(prepared: images.Prepared, rule: str, split: pd.Series) -> dict:
    """Accuracy under one split, with and without a relative in training."""
    index = prepared.index
    rows = {name: np.flatnonzero(split == name) for name in catalogue.SPLITS}
    correct = correct_in_test(prepared, rule, rows)
    result = {"all": accuracy(correct)}
    for relative, column in RELATIVES.items():
        train, test = (index[column].iloc[rows[name]] for name in ("train", "test"))
        related = test.isin(train).to_numpy()
        result[f"with {relative} in training"] = accuracy(correct[related])
        result[f"without {relative}"] = accuracy(correct[~related])
    return result


def main() -> None:
    source = measuring.real_catalogue("fashion-product-images-small.zip")
    work = runtime.build_root() / "experiments" / "splits"
    prepared = images.load(prepare.prepare(source, work / "prepared", sizes=[SIZE]))
    rows, results = [], {}
    for rule, split in splits(prepared.index).items():
        results[rule] = measure(prepared, rule, split)
        for what, found in results[rule].items():
            if found["images"]:
                value = round(100 * found["accuracy"], 2)
                spread = [round(100 * bound, 2) for bound in found["ci95"]]
                row = {"what": f"{rule}, {what}", "value": value, "unit": "%"}
                rows.append(row | {"spread": spread})
    budget = {"size": SIZE, "architecture": "resnet10", **asdict(RECIPE)}
    measuring.save("splits", rows, {}, budget=budget, rules=results)


if __name__ == "__main__":
    main()
