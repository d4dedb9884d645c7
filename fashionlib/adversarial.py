"""The rules of the game between generator and discriminator: losses, a penalty, and what the discriminator gets to see.

    judged = adversarial.discriminator_loss(discriminator(real), discriminator(fake))
    seen = adversarial.augment(real, chance)                 # and the same of what was generated

Pictures are float (B, 3, H, W) in [-1, 1], logits (B,).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def discriminator_loss(
    real_logits: torch.Tensor, fake_logits: torch.Tensor
) -> torch.Tensor:
    """-log D(x) - log(1 - D(G(z))), the mean over the batch (Goodfellow et al. 2014). Taught in: chapter 5."""
    return _cross_entropy(real_logits, 1.0) + _cross_entropy(fake_logits, 0.0)


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)), the non-saturating loss (Goodfellow et al. 2014). Taught in: chapter 5."""
    return _cross_entropy(fake_logits, 1.0)


def _cross_entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def hinge_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """max(0, 1 - a) of real and max(0, 1 + a) of fake logits a: nothing is won beyond 1 (Lim and Ye 2017).

    The generator's own is then the mean of -a. Taught in: chapter 5.
    """
    return (
        F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()
    )


def gradient_penalty(
    discriminator: nn.Module, real: torch.Tensor, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Half the squared slope of the logit at real pictures (B, 3, 64, 64), the mean over the batch, in float32.

    R1 of Mescheder et al. 2018. Taught in: chapter 5.
    """
    real = real.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(
        discriminator(real, labels).sum(), real, create_graph=True
    )
    return slope.square().sum((1, 2, 3)).mean() / 2


def augment(pixels: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, H, W) in other colours, moved by up to an eighth, a quarter of each made grey; gradients pass.

    DiffAugment of Zhao et al. 2020: brightness, saturation, contrast, translation, cutout. Taught in: chapter 5.
    """
    drawn = torch.rand(7, len(pixels), generator=chance).to(pixels)
    brightness, saturation, contrast = drawn[:3, :, None, None, None]
    pixels = pixels + brightness - 0.5
    grey = pixels.mean(1, keepdim=True)
    pixels = grey + 2 * saturation * (pixels - grey)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (contrast + 0.5) * (pixels - mean)
    rows, upright, high = _along(drawn[3], drawn[5], pixels.shape[2])
    columns, across, wide = _along(drawn[4], drawn[6], pixels.shape[3])
    kept = (
        upright[:, :, None] & across[:, None] & ~(high[:, :, None] & wide[:, None])
    )  # (B, H, W)
    batch = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    moved = pixels.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]]
    return (moved * kept[..., None]).permute(0, 3, 1, 2)


def _along(
    shift: torch.Tensor, start: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one axis, each (B, side): where a pixel comes from, whether that is in the picture, whether it is cut out."""
    line = torch.arange(side, device=shift.device)
    source = line - ((2 * shift - 1) * side / 8).round().long()[:, None]
    first = (start * side).long()[:, None] - side // 4
    return (
        source.clamp(0, side - 1),
        (source >= 0) & (source < side),
        (line >= first) & (line < first + side // 2),
    )
