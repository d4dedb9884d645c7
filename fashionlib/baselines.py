"""Simple answers to the same question, and ready-made features: what a trained network has to beat.

answers = baselines.regression(baselines.colour_histogram, train, test)      # logits (M, 6), seconds
found = baselines.frozen("vgg16", train, test, weights="imagenet")           # a linear probe on frozen features
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from fashionlib import artifacts, models
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.images import NEAR_WHITE, ImageSet

BLOCK = 1024  # pictures that are read at a time
VERSION = 2  # of the cached features: raise it when they would differ


def colour_histogram(pictures: np.ndarray) -> np.ndarray:
    """Share of the pixels in each of 4x4x4 colours: uint8 (N, H, W, 3) to float32 (N, 64). Taught in: chapter 2b."""
    places = (pictures >> 6) @ np.array(
        [16, 4, 1], np.uint8
    )  # (N, H, W): two bits of each channel
    counts = np.stack([np.bincount(place.ravel(), minlength=64) for place in places])
    return (counts / places[0].size).astype(np.float32)


def silhouette(pictures: np.ndarray) -> np.ndarray:
    """Share of pixels that are not near-white in each of 16x16 cells: uint8 (N, H, W, 3) to float32 (N, 256).

    Taught in: chapter 2b.
    """
    inside = torch.from_numpy(pictures.min(3) < NEAR_WHITE).float()
    return (
        torch.nn.functional.adaptive_avg_pool2d(inside[:, None], 16).flatten(1).numpy()
    )


def majority(train: ImageSet, test: ImageSet) -> torch.Tensor:
    """Logits (M, 6) that always name the largest class of the training part. Taught in: chapter 2b."""
    shares = np.bincount(train.labels, minlength=len(CLASS_NAMES)) / len(train.labels)
    return (
        torch.from_numpy(shares)
        .float()
        .clamp(min=1e-6)
        .log()
        .expand(len(test.labels), -1)
    )


def regression(
    describe: Callable, train: ImageSet, test: ImageSet
) -> tuple[torch.Tensor, float]:
    """Logits (M, 6) of a logistic regression on what `describe` says of the pictures, and the seconds that it took.

    Taught in: chapter 2b.
    """
    started = time.perf_counter()
    weight, bias = models.linear_probe(
        _described(describe, train), torch.from_numpy(train.labels)
    )
    logits = _described(describe, test) @ weight.T + bias
    return logits, time.perf_counter() - started


def _described(describe: Callable, data: ImageSet) -> torch.Tensor:
    blocks = (
        data.rows[start : start + BLOCK] for start in range(0, len(data.rows), BLOCK)
    )
    return torch.from_numpy(
        np.concatenate([describe(data.images[rows]) for rows in blocks])
    )


def frozen(
    architecture: str,
    train: ImageSet,
    test: ImageSet,
    *,
    weights: str = "none",
    cache: Path | None = None,
    settings: dict | None = None,
    **options,
) -> dict:
    """A torchvision network as it comes, and a linear probe on its features; one forward pass a picture.

    Returns `logits` (M, 6), `images_per_second` of the forward pass, `parameters` and `features`. Pictures that are
    too small for a network are enlarged for it. cache: a file that keeps the features; settings: what names the
    pictures and random weights there. options: those of `models.features`. Taught in: chapter 2b.
    """
    key = {
        "version": VERSION,
        "architecture": architecture,
        "weights": weights,
        **(settings or {}),
    }
    key |= {name: str(value) for name, value in options.items()}
    found = artifacts.load_checkpoint(cache, settings=key) if cache else None
    if found is None:
        network = models.build(architecture, weights=weights)
        found = _features(network, _smallest(architecture), train, test, options)
        if cache:
            artifacts.save_checkpoint(cache, found, settings=key)
    weight, bias = models.linear_probe(found["train"], torch.from_numpy(train.labels))
    facts = {name: found[name] for name in ("images_per_second", "parameters")}
    return {
        "logits": found["test"] @ weight.T + bias,
        "features": weight.shape[1],
        **facts,
    }


def _smallest(architecture: str) -> int:
    """The side below which a network has no pixel left at its end, as torchvision says of its weights; 1 if unknown."""
    known = architecture in torchvision.models.list_models(module=torchvision.models)
    weights = torchvision.models.get_model_weights(architecture) if known else ()
    return max((max(each.meta.get("min_size", (1, 1))) for each in weights), default=1)


def _features(
    network: nn.Module, side: int, train: ImageSet, test: ImageSet, options: dict
) -> dict:
    """Features of both parts, images/s, and the number of parameters; pictures below `side` are enlarged to it."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    shape = train.images.shape[1:3]
    if min(shape) < side:
        enlarge = nn.Upsample([max(side, length) for length in shape], mode="bilinear")
        network = nn.Sequential(enlarge, network)
    started = time.perf_counter()
    seen, unseen = (models.features(network, data, **options) for data in (train, test))
    rate = (len(train.rows) + len(test.rows)) / (time.perf_counter() - started)
    return {
        "train": seen,
        "test": unseen,
        "images_per_second": rate,
        "parameters": parameters,
    }


def every_class(data: ImageSet, count: int, seed: int = 0) -> ImageSet:
    """About `count` pictures, as many of each class where it has them: a part that a slow comparison can afford.

    Taught in: chapter 2b.
    """
    order = np.random.default_rng(seed).permutation(len(data.rows))
    share = math.ceil(count / len(CLASS_NAMES))
    chosen = np.concatenate(
        [
            order[data.labels[order] == label][:share]
            for label in range(len(CLASS_NAMES))
        ]
    )
    return data._replace(rows=data.rows[chosen], labels=data.labels[chosen])


def share_of_labels(data: ImageSet, share: float, seed: int = 0) -> ImageSet:
    """This share of each class, drawn at random, at least one picture: larger shares hold the smaller ones of a seed.

    Taught in: chapter 8.
    """
    chance = np.random.default_rng(seed)
    drawn = [
        chance.permutation(np.flatnonzero(data.labels == label))
        for label in range(len(CLASS_NAMES))
    ]
    keep = np.sort(
        np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in drawn])
    )
    return data._replace(rows=data.rows[keep], labels=data.labels[keep])
