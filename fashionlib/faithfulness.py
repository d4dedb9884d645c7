"""Whether to believe a map: does it depend on the network, is it right, and how sure are we?

    with faithfulness.randomised(model) as network: ...                          # what has not been learned
    scores = faithfulness.similarity(maps, others, foreground)                   # one per picture
    curves = faithfulness.deletion_insertion(model, pixels, targets, maps)
    mean, interval, count = faithfulness.mean_interval(scores)

Maps and masks are (B, H, W). No figure stands alone: each has a control, a floor or an interval beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from fashionlib import images, saliency
from fashionlib.runtime import InputError


def similarity(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Spearman's rank correlation of two maps (B, H, W) on the pixels of `mask` (bool), one per picture: float64 (B,).

    NaN where a map is constant on the mask. The background is left out because any two maps agree that it is empty.
    Taught in: chapter 3.
    """
    scores = []
    for first, second, inside in zip(a, b, mask, strict=True):
        x, y = _centred_ranks(first[inside]), _centred_ranks(second[inside])
        scores.append((x @ y) / (x.norm() * y.norm()))
    return torch.stack(scores).cpu()


def structural_similarity(
    a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """SSIM (Wang et al. 2004) of two maps (B, H, W), each scaled to its own 99th percentile: float32 (B,).

    The mean over the pixels of `mask` (bool), one value per picture; NaN where the mask is empty. By torchmetrics.
    Taught in: chapter 3.
    """
    from torchmetrics.functional.image import (
        structural_similarity_index_measure as ssim,
    )

    scaled = []
    for maps in (a, b):
        top = (
            maps.float()
            .flatten(1)
            .quantile(0.99, dim=1)
            .clamp_min(torch.finfo(torch.float32).tiny)
        )
        scaled.append((maps.float() / top[:, None, None]).clamp(0, 1)[:, None])
    _, whole = ssim(*scaled, data_range=1.0, reduction="none", return_full_image=True)
    return (whole[:, 0] * mask).sum((1, 2)).cpu() / mask.sum((1, 2)).cpu()


def _centred_ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks of values (N,) minus their mean, equal values sharing the mean of theirs: float64 (N,)."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    inverse, counts = inverse.cpu(), counts.cpu()  # Apple's MPS has no float64
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[
        inverse
    ]  # 1, 2, ..., N without ties
    return ranks - (len(values) + 1) / 2


def parts(model: nn.Module) -> list[str]:
    """Names of the network's parts that have parameters, from the head down: fc, layer4, ..., conv1 of a ResNet.

    Taught in: chapter 3.
    """
    return [
        name
        for name, part in model.named_children()
        if any(True for _ in part.parameters())
    ][::-1]


@contextlib.contextmanager
def randomised(
    model: nn.Module, *, seed: int = 0, last: int | None = None
) -> Iterator[nn.Module]:
    """The model with new random weights within this context, then as before.

    last: only so many of its `parts`, counted from the head; None takes all. Deeper draws repeat those of fewer parts:
    1, 2, 3, ... is the cascade of Adebayo et al. 2018, whose sanity check says that a map which explains the network
    must change with its weights. Convolutions as torchvision's ResNets begin (He et al. 2015), other layers as torch
    does; running statistics start afresh. Taught in: chapter 3.
    """
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    devices = {value.device for value in kept.values() if value.is_cuda}
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            for name in parts(model)[:last]:
                for module in model.get_submodule(name).modules():
                    _reset(module)
        yield model
    finally:
        model.load_state_dict(kept)


def _reset(module: nn.Module) -> None:
    """Draw the parameters that belong to `module` itself anew."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@torch.no_grad()
def deletion_insertion(
    model: nn.Module,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    ranking_maps: torch.Tensor,
    *,
    steps: int = 10,
    fill: str = "white",
    batch_size: int = 64,
) -> dict[str, torch.Tensor]:
    """Probability of the target while pixels are removed, or put in, in the order of a map (Petsiuk et al. 2018).

    ranking_maps: (B, H, W), the largest value first. fill: what a removed pixel becomes, `white` (the background of
    this catalogue) or `blurred` (the picture through a Gaussian of 5 pixels). Returns fractions (S + 1,), deletion and
    insertion (B, S + 1), and the areas under them, deletion_auc (small is faithful) and insertion_auc (large is), (B,).
    Raises InputError for another `fill`. Taught in: chapter 3.
    """
    filled = _filled(pixels, fill)
    count = pixels[0, 0].numel()
    order = ranking_maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1).view(len(pixels), 1, *pixels.shape[2:])  # 0 goes first
    fractions = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    curves = []
    with saliency.evaluating(model):
        for fraction in fractions:
            chosen = rank < round(float(fraction) * count)
            both = torch.cat(
                [
                    torch.where(chosen, filled, pixels),
                    torch.where(chosen, pixels, filled),
                ]
            )
            logits = torch.cat([model(part) for part in both.split(batch_size)])
            probabilities = (
                logits.float()
                .softmax(1)
                .gather(1, torch.cat([targets, targets])[:, None])
            )
            curves.append(probabilities.view(2, -1))
    deletion, insertion = torch.stack(curves, dim=2).cpu().double()  # (B, S + 1) each
    curves = {"deletion": deletion, "insertion": insertion}
    areas = {
        f"{name}_auc": torch.trapezoid(curve, fractions)
        for name, curve in curves.items()
    }
    return {"fractions": fractions, **curves, **areas}


def _filled(pixels: torch.Tensor, fill: str) -> torch.Tensor:
    if fill == "white":
        return images.white(pixels)
    if fill == "blurred":
        return images.blurred(pixels, 5.0)
    raise InputError(f"fill must be white or blurred; found {fill!r}.")


def mass_share(
    maps: torch.Tensor, masks: torch.Tensor, value: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the foreground's saliency that lies where a mask has `value`, and its share of the foreground's area.

    maps: magnitudes (B, H, W); masks: uint8 (B, H, W), 0 is the background. Returns two float64 (B,); NaN without
    foreground. The second is what the first has to be compared with: a part of a third of the area holds a third of the
    saliency by chance. Taught in: chapter 4.
    """
    masks, mass = masks.cpu(), maps.cpu().double()
    part, whole = (masks == value).double(), (masks > 0).double()
    return (mass * part).sum((1, 2)) / (mass * whole).sum((1, 2)), part.sum(
        (1, 2)
    ) / whole.sum((1, 2))


def density_ratio(
    mass: np.ndarray, area: np.ndarray, *, seed: int = 0
) -> tuple[float, list[float]]:
    """How many times as dense saliency is in a part as in the rest of the foreground, with a 95 % interval.

    mass, area: shares of the part, one per picture, as `mass_share` gives them; NaN is left out. The ratio of the
    mean shares' odds; the interval is a percentile bootstrap over 2,000 draws of pictures (Efron 1979).
    Raises InputError for fewer than two pictures. Taught in: chapter 4.
    """
    shares = np.stack([np.asarray(mass, float), np.asarray(area, float)])  # (2, B)
    shares = shares[
        :, ~np.isnan(shares).any(0)
    ]  # a map without any mass, or a picture without foreground
    if shares.shape[1] < 2:
        raise InputError(
            f"a ratio with an interval needs two pictures or more; found {shares.shape[1]}."
        )
    drawn = np.random.default_rng(seed).integers(
        shares.shape[1], size=(2000, shares.shape[1])
    )
    means = np.concatenate(
        [shares.mean(1)[:, None], shares[:, drawn].mean(2)], axis=1
    )  # (2, 1 + 2000)
    odds = means / (1 - means)
    ratios = odds[0] / odds[1]
    return float(ratios[0]), np.percentile(ratios[1:], [2.5, 97.5]).tolist()


def mean_interval(values: torch.Tensor | np.ndarray) -> tuple[float, list[float], int]:
    """Mean, its 95 % interval by Student's t (1908), and the number of values that are not NaN.

    Raises InputError for fewer than two values. Taught in: chapter 3.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        raise InputError(
            f"an interval needs at least two pictures, found {len(values)}: take more pictures."
        )
    reach = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return (
        float(values.mean()),
        [float(values.mean() - reach), float(values.mean() + reach)],
        len(values),
    )


def interval_text(result: tuple, spec: str = ".2f") -> str:
    """`0.21 (0.15 to 0.27)` for what `mean_interval` or `density_ratio` returned, in the format `spec`.

    Taught in: chapter 3.
    """
    mean, (low, high), *_ = result
    return f"{mean:{spec}} ({low:{spec}} to {high:{spec}})"


def side(interval: list[float], reference: float = 0.0) -> str:
    """Where a 95 % interval lies: `above` or `below` the reference, or `undecided` where it holds the reference.

    Taught in: chapter 3.
    """
    low, high = interval
    return "above" if low > reference else "below" if high < reference else "undecided"
