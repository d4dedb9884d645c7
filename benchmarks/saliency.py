"""Guided backpropagation side by side.

    python benchmarks/saliency.py    # 8 minutes on 2 cores

Ours (BatchNorm fused into the convolutions) against Captum's, in batches and one image
at a time, and against the limit: one forward and one backward pass to the pixels of the
untouched network. Same network, images, batch and targets, 224x224. Also: the floating
point operations of that pass at our rate beside those of a large matrix product, what
bfloat16 costs in exactness, and what averaging costs on top of the maps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import measuring
import numpy as np
import torch
import torchvision
from captum.attr import GuidedBackprop
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fashionlib import cpu, images, runtime, saliency

SIDE, ROUNDS = 224, 5
BATCH = {"resnet18": 32, "resnet152": 16}
# of the class averages: 16 batches, as the cost of each is the same
AVERAGED = 512
FEW = 4  # images that Captum takes one at a time
OURS = ("ours, float32", "ours, bfloat16")
ARITHMETIC = "ours, float32, arithmetic"
LIMIT = "limit: forward and backward, float32"
CAPTUM = "Captum, batched"
MATRIX, MATRIX_SIDE = "limit: matrix product, float32", 4096


def normalized_images(count: int) -> Tensor:
    """Float32 (count, 3, 224, 224) in channels_last."""
    _, found = measuring.photographs(min(count, 40))
    arrays = [np.asarray(image.resize((SIDE, SIDE))) for image in found]
    chosen = [arrays[i % len(arrays)] for i in range(count)]
    return images.normalize(torch.from_numpy(np.stack(chosen)))


def limit(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """What any gradient by the pixels has to do."""
    leaf = pixels.clone().requires_grad_()
    score = model(leaf).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(score, leaf)[0]


def one_by_one(explain: Callable, pixels: Tensor, targets: Tensor) -> int:
    """Explain each image for itself; returns how many there are."""
    for pixel, target in zip(pixels.split(1), targets.split(1), strict=True):
        explain(pixel.clone().requires_grad_(), target=target)
    return len(pixels)


def matrix_product(matrix: Tensor) -> float:
    """Multiply (N, N) by itself; returns how many billions of operations that is."""
    torch.mm(matrix, matrix)
    return 2 * len(matrix) ** 3 / 1e9


def compare(architecture: str) -> tuple[list[dict], dict[str, list[float]]]:
    """Maps/s of each, and the rows with what they differ by."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(architecture, num_classes=6).eval()
    # as Captum's users have it: not in channels_last
    plain = torchvision.models.get_model(architecture, num_classes=6).eval()
    plain.load_state_dict(model.state_dict())
    model.requires_grad_(False).to(memory_format=torch.channels_last)
    pixels = normalized_images(BATCH[architecture])
    batch = pixels.contiguous()
    with torch.no_grad():
        targets = model(pixels).argmax(1)
    captum = GuidedBackprop(plain).attribute
    fused, guided = cpu.fuse_batchnorm(model), saliency.guided_backprop

    def in_bfloat16() -> Tensor:
        with runtime.autocast(torch.device("cpu"), "bfloat16"):
            return guided(fused, pixels, targets)

    candidates = {
        "ours, float32": partial(guided, fused, pixels, targets),
        "ours, network as it is, float32": partial(guided, model, pixels, targets),
        "ours, bfloat16": in_bfloat16,
        LIMIT: partial(limit, model, pixels, targets),
        CAPTUM: lambda: captum(batch.clone().requires_grad_(), target=targets),
    }
    maps = {name: run().detach() for name, run in candidates.items()}  # warms up, too
    counted = {name: lambda run=run: len(run()) for name, run in candidates.items()}
    few = partial(one_by_one, captum, batch[:FEW], targets[:FEW])
    product = partial(matrix_product, torch.ones(MATRIX_SIDE, MATRIX_SIDE))
    counted |= {"Captum, one at a time": few, MATRIX: product}
    rates = measuring.in_turn(counted, ROUNDS)
    rows = []
    for name, values in rates.items():
        unit = "GFLOP/s" if name == MATRIX else "maps/s"
        rows.append(measuring.row(f"{architecture}: {name}", values, unit))
    with FlopCounterMode(display=False) as counter:  # which refuses autograd.grad
        model(pixels.clone().requires_grad_()).sum().backward()
    work = counter.get_total_flops() / len(pixels) / 1e9  # of an image
    rates[ARITHMETIC] = [work * rate for rate in rates[OURS[0]]]
    name = f"{architecture}: {ARITHMETIC}"
    rows.append(measuring.row(name, rates[ARITHMETIC], "GFLOP/s"))
    norm = maps[CAPTUM].flatten(1).norm(dim=1)
    for name in OURS:
        apart = (maps[name] - maps[CAPTUM]).flatten(1).norm(dim=1) / norm
        label = f"{architecture}: {name}, difference to Captum"
        rows.append(measuring.row(label, apart.tolist(), "of its norm", 6))
    return rows, rates


def averages(pixels: Tensor) -> tuple[list[dict], float]:
    """Images/s of the class averages and of the maps alone; their ratio."""
    model = torchvision.models.resnet18(num_classes=6)
    model = cpu.fuse_batchnorm(model.to(memory_format=torch.channels_last))
    parts = pixels.split(BATCH["resnet18"])
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in parts])
    batches = [(part, None) for part in parts]
    targets = predicted.split(BATCH["resnet18"])

    def maps_alone() -> int:
        for part, wanted in zip(parts, targets, strict=True):
            saliency.guided_backprop(model, part, wanted)
        return len(pixels)

    def averaged() -> int:
        return int(saliency.class_averages(model, batches, predicted).count.sum())

    rates = measuring.in_turn({"maps alone": maps_alone, "class averages": averaged}, 3)
    rows = []
    for name, values in rates.items():
        rows.append(measuring.row(f"resnet18, {len(pixels)} images: {name}", values))
    return rows, measuring.ratio(rates, "class averages", "maps alone")


@cpu.keep_freed_memory(torch.device("cpu"))  # as in the training; for Captum, too
def main() -> None:
    rows, ratios = [], {}
    for architecture in BATCH:
        found, rates = compare(architecture)
        rows += found
        full, half = OURS
        against = {
            "guided_vs_captum": (full, CAPTUM),
            "guided_limit_share": (full, LIMIT),
            "guided_bf16_vs_captum": (half, CAPTUM),
            "guided_matrix_share": (ARITHMETIC, MATRIX),
        }
        for name, pair in against.items():
            ratios[f"{name}_{architecture}"] = measuring.ratio(rates, *pair)
    found, ratio = averages(normalized_images(AVERAGED))
    ratios["class_averages_vs_maps"] = ratio
    measuring.save("saliency", rows + found, ratios, packages=("captum",))


if __name__ == "__main__":
    main()
