"""What the way of splitting does to the accuracy: python benchmarks/experiments/splits.py (20 minutes on 2 cores).

One network, one recipe, three splits of the real 60x80 catalogue: row by row (naive), duplicate groups together (ours),
and products of one name together, too. Reduced budget: pictures of 30x40, 6 epochs. Every network is also scored apart
on the test pictures that have a twin, or a namesake, in its training part. Stopped, it goes on where it was.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring
from conftest import real_data_folder

from fashionlib import catalogue, evaluation, images, models, runtime
from fashionlib.data import duplicates, prepare

SIZE = (40, 30)
RECIPE = models.Recipe(
    epochs=6,
    batch_size=128,
    learning_rate=3e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
    flip=True,
    crop=2,
)


def splits(index: pd.DataFrame) -> dict[str, pd.Series]:
    """Part of each product under each rule."""
    pairs = [
        duplicates.equal_pairs(index[column])
        for column in ("near_group", "productDisplayName")
    ]
    by_name = duplicates.groups(index["id"], np.concatenate(pairs))
    rules = {
        "naive": index["id"],
        "grouped": index["near_group"],
        "name-grouped": by_name,
    }
    return {
        rule: catalogue.split(index["label"], group, seed=0)
        for rule, group in rules.items()
    }


def share(hits: np.ndarray) -> dict:
    """Accuracy, its 95 % interval, and the number of pictures."""
    if not len(hits):
        return {"images": 0, "accuracy": None, "ci95": None}
    interval = evaluation.accuracy_interval(int(hits.sum()), len(hits))
    return {"images": len(hits), "accuracy": float(hits.mean()), "ci95": interval}


def measure(prepared: images.Prepared, rule: str, parts: pd.Series) -> dict:
    """Train under one split; accuracy on its test part, with and without a relative in training."""
    index, array = prepared.index, prepared.array(SIZE)
    rows = {part: np.flatnonzero(parts == part) for part in catalogue.SPLITS}
    labels = index["label"].to_numpy("int64")
    sets = {
        part: images.ImageSet(array, chosen, labels[chosen])
        for part, chosen in rows.items()
    }
    runtime.seed_everything(0)  # the same first weights under every rule
    model = models.build("resnet10", stem="small")
    checkpoint = prepared.folder.parent / f"{rule}.safetensors"
    settings = {"split": rule, "data": prepared.checksum(SIZE)}
    models.fit(
        model,
        sets["train"],
        sets["validation"],
        recipe=RECIPE,
        checkpoint=checkpoint,
        settings=settings,
    )
    logits, truth = models.predict(model, sets["test"], flip=True)
    hits = (logits.argmax(1) == truth).numpy()
    result = {"all": share(hits)}
    for relative, column in (
        ("near twin", "near_group"),
        ("namesake", "productDisplayName"),
    ):
        related = (
            index[column]
            .iloc[rows["test"]]
            .isin(index[column].iloc[rows["train"]])
            .to_numpy()
        )
        result |= {
            f"with {relative} in training": share(hits[related]),
            f"without {relative}": share(hits[~related]),
        }
    return result


def main() -> None:
    if not (folder := real_data_folder()):
        sys.exit(
            "splits: the real catalogue is needed; FASHION_REAL_DATA must name the folder with its zips"
        )
    work = runtime.build_root() / "experiments" / "splits"
    source = folder / "fashion-product-images-small.zip"
    prepared = images.load(prepare.prepare(source, work / "prepared", sizes=[SIZE]))
    rows, results = [], {}
    for rule, parts in splits(prepared.index).items():
        results[rule] = measure(prepared, rule, parts)
        for what, found in results[rule].items():
            if found["images"]:
                spread = [round(100 * bound, 2) for bound in found["ci95"]]
                value = round(100 * found["accuracy"], 2)
                rows.append(
                    {
                        "what": f"{rule}, {what}",
                        "value": value,
                        "unit": "%",
                        "spread": spread,
                    }
                )
    budget = {"size": SIZE, "architecture": "resnet10", **asdict(RECIPE)}
    measuring.save("splits", rows, {}, budget=budget, rules=results)


if __name__ == "__main__":
    main()
