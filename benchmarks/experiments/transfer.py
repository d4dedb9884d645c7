"""What the first weights are worth: python benchmarks/experiments/transfer.py (about two hours on one AMD EPYC core).

ResNet18 on the real 60x80 catalogue, shrunk to 48x64, from three starts: random weights, ImageNet's where they can be
had, and weights trained in this very catalogue on a label that the task does not use, `articleType`, over all genders.
Each is given 1 %, 10 % and 100 % of the six-class labels, as a linear probe and fully fine-tuned, with three seeds; the
rate of fine-tuning is chosen for each start on the validation part. Products of the test part and their twins are in no
training, pre-training included: groups never cross the split. Stopped, it goes on where it was.

Measured: targeted weights gain 6.3 points with 304 labels and 2.5 with 3,034; with all 30,343 the 1.1 are undecided.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring
from conftest import real_data_folder

from fashionlib import baselines, faithfulness, images, models, runtime
from fashionlib.data import prepare

SIZE, SEEDS = (64, 48), (0, 1, 2)
EPOCHS = {
    0.01: 40,
    0.1: 12,
    1.0: 4,
}  # share of the labels: passes over them; the few are seen more often
RATES = (2e-3, 5e-4)
RECIPE = models.Recipe(
    epochs=3,
    batch_size=128,
    learning_rate=2e-3,
    weight_decay=0.05,
    label_smoothing=0.1,
    flip=True,
    crop=4,
)


def article_types(
    prepared: images.Prepared,
) -> tuple[images.ImageSet, images.ImageSet, int]:
    """The training and the validation part of all genders with the kind of article as label; the number of kinds."""
    index, found = prepared.index, []
    kinds = sorted(index.loc[index["split"] == "train", "articleType"].unique())
    labels = (
        index["articleType"]
        .map({kind: i for i, kind in enumerate(kinds)})
        .fillna(-1)
        .to_numpy("int64")
    )
    for part in ("train", "validation"):
        rows = np.flatnonzero((index["split"] == part) & (labels >= 0))
        found.append(images.ImageSet(prepared.array(SIZE), rows, labels[rows]))
    return *found, len(kinds)


def pretrain(prepared: images.Prepared, seed: int, work: Path) -> tuple[Path, dict]:
    """Weights that tell the kinds of article apart, and how well they do."""
    train, validation, kinds = article_types(prepared)
    runtime.seed_everything(seed)
    model = models.build("resnet18", classes=kinds)
    path, recipe = work / f"kinds-{seed}.safetensors", replace(RECIPE, seed=seed)
    settings = {"data": prepared.checksum(SIZE), "kinds": kinds}
    history = models.fit(
        model, train, validation, recipe=recipe, checkpoint=path, settings=settings
    )
    found = {"pictures": len(train.rows), "kinds": kinds}
    found["validation_accuracy"] = history[-1]["validation_accuracy"]
    return path, found | {"seconds": sum(epoch["seconds"] for epoch in history)}


def labelled(prepared: images.Prepared, share: float, seed: int) -> images.ImageSet:
    return baselines.share_of_labels(
        prepared.subset("train", SIZE, range(6)), share, seed
    )


def hits(model: nn.Module, prepared: images.Prepared, part: str) -> np.ndarray:
    logits, labels = models.predict(model, prepared.subset(part, SIZE, range(6)))
    return (logits.argmax(1) == labels).numpy()


def fine_tuned(
    prepared: images.Prepared,
    start: tuple[str, str],
    share: float,
    seed: int,
    rate: float,
    work: Path,
) -> nn.Module:
    """The whole network trained from this start, (name, weights), with this share of the labels."""
    name, weights = start
    data = labelled(prepared, share, seed)
    runtime.seed_everything(seed)
    model = models.build("resnet18", weights=weights)
    recipe = replace(RECIPE, epochs=EPOCHS[share], learning_rate=rate, seed=seed)
    checkpoint = work / f"{name}-{share:g}-{seed}-{rate:g}.safetensors"
    settings = {"data": prepared.checksum(SIZE), "pictures": len(data.rows)}
    models.fit(model, data, recipe=recipe, checkpoint=checkpoint, settings=settings)
    return model


def probed(
    prepared: images.Prepared, weights: str, share: float, seed: int
) -> nn.Module:
    """The network as these weights make it, with the head that fits this share of the labels best."""
    runtime.seed_everything(seed)
    model = models.build("resnet18", weights=weights)
    models.probe(model, labelled(prepared, share, seed))
    return model


def choose_rate(
    prepared: images.Prepared, start: tuple[str, str], work: Path
) -> dict[float, float]:
    """Validation accuracy with a tenth of the labels, by the rate of fine-tuning."""
    models = {
        rate: fine_tuned(prepared, start, 0.1, SEEDS[0], rate, work) for rate in RATES
    }
    return {
        rate: float(hits(model, prepared, "validation").mean())
        for rate, model in models.items()
    }


def summary(runs: list[np.ndarray], scratch: list[np.ndarray]) -> dict:
    """Mean accuracy and that of each seed; the gain over scratch, with intervals over the seeds and over the products.

    The first contains the luck of the first weights and of the chosen labels, the second that of the test part.
    """
    each, others = (
        np.array([run.mean() for run in of_start]) for of_start in (runs, scratch)
    )
    gain, over_seeds, _ = faithfulness.mean_interval(each - others)
    _, over_products, _ = faithfulness.mean_interval(
        np.mean(runs, axis=0) - np.mean(scratch, axis=0)
    )
    accuracy, interval, _ = faithfulness.mean_interval(each)
    found = {
        "accuracy": accuracy,
        "each": each.tolist(),
        "seeds_ci95": interval,
        "gain": gain,
    }
    return found | {"gain_ci95": over_seeds, "gain_products_ci95": over_products}


def starts(prepared: images.Prepared, work: Path) -> tuple[dict, list, dict]:
    """Weights by name and seed, what the pre-training has reached, and why a start is missing."""
    weights, missing, pretraining = {"scratch": dict.fromkeys(SEEDS, "none")}, {}, []
    try:
        models.build("resnet18", weights="imagenet")
        weights["imagenet"] = dict.fromkeys(SEEDS, "imagenet")
    except runtime.InputError as error:
        missing["imagenet"] = str(error).split(". Put")[0]
        print(f"imagenet is not measured: {error}")
    weights["catalogue"] = {}
    for seed in SEEDS:
        path, found = pretrain(prepared, seed, work)
        weights["catalogue"][seed] = str(path)
        pretraining.append(found)
    return weights, pretraining, missing


def main() -> None:
    if not (folder := real_data_folder()):
        sys.exit(
            "transfer: the real catalogue is needed; FASHION_REAL_DATA must name the folder with its zips"
        )
    work = runtime.build_root() / "experiments" / "transfer"
    source = folder / "fashion-product-images-small.zip"
    prepared = images.load(
        prepare.prepare(source, work / "prepared", sizes=[SIZE], all_genders=True)
    )
    weights, pretraining, missing = starts(prepared, work)
    tried = {
        name: choose_rate(prepared, (name, of_seed[SEEDS[0]]), work)
        for name, of_seed in weights.items()
    }
    runs = defaultdict(list)
    for seed in SEEDS:
        for name, of_seed in weights.items():
            rate = max(tried[name], key=tried[name].get)
            for share in EPOCHS:
                model = fine_tuned(
                    prepared, (name, of_seed[seed]), share, seed, rate, work
                )
                runs[name, "fine-tuning", share].append(hits(model, prepared, "test"))
                model = probed(prepared, of_seed[seed], share, seed)
                runs[name, "probe", share].append(hits(model, prepared, "test"))
    results, rows = {name: {"probe": {}, "fine-tuning": {}} for name in weights}, []
    for (name, way, share), found in runs.items():
        results[name][way][f"{share:g}"] = about = summary(
            found, runs["scratch", way, share]
        )
        each = [100 * accuracy for accuracy in about["each"]]
        rows.append(
            measuring.row(
                f"{name}, {way}, {share:.0%} of the labels", each, "%", digits=2
            )
        )
    budget = asdict(RECIPE) | {
        "size": SIZE,
        "seeds": SEEDS,
        "epochs": {f"{share:g}": n for share, n in EPOCHS.items()},
    }
    budget |= {
        "pretraining_epochs": RECIPE.epochs,
        "test_pictures": len(found[0]),
        "threads": torch.get_num_threads(),
    }
    budget |= {
        "labels": {
            f"{share:g}": len(labelled(prepared, share, 0).rows) for share in EPOCHS
        }
    }
    more = {
        "starts": results,
        "pretraining": pretraining,
        "rates": tried,
        "not_measured": missing,
    }
    measuring.save("transfer", rows, {}, budget=budget, **more)


if __name__ == "__main__":
    main()
