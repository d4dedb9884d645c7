"""What the first weights are worth: python benchmarks/experiments/transfer.py (about 90 minutes on 2 cores).

ResNet18 on the real 60x80 catalogue, from three starts: random weights, ImageNet's where they can be had, and weights
trained in this very catalogue on a label that the task does not use, `articleType`, over all genders. Each is given
1 %, 10 % and 100 % of the six-class labels, as a linear probe and fully fine-tuned, with three seeds. Products of the
test part and their twins are in no training, pre-training included: groups never cross the split. Stopped, it goes on
where it was.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring
from conftest import real_data_folder

from fashionlib import classifier, evaluation, faithfulness, images, preparation, runtime

SIZE, SEEDS = (80, 60), (0, 1, 2)
EPOCHS = {0.01: 60, 0.1: 20, 1.0: 6}  # share of the labels: passes over them; the few are seen more often
RECIPE = classifier.Recipe(
    epochs=5, batch_size=128, learning_rate=2e-3, weight_decay=0.05, label_smoothing=0.1, flip=True, crop=4
)
STARTS = ("scratch", "imagenet", "catalogue")


def article_types(prepared: images.Prepared) -> tuple[images.ImageSet, images.ImageSet, int]:
    """The training and the validation part of all genders with the kind of article as label; the number of kinds."""
    index, found = prepared.index, []
    kinds = sorted(index.loc[index["split"] == "train", "articleType"].unique())
    labels = index["articleType"].map({kind: i for i, kind in enumerate(kinds)}).fillna(-1).to_numpy("int64")
    for part in ("train", "validation"):
        rows = np.flatnonzero((index["split"] == part) & (labels >= 0))
        found.append(images.ImageSet(prepared.array(SIZE), rows, labels[rows]))
    return *found, len(kinds)


def pretrain(prepared: images.Prepared, seed: int, work: Path) -> tuple[Path, dict]:
    """Weights that tell the kinds of article apart, and how well they do."""
    train, validation, kinds = article_types(prepared)
    runtime.seed_everything(seed)
    model = classifier.build("resnet18", classes=kinds)
    path, recipe = work / f"kinds-{seed}.safetensors", replace(RECIPE, seed=seed)
    settings = {"data": prepared.checksum(SIZE), "kinds": kinds}
    history = classifier.fit(model, train, validation, recipe=recipe, checkpoint=path, settings=settings)
    found = {"pictures": len(train.rows), "kinds": kinds}
    found["validation_accuracy"] = history[-1]["validation_accuracy"]
    return path, found | {"seconds": sum(epoch["seconds"] for epoch in history)}


def labelled(prepared: images.Prepared, share: float, seed: int) -> images.ImageSet:
    """This share of each class of the training part, drawn at random, one picture at the least."""
    whole, chance = prepared.subset("train", SIZE, range(6)), np.random.default_rng(seed)
    chosen = [np.flatnonzero(whole.labels == label) for label in range(6)]
    chosen = [chance.permutation(rows)[: max(1, round(share * len(rows)))] for rows in chosen]
    keep = np.sort(np.concatenate(chosen))
    return whole._replace(rows=whole.rows[keep], labels=whole.labels[keep])


def hits(model: nn.Module, data: images.ImageSet) -> np.ndarray:
    logits, labels = classifier.predict(model, data, flip=True)
    return (logits.argmax(1) == labels).numpy()


def train(prepared: images.Prepared, weights: str, name: str, share: float, seed: int, work: Path) -> dict:
    """Hits on the test part of a linear probe and of full fine-tuning from these weights."""
    data, test = labelled(prepared, share, seed), prepared.subset("test", SIZE, range(6))
    runtime.seed_everything(seed)
    model = classifier.build("resnet18", weights=weights)
    classifier.probe(model, data)
    found = {"probe": hits(model, test)}
    runtime.seed_everything(seed)
    model = classifier.build("resnet18", weights=weights)
    checkpoint, recipe = work / f"{name}-{share:g}-{seed}.safetensors", replace(RECIPE, epochs=EPOCHS[share], seed=seed)
    settings = {"data": prepared.checksum(SIZE), "pictures": len(data.rows)}
    classifier.fit(model, data, recipe=recipe, checkpoint=checkpoint, settings=settings)
    return found | {"fine-tuning": hits(model, test)}


def summary(runs: list[np.ndarray], scratch: list[np.ndarray]) -> dict:
    """Mean accuracy, of each seed, and the gain over scratch, seed by seed, with its 95 % interval."""
    each = [float(run.mean()) for run in runs]
    gains = [mine - float(other.mean()) for mine, other in zip(each, scratch, strict=True)]
    gain, interval, _ = faithfulness.mean_interval(np.array(gains))
    _, over_seeds, _ = faithfulness.mean_interval(np.array(each))
    accuracy = float(np.mean(each))
    found = {"accuracy": accuracy, "each": each, "seeds_ci95": over_seeds, "gain": gain, "gain_ci95": interval}
    return found | {"ci95": evaluation.accuracy_interval(round(accuracy * len(runs[0])), len(runs[0]))}


def main() -> None:
    if not (folder := real_data_folder()):
        sys.exit("transfer: the real catalogue is needed; FASHION_REAL_DATA must name the folder with its zips")
    work = runtime.build_root() / "experiments" / "transfer"
    source = folder / "fashion-product-images-small.zip"
    prepared = images.load(preparation.prepare(source, work / "prepared", sizes=[SIZE], all_genders=True))
    missing, pretraining, weights = {}, [], {name: {} for name in STARTS}
    for seed in SEEDS:
        weights["scratch"][seed] = "none"
        path, found = pretrain(prepared, seed, work)
        weights["catalogue"][seed] = str(path)
        pretraining.append(found)
    try:
        classifier.build("resnet18", weights="imagenet")
        weights["imagenet"] = dict.fromkeys(SEEDS, "imagenet")
    except runtime.InputError as error:
        missing["imagenet"] = str(error).split(". Put")[0]
        print(f"imagenet is not measured: {error}")
    results, rows, scratch = {}, [], {}
    for name, of_seeds in weights.items():
        for share in EPOCHS if of_seeds else ():
            runs = [train(prepared, of_seeds[seed], name, share, seed, work) for seed in SEEDS]
            for way in runs[0]:
                found = [run[way] for run in runs]
                scratch.setdefault((share, way), found)  # the first start
                results.setdefault(name, {}).setdefault(way, {})[f"{share:g}"] = summary(found, scratch[share, way])
                each = [100 * accuracy for accuracy in results[name][way][f"{share:g}"]["each"]]
                rows.append(measuring.row(f"{name}, {way}, {share:.0%} of the labels", each, "%", digits=2))
    budget = {"size": SIZE, "seeds": SEEDS, "epochs": {f"{share:g}": n for share, n in EPOCHS.items()}}
    budget |= {"labels": {f"{share:g}": len(labelled(prepared, share, 0).rows) for share in EPOCHS}, **asdict(RECIPE)}
    measuring.save("transfer", rows, {}, budget=budget, starts=results, pretraining=pretraining, not_measured=missing)


if __name__ == "__main__":
    main()
