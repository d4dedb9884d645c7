"""What the network looks at: guided backpropagation for batches, and streaming class averages.

    maps = saliency.guided_backprop(model, pixels)            # (B, 3, H, W), for the predicted classes
    averages = saliency.class_averages(model, images.batches(test, batch_size=64))

Works on any network that calls ReLU, as a module or as a function, in place or not, without changing it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fashionlib import images
from fashionlib.runtime import InputError

IN_PLACE_RELUS = frozenset({torch.relu_, torch.Tensor.relu_})
RELUS = IN_PLACE_RELUS | {F.relu, torch.relu, torch.Tensor.relu}


# --- guided backpropagation -------------------------------------------------------------------------------------------


class GuidedReLU(torch.autograd.Function):
    """max(x, 0), whose backward pass lets through only positive gradients, and only where x > 0.

    Springenberg et al. 2015. Taught in: chapter 3.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, in_place: bool) -> torch.Tensor:
        result = x.relu_() if in_place else x.relu()
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(result)  # positive exactly where x was
        return result

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(
            gradient.relu(), result, 0
        ), None  # where x > 0, in one pass


class _ReplaceReLUs(TorchFunctionMode):
    """While active, sends every ReLU call of this thread through GuidedReLU, and counts them."""

    calls = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function not in RELUS:
            return function(*arguments, **options)
        self.calls += 1
        x, *rest = arguments or (options["input"],)
        in_place = function in IN_PLACE_RELUS or (
            rest[0] if rest else options.get("inplace", False)
        )
        return GuidedReLU.apply(x, in_place)


@contextlib.contextmanager
def guided_relus(model: nn.Module) -> Iterator[_ReplaceReLUs]:
    """Within this context every ReLU follows the guided rule; yields an object whose `calls` counts them.

    It intercepts the calls and not the modules, so that functional ReLUs (inception_v3, googlenet) and a module used
    twice (ResNets) are guided too. Raises InputError for a compiled model, whose calls cannot be seen, and for one in
    which no ReLU was called: its map would silently be the plain gradient. Taught in: chapter 3.
    """
    name = type(model).__name__
    if any(
        hasattr(m, "_orig_mod") or m._compiled_call_impl is not None
        for m in model.modules()
    ):
        raise InputError(
            f"guided backpropagation cannot see inside a compiled model ({name}): pass the original."
        )
    with _ReplaceReLUs() as mode:
        yield mode
    if not mode.calls:
        raise InputError(
            f"guided backpropagation found no ReLU call in {name} (GELU, SiLU and ReLU6 are others): use gradient()."
        )


def guided_backprop(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """Guided backpropagation (Springenberg et al. 2015): the input gradient of a logit, with the guided ReLU rule.

    pixels: float (B, 3, H, W), normalised. targets: int64 (B,), None for the predicted classes.
    Returns the signed maps (B, 3, H, W). The model is evaluated in `eval()` and left exactly as it was.
    Raises InputError as `guided_relus` does. Taught in: chapter 3.
    """
    with guided_relus(model):
        return gradient(model, pixels, targets)


def gradient(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """The plain gradient of a logit with respect to the pixels (Simonyan et al. 2014); shapes as `guided_backprop`.

    Taught in: chapter 3.
    """
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_()
        logits = model(
            leaf.clone()
        )  # a copy: a network may begin with an operation in place
        targets = logits.argmax(1) if targets is None else targets
        return torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), leaf)[0]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`eval()` and no gradients of parameters; every module's mode and every parameter's flag come back.

    Taught in: chapter 3.
    """
    training = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def grad_cam(
    model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017) by Captum, enlarged to the pictures: float (B, 1, H, W), not negative.

    Taken at a ResNet's last stage, in other networks at the last convolution. Taught in: chapter 3.
    """
    from captum.attr import LayerGradCam

    layer = (
        getattr(model, "layer4", None)
        or [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    )
    with evaluating(model):
        targets = model(pixels).argmax(1) if targets is None else targets
        maps = LayerGradCam(model, layer).attribute(
            pixels.detach().clone().requires_grad_(),
            target=targets,
            relu_attributions=True,
        )
    return F.interpolate(maps.detach(), pixels.shape[2:], mode="bilinear")


def in_batches(
    method: Callable[..., torch.Tensor],
    model: nn.Module,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    batch_size: int,
) -> torch.Tensor:
    """`method` on many pictures (N, 3, H, W), a few at a time, so that the activations fit into memory.

    Taught in: chapter 3.
    """
    parts = zip(pixels.split(batch_size), targets.split(batch_size), strict=True)
    return torch.cat([method(model, part, wanted) for part, wanted in parts])


# --- maps -------------------------------------------------------------------------------------------------------------


def magnitude(maps: torch.Tensor) -> torch.Tensor:
    """The size of signed maps (B, C, H, W) at each pixel: the sum of |.| over the channels, (B, H, W).

    The sum, not the maximum: shares of it on parts of a picture then add up to one. Taught in: chapter 3.
    """
    return maps.abs().sum(1)


def sobel(pixels: torch.Tensor) -> torch.Tensor:
    """Edge strength of normalised pictures (B, 3, H, W): Sobel's filter on grey values in [0, 1], (B, H, W).

    The unit is grey value per pixel (the kernels are divided by 8); edges of the picture are repeated.
    Taught in: chapter 3.
    """
    mean, std = (
        pixels.new_tensor(values)[:, None, None] for values in (images.MEAN, images.STD)
    )
    weights = pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = ((pixels * std + mean) * weights).sum(1)  # (B, H, W)
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down = (
        padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    )  # the kernel's columns, then its difference across
    across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    slopes = down[..., 2:] - down[..., :-2], across[:, 2:] - across[:, :-2]
    return (
        torch.hypot(*slopes) / 8
    )  # sums, not a convolution, which takes 360 ms for 32 pictures of 224 and this 14


def foreground(pixels: torch.Tensor) -> torch.Tensor:
    """Where a normalised photograph (B, 3, H, W) is not near-white: bool (B, H, W), darkest channel below 240 of 255.

    For catalogues without masks: the background of most product photographs is white. White garments lose their
    inside, and a coloured background counts as foreground. Taught in: chapter 3.
    """
    return images.denormalise(pixels).amin(3) < images.NEAR_WHITE


def outline_masks(inside: torch.Tensor, width: int) -> torch.Tensor:
    """The outline of a foreground (bool, B, H, W) as a band: uint8, 1 within `width` pixels, 3 further in, else 0.

    A foreground that is cut by the edge of the picture has no outline there. Taught in: chapter 3.
    """
    mask = inside.float()[:, None]
    window = {"kernel_size": 2 * width + 1, "stride": 1, "padding": width}
    grown, shrunk = F.max_pool2d(mask, **window) > 0, -F.max_pool2d(-mask, **window) > 0
    return (grown.to(torch.uint8) + 2 * shrunk.to(torch.uint8))[:, 0]


# --- averages ---------------------------------------------------------------------------------------------------------


class ClassAverages(NamedTuple):
    """Averages per predicted class, float64 on the CPU; NaN for a class that was never predicted.

    Taught in: chapter 4.
    """

    count: torch.Tensor  # int64 (C,)
    signed: torch.Tensor  # (C, 3, H, W) mean map
    magnitude: torch.Tensor  # (C, H, W) mean of `magnitude(maps)`
    standard_error: torch.Tensor  # (C, H, W) of that mean; NaN below two pictures
    image: torch.Tensor  # (C, 3, H, W) mean normalised picture
    edges: torch.Tensor  # (C, H, W) mean of `sobel(pixels)`
    shuffled: (
        torch.Tensor
    )  # (C, H, W) mean of `magnitude(maps)` over as many pictures of any class


def class_averages(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    method: Callable[..., torch.Tensor] = guided_backprop,
    *,
    explained: nn.Module | None = None,
    unit: bool = True,
) -> ClassAverages:
    """Average maps, pictures and edges per predicted class, in one pass and in memory for one batch.

    batches: (normalised pixels, labels) as `images.batches` yields them; the labels are not used. explained: a control,
    whose maps are averaged over the classes that `model` predicts. unit: divide each map by its own mean magnitude, so
    that every picture has one vote (gradients differ in size from picture to picture). Sums are kept in float64; every
    average is over all samples. `shuffled` exchanges the classes within each batch. Taught in: chapter 4.
    """
    count, sums, chance = 0, None, torch.Generator().manual_seed(0)
    for pixels, _ in batches:
        logits, maps = _logits_and_maps(model, pixels, method, explained)
        predicted = logits.argmax(1)
        size = magnitude(maps)
        if unit:
            scale = 1 / size.mean((1, 2)).clamp_min(
                torch.finfo(size.dtype).tiny
            )  # a map of zeros stays one
            maps, size = maps * scale[:, None, None, None], size * scale[:, None, None]
        votes = F.one_hot(predicted, logits.shape[1]).T  # (C, B)
        parts = [
            _per_class(votes, values)
            for values in (maps, size, size**2, pixels, sobel(pixels))
        ]
        parts.append(
            _per_class(votes[:, torch.randperm(len(pixels), generator=chance)], size)
        )
        count = count + votes.sum(1)
        sums = (
            parts
            if sums is None
            else [old + new for old, new in zip(sums, parts, strict=True)]
        )
    if sums is None:
        raise InputError("class_averages needs at least one batch, found none.")
    return _averages(count.cpu(), sums)


def _logits_and_maps(
    model: nn.Module,
    pixels: torch.Tensor,
    method: Callable[..., torch.Tensor],
    explained: nn.Module | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one forward pass: the method's own, unless another network is explained."""
    if explained is not None:
        with evaluating(model), torch.no_grad():
            logits = model(pixels)
        return logits, method(explained, pixels, logits.argmax(1))
    seen = []
    hook = model.register_forward_hook(
        lambda _module, _inputs, logits: seen.append(logits.detach())
    )
    try:
        maps = method(model, pixels, None)
    finally:
        hook.remove()
    return seen[0], maps


def _per_class(votes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sums of values (B, ...) over the samples of each class: float64 (C, ...). A batch is added up as it is."""
    return torch.tensordot(votes.to(values), values, dims=1).cpu().double()


def _averages(count: torch.Tensor, sums: list[torch.Tensor]) -> ClassAverages:
    n = count.double()[:, None, None]
    signed, size, squares, image, edges, shuffled = (
        total / n.view(-1, *[1] * (total.dim() - 1)) for total in sums
    )
    variance = torch.where(
        n > 1, (squares - size**2).clamp_min(0) * n / (n - 1), torch.nan
    )
    return ClassAverages(
        count, signed, size, (variance / n).sqrt(), image, edges, shuffled
    )
