"""Whether to believe a map: does it come from training, and what does it mark?

    scores = faithfulness.similarity(maps, others, foreground)        # one per image
    with faithfulness.randomize_weights(model) as network: ...        # nothing learned
    mass, area = faithfulness.mass_share(maps, masks, faithfulness.FACE)
    ratio = faithfulness.density_ratio(mass, area)                    # an Estimate

Maps are magnitudes, float (B, H, W); masks have the same shape, bool or uint8. No
figure stands alone: each has a control, a floor or an interval beside it.
"""

import contextlib
import copy
from collections.abc import Iterator

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from fashionlib.evaluation import Estimate, no_estimate
from fashionlib.models import stages

FACE, REST = 1, 3  # the values of the synthetic catalogue's masks; 0 is the background


# --- does it depend on what has been learned? -----------------------------------------


def similarity(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Spearman's rank correlation of two maps on the pixels of a mask, one per image.

    a, b: (B, H, W); mask: bool (B, H, W), usually the foreground, as any two maps agree
    that a background is empty. float64 (B,), NaN where a map is constant on the mask.
    Taught in: chapter 3
    """
    scores = torch.full((len(a),), torch.nan, dtype=torch.float64)
    for i, (first, second, inside) in enumerate(zip(a, b, mask, strict=True)):
        values = torch.stack([first[inside], second[inside]]).cpu()  # (2, pixels)
        if values.shape[1] > 1:
            ranks = torch.from_numpy(rankdata(values, axis=1))  # equal ones share one
            scores[i] = torch.corrcoef(ranks)[0, 1]
    return scores


@contextlib.contextmanager
def randomize_weights(model: nn.Module, *, seed=0, last: int | None = None) -> Iterator:
    """The model with new random weights within this context, then as before.

    last: only so many of its last `models.stages`; None takes all. More stages begin
    with the same numbers as fewer: 1, 2, 3, ... is the cascade of Adebayo et al. 2018
    (arXiv 1810.03292), whose sanity check says that a map which explains a network must
    change with its weights. Convolutions begin as in torchvision's ResNets (He et al.
    2015; those in groups as in timm), other layers as in torch, BatchNorm's running
    statistics afresh.
    Taught in: chapter 3
    """
    kept = copy.deepcopy(model.state_dict())  # with the versions of the layers
    devices = {value.device for value in kept.values() if value.is_cuda}
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            modules = {}  # in order: what a stage before has drawn, the next one leaves
            for name in list(reversed(stages(model)))[:last]:
                part = model.get_submodule(name)
                modules |= dict.fromkeys(part.modules() if name else [part])
            for module in modules:
                _randomize(module)
        yield model
    finally:
        model.load_state_dict(kept)


def _randomize(module: nn.Module) -> None:
    """Draw the parameters that belong to `module` itself anew."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        module.weight *= module.groups**0.5  # each output sees one group only


# --- how much of a map lies where? ----------------------------------------------------


def mass_share(maps: Tensor, masks: Tensor, value: int) -> tuple[Tensor, Tensor]:
    """Fraction of the foreground's saliency where a mask has `value`, and of its area.

    maps: magnitudes (B, H, W); masks: uint8 (B, H, W), 0 is the background. Returns two
    float64 (B,) on the CPU, NaN without foreground. Compare them: a part on a third of
    the area holds a third of the saliency by chance.
    Taught in: chapter 4
    """
    masks, mass = masks.cpu(), maps.cpu().double()
    part, whole = (masks == value).double(), (masks > 0).double()
    share = (mass * part).sum((1, 2)) / (mass * whole).sum((1, 2))
    return share, part.sum((1, 2)) / whole.sum((1, 2))


def density_ratio(mass: Tensor, area: Tensor, *, seed: int = 0) -> Estimate:
    """How many times as dense saliency is on a part as on the rest of the foreground.

    mass, area: the part's fractions (B,), as `mass_share` returns them. Images without
    the part, without a rest or without saliency are left out. The ratio is that of the
    mean fractions' odds, its interval a percentile bootstrap of 2,000 draws of images
    (Efron 1979). It is `evaluation.no_estimate` for fewer than two images, and where
    the interval is infinite, as too many images have all saliency on the part.
    Taught in: chapter 4
    """
    mass, area = torch.as_tensor(mass).double(), torch.as_tensor(area).double()
    there = (area > 0) & (area < 1) & mass.isfinite()
    fractions = torch.stack([mass, area])[:, there]  # (2, B)
    count = fractions.shape[1]
    if count < 2:
        return no_estimate(count)
    draws = np.random.default_rng(seed).integers(count, size=(2000, count))
    means = torch.cat([fractions.mean(1, True), fractions[:, draws].mean(2)], dim=1)
    odds = means / (1 - means)  # (2, 1 + 2000): of all images, then of each draw
    ratios = odds[0] / odds[1]
    low, high = ratios[1:].quantile(ratios.new_tensor([0.025, 0.975])).tolist()
    if not np.isfinite([low, high]).all():
        return no_estimate(count)
    return Estimate(float(ratios[0]), [low, high], count)
