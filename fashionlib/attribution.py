"""Other methods beside guided backpropagation, all with the same arguments; those of Captum computed by Captum.

    for name, method in attribution.METHODS.items():
        maps = method(model, pixels, targets)                  # (B, C, H, W) for normalised pixels (B, 3, H, W)

Pixels have ImageNet's normalisation; what is "absent" is white, the background of this catalogue.
"""

from __future__ import annotations

import torch
from torch import nn

from fashionlib import images, saliency

STEPS = 16  # points on the way of integrated gradients, and noisy copies of SmoothGrad
NOISE = 0.15  # of SmoothGrad: standard deviation as a share of the range of a picture's pixels


def integrated_gradients(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The gradient averaged on the straight way from white, times the way (Sundararajan et al. 2017).

    Taught in: chapter 3, appendix.
    """
    from captum.attr import IntegratedGradients

    with saliency.evaluating(model):
        method = IntegratedGradients(model)
        options = {
            "baselines": images.white(pixels),
            "n_steps": STEPS,
            "internal_batch_size": 2 * len(pixels),
        }
        return (
            method.attribute(pixels, target=targets, **options)
            .detach()
            .to(pixels.dtype)
        )


def smooth_grad(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The mean gradient of noisy copies, with noise of 15 % of each picture's own range (Smilkov et al. 2017).

    Taught in: chapter 3, appendix.
    """
    noise = NOISE * (
        pixels.amax((1, 2, 3), keepdim=True) - pixels.amin((1, 2, 3), keepdim=True)
    )
    copies = (pixels + noise * torch.randn_like(pixels) for _ in range(STEPS))
    return sum(saliency.gradient(model, copy, targets) for copy in copies) / STEPS


def guided_grad_cam(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Guided backpropagation times Grad-CAM (Selvaraju et al. 2017). Taught in: chapter 3, appendix."""
    return saliency.guided_backprop(model, pixels, targets) * saliency.grad_cam(
        model, pixels, targets
    )


def occlusion(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """How far the logit falls when a white patch of a quarter of the side lies there (Zeiler and Fergus 2014).

    One forward pass a position, about 50 in all: the patch moves by half its side. Taught in: chapter 3, appendix.
    """
    from captum.attr import Occlusion

    window, stride = (
        (3, *(max(1, side // part) for side in pixels.shape[2:])) for part in (4, 8)
    )
    with saliency.evaluating(model), torch.no_grad():
        options = {
            "sliding_window_shapes": window,
            "strides": stride,
            "baselines": images.white(pixels),
        }
        return Occlusion(model).attribute(
            pixels, target=targets, perturbations_per_eval=8, **options
        )


METHODS = {
    "guided": saliency.guided_backprop,
    "gradient": saliency.gradient,
    "integrated gradients": integrated_gradients,
    "SmoothGrad": smooth_grad,
    "Grad-CAM": saliency.grad_cam,
    "guided Grad-CAM": guided_grad_cam,
    "occlusion": occlusion,
}
