"""What the network looks at: guided backpropagation for batches, streaming class averages, tests of faithfulness.

    maps = saliency.guided_backprop(model, pixels)            # (B, 3, H, W), for the predicted classes
    averages = saliency.class_averages(model, images.batches(test, batch_size=64))
    curves = saliency.deletion_insertion(model, pixels, targets, saliency.magnitude(maps))

Works on any network that calls ReLU, as a module or as a function, in place or not, without changing it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fashionlib import images
from fashionlib.runtime import InputError

IN_PLACE_RELUS = frozenset({torch.relu_, torch.Tensor.relu_})
RELUS = IN_PLACE_RELUS | {F.relu, torch.relu, torch.Tensor.relu}
FACE, REST = 1, 3  # the values of the synthetic catalogue's masks; 0 is the background


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
        return gradient * (result > 0) * (gradient > 0), None


class _ReplaceReLUs(TorchFunctionMode):
    """While active, sends every ReLU call of this thread through GuidedReLU, and counts them."""

    calls = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function not in RELUS:
            return function(*arguments, **options)
        self.calls += 1
        x, *rest = arguments or (options["input"],)
        in_place = function in IN_PLACE_RELUS or (rest[0] if rest else options.get("inplace", False))
        return GuidedReLU.apply(x, in_place)


@contextlib.contextmanager
def guided_relus(model: nn.Module) -> Iterator[_ReplaceReLUs]:
    """Within this context every ReLU follows the guided rule; yields an object whose `calls` counts them.

    It intercepts the calls and not the modules, so that functional ReLUs (inception_v3, googlenet) and a module used
    twice (ResNets) are guided too. Raises InputError for a compiled model, whose calls cannot be seen, and for one in
    which no ReLU was called: its map would silently be the plain gradient. Taught in: chapter 3.
    """
    name = type(model).__name__
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
        raise InputError(f"guided backpropagation cannot see inside a compiled model ({name}): pass the original.")
    with _ReplaceReLUs() as mode:
        yield mode
    if not mode.calls:
        raise InputError(
            f"guided backpropagation found no ReLU call in {name} (GELU, SiLU and ReLU6 are others): use gradient()."
        )


def guided_backprop(model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    """Guided backpropagation (Springenberg et al. 2015): the input gradient of a logit, with the guided ReLU rule.

    pixels: float (B, 3, H, W), normalised. targets: int64 (B,), None for the predicted classes.
    Returns the signed maps (B, 3, H, W). The model is evaluated in `eval()` and left exactly as it was.
    Raises InputError as `guided_relus` does. Taught in: chapter 3.
    """
    with guided_relus(model):
        return gradient(model, pixels, targets)


def gradient(model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    """The plain gradient of a logit with respect to the pixels (Simonyan et al. 2014); shapes as `guided_backprop`.

    Taught in: chapter 3.
    """
    with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_()
        logits = model(leaf.clone())  # a copy: a network may begin with an operation in place
        targets = logits.argmax(1) if targets is None else targets
        return torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), leaf)[0]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """`eval()` and no gradients of parameters; every module's mode and every parameter's flag come back."""
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


def grad_cam(model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017) by Captum, enlarged to the pictures: float (B, 1, H, W), not negative.

    Taken at a ResNet's last stage, in other networks at the last convolution. Taught in: chapter 3.
    """
    from captum.attr import LayerGradCam

    layer = getattr(model, "layer4", None) or [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    with _evaluating(model):
        targets = model(pixels).argmax(1) if targets is None else targets
        maps = LayerGradCam(model, layer).attribute(
            pixels.detach().clone().requires_grad_(), target=targets, relu_attributions=True
        )
    return F.interpolate(maps.detach(), pixels.shape[2:], mode="bilinear")


def in_batches(
    method: Callable[..., torch.Tensor], model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor, batch_size: int
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
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (images.MEAN, images.STD))
    weights = pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = ((pixels * std + mean) * weights).sum(1, keepdim=True)  # (B, 1, H, W)
    across = pixels.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    return F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1)


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


def photo_masks(pictures: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
    """Masks for photographs without any: uint8 (B, H, W) with 0 background, 1 face box, 3 the rest of the foreground.

    pictures: uint8 (B, H, W, 3); pixels: the same, normalised. Faces by OpenCV's frontal cascade (Viola and Jones
    2001), on pictures enlarged to 448 pixels. Raises InputError below 112 pixels: faces are too small there.
    Taught in: chapter 4.
    """
    import cv2

    height, width = pictures.shape[1:3]
    if min(height, width) < 112:
        raise InputError(f"faces are searched in pictures of at least 112 pixels, found {height}x{width}.")
    scale = 448 / min(height, width)
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    masks = foreground(pixels).cpu().to(torch.uint8) * REST
    for mask, picture in zip(masks, pictures, strict=True):
        grey = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale)
        for box in cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5):
            x, y, w, h = (round(float(edge) / scale) for edge in box)
            mask[y : y + h, x : x + w][mask[y : y + h, x : x + w] > 0] = FACE
    return masks


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


def class_averages(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    method: Callable[..., torch.Tensor] = guided_backprop,
    *,
    unit: bool = True,
) -> ClassAverages:
    """Average maps, pictures and edges per predicted class, in one pass and in memory for one batch.

    batches: (normalised pixels, labels) as `images.batches` yields them; the labels are not used. unit: divide each
    map by its own mean magnitude, so that every picture has one vote (gradients differ in size from picture to
    picture). Sums are kept in float64; every average is over all samples. Taught in: chapter 4.
    """
    count, sums = 0, None
    for pixels, _ in batches:
        with _evaluating(model), torch.no_grad():
            logits = model(pixels)
        predicted = logits.argmax(1)
        maps = method(model, pixels, predicted)
        size = magnitude(maps)
        if unit:
            scale = 1 / size.mean((1, 2)).clamp_min(torch.finfo(size.dtype).tiny)  # a map of zeros stays one
            maps, size = maps * scale[:, None, None, None], size * scale[:, None, None]
        votes = F.one_hot(predicted, logits.shape[1]).T  # (C, B)
        parts = [_per_class(votes, values) for values in (maps, size, size.cpu().double() ** 2, pixels, sobel(pixels))]
        count = count + votes.sum(1)
        sums = parts if sums is None else [old + new for old, new in zip(sums, parts, strict=True)]
    if sums is None:
        raise InputError("class_averages needs at least one batch, found none.")
    return _averages(count.cpu(), [total.cpu() for total in sums])


def _per_class(votes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sums of values (B, ...) over the samples of each class, float64 (C, ...); Apple's MPS has no float64."""
    if values.device.type == "mps":
        values = values.cpu()
    return torch.tensordot(votes.to(values.device).double(), values.double(), dims=1).cpu()


def _averages(count: torch.Tensor, sums: list[torch.Tensor]) -> ClassAverages:
    n = count.double()[:, None, None]
    signed, size, squares, image, edges = sums
    signed, size, squares, image, edges = signed / n[..., None], size / n, squares / n, image / n[..., None], edges / n
    variance = (squares - size**2).clamp_min(0) * n / (n - 1)
    return ClassAverages(count, signed, size, (variance / n).sqrt(), image, edges)


# --- scores -----------------------------------------------------------------------------------------------------------


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


def _centred_ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks of values (N,) minus their mean, equal values sharing the mean of theirs: float64 (N,)."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    inverse, counts = inverse.cpu(), counts.cpu()  # Apple's MPS has no float64
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]  # 1, 2, ..., N without ties
    return ranks - (len(values) + 1) / 2


@contextlib.contextmanager
def randomised(model: nn.Module, *, seed: int = 0, head_only: bool = False) -> Iterator[nn.Module]:
    """The model with new random weights (all of them, or its last linear layer's) within this context, then as before.

    Convolutions as torchvision's ResNets begin (He et al. 2015), other layers as torch does; running statistics start
    afresh. For the sanity check of Adebayo et al. 2018: a map that explains the network must change with its weights.
    Raises InputError where there is no linear layer to be the head. Taught in: chapter 3.
    """
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    if head_only:
        modules = [module for module in modules if isinstance(module, nn.Linear)][-1:]
        if not modules:
            raise InputError(f"{type(model).__name__} has no linear layer: head_only cannot be used.")
    devices = {value.device for value in kept.values() if value.is_cuda}
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            for module in modules:
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
    with _evaluating(model):
        for fraction in fractions:
            chosen = rank < round(float(fraction) * count)
            both = torch.cat([torch.where(chosen, filled, pixels), torch.where(chosen, pixels, filled)])
            logits = torch.cat([model(part) for part in both.split(batch_size)])
            probabilities = logits.float().softmax(1).gather(1, torch.cat([targets, targets])[:, None])
            curves.append(probabilities.view(2, -1))
    deletion, insertion = torch.stack(curves, dim=2).cpu().double()  # (B, S + 1) each
    curves = {"deletion": deletion, "insertion": insertion}
    areas = {f"{name}_auc": torch.trapezoid(curve, fractions) for name, curve in curves.items()}
    return {"fractions": fractions, **curves, **areas}


def _filled(pixels: torch.Tensor, fill: str) -> torch.Tensor:
    if fill == "white":
        white = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8, device=pixels.device)
        return images.normalise(white).to(pixels.dtype).expand_as(pixels)
    if fill == "blurred":
        from torchvision.transforms.functional import gaussian_blur

        return gaussian_blur(pixels, [11, 11], [5.0, 5.0])
    raise InputError(f"fill must be white or blurred; found {fill!r}.")


def mass_share(maps: torch.Tensor, masks: torch.Tensor, value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the foreground's saliency that lies where a mask has `value`, and its share of the foreground's area.

    maps: magnitudes (B, H, W); masks: uint8 (B, H, W), 0 is the background. Returns two float64 (B,); NaN without
    foreground. The second is what the first has to be compared with: a part of a third of the area holds a third of the
    saliency by chance. Taught in: chapter 4.
    """
    masks, mass = masks.cpu(), maps.cpu().double()
    part, whole = (masks == value).double(), (masks > 0).double()
    return (mass * part).sum((1, 2)) / (mass * whole).sum((1, 2)), part.sum((1, 2)) / whole.sum((1, 2))


def density_ratio(mass: np.ndarray, area: np.ndarray, *, seed: int = 0) -> tuple[float, list[float]]:
    """How many times as dense saliency is in a part as in the rest of the foreground, with a 95 % interval.

    mass, area: shares of the part, one per picture, as `mass_share` gives them; NaN is left out. The ratio of the
    mean shares' odds; the interval is a percentile bootstrap over 2,000 draws of pictures (Efron 1979).
    Taught in: chapter 4.
    """
    shares = np.stack([np.asarray(mass, float), np.asarray(area, float)])  # (2, B)
    shares = shares[:, ~np.isnan(shares).any(0)]  # a map without any mass, or a picture without foreground
    drawn = np.random.default_rng(seed).integers(shares.shape[1], size=(2000, shares.shape[1]))
    means = np.concatenate([shares.mean(1)[:, None], shares[:, drawn].mean(2)], axis=1)  # (2, 1 + 2000)
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
        raise InputError(f"an interval needs at least two pictures, found {len(values)}: take more pictures.")
    reach = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), [float(values.mean() - reach), float(values.mean() + reach)], len(values)


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
