"""Guided backpropagation side by side: python benchmarks/saliency.py (about 8 minutes on 2 cores).

Ours (BatchNorm folded into the convolutions) against Captum's, in batches and one picture at a time, and against the
limit: one forward and one backward pass to the pixels of the untouched network. Same network, pictures, batch and
targets, 224x224. Also: what bfloat16 costs in exactness, and what averaging costs on top of the maps.
"""

from __future__ import annotations

from functools import partial

import measuring
import numpy as np
import torch
import torchvision
from captum.attr import GuidedBackprop
from torch import nn

from fashionlib import cpu, images, runtime, saliency

SIDE, ROUNDS = 224, 5
BATCH = {"resnet18": 32, "resnet152": 16}
AVERAGED = (
    512  # pictures of the class averages: 16 batches, as the cost of each is the same
)
PACKAGES = ("captum",)


def pictures(count: int) -> torch.Tensor:
    """Normalised pictures, float32 (count, 3, 224, 224) in channels_last."""
    _, photographs = measuring.photographs(min(count, 40))
    arrays = [np.asarray(photograph.resize((SIDE, SIDE))) for photograph in photographs]
    return images.normalise(
        torch.from_numpy(np.stack([arrays[i % len(arrays)] for i in range(count)]))
    )


def limit(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """What any gradient by the pixels has to do."""
    leaf = pixels.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)[0]


def one_by_one(explain, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [
            explain(pixels[i : i + 1], target=targets[i : i + 1])
            for i in range(len(pixels))
        ]
    )


def compare(architecture: str) -> tuple[list[dict], dict[str, list[float]]]:
    """Maps/s of each, and the rows with what they differ by."""
    torch.manual_seed(0)
    model = (
        torchvision.models.get_model(architecture, num_classes=6)
        .eval()
        .requires_grad_(False)
    )
    plain = torchvision.models.get_model(
        architecture, num_classes=6
    ).eval()  # as Captum's users have it
    plain.load_state_dict(model.state_dict())
    model.to(memory_format=torch.channels_last)
    pixels = pictures(BATCH[architecture])
    batch, few = pixels.contiguous(), 4
    with torch.no_grad():
        targets = model(pixels).argmax(1)
    captum = GuidedBackprop(plain).attribute
    folded = cpu.folded(model)

    def in_bfloat16() -> torch.Tensor:
        with runtime.autocast(torch.device("cpu"), "bfloat16"):
            return saliency.guided_backprop(folded, pixels, targets)

    candidates = {
        "ours, float32": partial(saliency.guided_backprop, folded, pixels, targets),
        "ours, network as it is, float32": partial(
            saliency.guided_backprop, model, pixels, targets
        ),
        "ours, bfloat16": in_bfloat16,
        "limit: forward and backward, float32": partial(limit, model, pixels, targets),
        "Captum, batched": lambda: captum(
            batch.clone().requires_grad_(), target=targets
        ),
    }
    maps = {name: run().detach() for name, run in candidates.items()}  # warms up, too
    counted = {name: lambda run=run: len(run()) for name, run in candidates.items()}
    counted["Captum, one at a time"] = lambda: len(
        one_by_one(captum, batch[:few].clone().requires_grad_(), targets)
    )
    rates = measuring.in_turn(counted, ROUNDS)
    rows = [
        measuring.row(f"{architecture}: {name}", values, "maps/s")
        for name, values in rates.items()
    ]
    for name in ("ours, float32", "ours, bfloat16"):
        apart = (maps[name] - maps["Captum, batched"]).flatten(1).norm(dim=1) / maps[
            "Captum, batched"
        ].flatten(1).norm(dim=1)
        rows.append(
            measuring.row(
                f"{architecture}: {name}, difference to Captum",
                apart.tolist(),
                "of its norm",
                6,
            )
        )
    return rows, rates


def averages(pixels: torch.Tensor) -> tuple[list[dict], float]:
    """Images/s of the class averages and of the maps alone; their ratio."""
    model = cpu.folded(
        torchvision.models.resnet18(num_classes=6).to(memory_format=torch.channels_last)
    )
    batches = [(part, None) for part in pixels.split(BATCH["resnet18"])]

    def maps_alone() -> int:
        return sum(len(saliency.guided_backprop(model, part)) for part, _ in batches)

    def averaged() -> int:
        return int(saliency.class_averages(model, batches).count.sum())

    rates = measuring.in_turn({"maps alone": maps_alone, "class averages": averaged}, 3)
    rows = [
        measuring.row(f"resnet18, {len(pixels)} pictures: {name}", values)
        for name, values in rates.items()
    ]
    return rows, measuring.ratio(rates, "class averages", "maps alone")


def main() -> None:
    runtime.device("cpu")
    rows, ratios = [], {}
    for architecture in BATCH:
        found, rates = compare(architecture)
        rows += found
        ratios[f"guided_vs_captum_{architecture}"] = measuring.ratio(
            rates, "ours, float32", "Captum, batched"
        )
        name = "limit: forward and backward, float32"
        ratios[f"guided_limit_share_{architecture}"] = measuring.ratio(
            rates, "ours, float32", name
        )
        ratios[f"guided_bf16_vs_captum_{architecture}"] = measuring.ratio(
            rates, "ours, bfloat16", "Captum, batched"
        )
    found, ratios["class_averages_vs_maps"] = averages(pictures(AVERAGED))
    measuring.save("saliency", rows + found, ratios, packages=PACKAGES)


if __name__ == "__main__":
    main()
