"""What a network looks at: maps of the pixels that an answer depends on, and averages.

    maps = saliency.guided_backprop(model, pixels, targets)           # (B, 3, H, W)
    for name, method in saliency.METHODS.items():
        maps = saliency.in_batches(method, model, pixels, targets, 32)
    averages = saliency.class_averages(model, batches, predicted)

Works with any network that calls ReLU or ReLU6, as a module or as a function, in place
or not, without changing it; other activations are counted. In all methods pixels are
float (B, 3, H, W), normalized as `images.normalize` does, and targets int64 (B,): the
class of each image whose logit is explained. The model is evaluated in `eval()` and
left as it was. Guided maps equal Captum's up to rounding; measured against it, with
`cpu.fuse_batchnorm`: `benchmarks/results/saliency.json`.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from math import inf
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation
from torch.overrides import TorchFunctionMode

from fashionlib import models
from fashionlib.images import NEAR_WHITE, STD, denormalize
from fashionlib.runtime import InputError

# --- guided backpropagation -----------------------------------------------------------


class GuidedReLU(torch.autograd.Function):
    """max(x, 0), whose backward pass is gradient * (gradient > 0) * (x > 0).

    With a ceiling, as ReLU6 has it, min(max(x, 0), ceiling): times (x < ceiling), too.
    Springenberg et al. 2015 (arXiv 1412.6806).
    Taught in: chapter 3
    """

    @staticmethod
    def forward(ctx, x: Tensor, in_place=False, ceiling=inf) -> Tensor:
        y = F.hardtanh(x, 0, ceiling, in_place)  # min(max(x, 0), ceiling)
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)  # y > 0 exactly where x > 0, and x may be overwritten
        ctx.ceiling = ceiling
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        # the formula in two passes over the memory: gradient * (y > 0) * (y < ceiling),
        # and of that what is positive
        passed = torch.ops.aten.hardtanh_backward(gradient, y, 0, ctx.ceiling)
        return passed.clamp_(min=0), None, None


def _guided(input: Tensor, inplace=False, min_val=0.0, max_val=inf) -> Tensor:
    """What torch's ReLUs do, guided; the arguments have torch's names."""
    return GuidedReLU.apply(input, inplace, max_val)


# torch's functions, and what is called instead; nn.ReLU6 calls F.hardtanh from 0 to 6
GUIDED = dict.fromkeys((F.relu, torch.relu, Tensor.relu, F.hardtanh), _guided)
GUIDED |= dict.fromkeys((torch.relu_, Tensor.relu_), partial(_guided, inplace=True))
GUIDED |= {F.relu6: partial(_guided, max_val=6.0)}
# Names of the others, without "_": torch's list but for softmax, and what may be a ReLU
UNGUIDED = {name.lower() for name in activation.__all__ if "max" not in name}
UNGUIDED |= {"clamp", "clampmin", "clip", "maximum"}


class _GuidedMode(TorchFunctionMode):
    """While active, replaces torch's ReLUs in this thread, and counts activations."""

    calls = others = passed = 0

    def count_backward(self, _gradient):
        self.passed += 1

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, guided = kwargs or {}, GUIDED.get(function)
        if function is F.hardtanh and kwargs["min_val"] != 0:
            guided = None  # no ReLU
        self.calls += guided is not None
        name = function.__name__.replace("_", "")  # relu_ works in place
        self.others += guided is None and name in UNGUIDED
        result = (guided or function)(*args, **kwargs)
        if guided and result.requires_grad:
            result.register_hook(self.count_backward)
        return result


_print_once = cache(print)
PLAIN = "its maps would be plain gradients, use gradient()"


@contextlib.contextmanager
def guided_relus(model: nn.Module) -> Iterator[_GuidedMode]:
    """Guide every ReLU and ReLU6 within this context; yields an object that counts.

    Its `calls` are the guided ones; `others` are activations that are no ReLUs and keep
    their plain gradient: where there are some, a line says so, once. It sees calls and
    not modules, so that functional ReLUs (inception_v3) and a module that is used twice
    (ResNets) are guided, too. Raises InputError for a compiled or scripted model, which
    hides its calls, and where no ReLU was called: the map would silently be the plain
    gradient.
    Taught in: chapter 3
    """
    for module in model.modules():
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise InputError("ReLUs of a compiled model are hidden: pass the original.")
    with _GuidedMode() as mode:
        yield mode
    if not mode.calls:
        raise InputError(f"found no ReLU in {type(model).__name__}: {PLAIN}.")
    if mode.others:
        _print_once(f"Guided {mode.calls} ReLUs, not {mode.others} other activations.")


def guided_backprop(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """Gradient of a logit by the pixels, with the guided rule at every ReLU.

    Returns signed maps (B, 3, H, W). Raises InputError as `guided_relus` does.
    Springenberg et al. 2015 (arXiv 1412.6806).
    Taught in: chapter 3
    """
    with guided_relus(model) as relus:
        maps = gradient(model, pixels, targets)
    if not relus.passed:  # as in Swin's version 2, where they see positions
        raise InputError(f"no ReLU in {type(model).__name__} sees the image: {PLAIN}.")
    return maps


def gradient(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """Plain gradient of a logit by the pixels: (B, 3, H, W).

    Simonyan et al. 2014 (arXiv 1312.6034).
    Taught in: chapter 3
    """
    with models.evaluating(model), torch.inference_mode(False), torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_()
        logits = model(leaf.clone())  # a copy: the first layer may work in place
        # and a copy: no tensor of inference mode can take part in a backward pass
        score = logits.gather(1, targets[:, None].clone()).sum()
        return torch.autograd.grad(score, leaf)[0]


# --- Grad-CAM -------------------------------------------------------------------------


MIN_CELLS = 20  # of a map that can be read, such as 5x4: in 3x3 a product has no shape


def last_map(model: nn.Module, pixels: Tensor) -> tuple[str, tuple[int, int]]:
    """Name of the layer whose result Grad-CAM explains, and its cells (height, width).

    The last one of `models.parts` that returns a map (B, C, h, w) of MIN_CELLS or more:
    a ResNet's last stage on photographs, an earlier one on small images; where none has
    so many, the last map. Raises InputError for a network without maps (ViT), and for a
    traced one (`cpu.fuse_batchnorm`).
    Taught in: chapter 3
    """
    parts, shapes = models.parts(model), {}  # of the results, in the order of the calls
    if "permute" in parts:  # Swin's stages return (B, h, w, C)
        parts = {"permute": parts["permute"]}

    def note(name, _part, _inputs, result):
        shapes[name] = getattr(result, "shape", ())

    with contextlib.ExitStack() as hooks, models.evaluating(model), torch.no_grad():
        for name, part in parts.items():
            if not isinstance(part, nn.AdaptiveAvgPool2d):  # VGG's makes 7x7 of any map
                hooks.enter_context(part.register_forward_hook(partial(note, name)))
        model(pixels[:1])
    maps = {name: tuple(shape[2:]) for name, shape in shapes.items() if len(shape) == 4}
    tokens = any(len(shape) == 3 for shape in shapes.values())
    tokens |= getattr(model, "output_fmt", "") == "NHWC"  # of timm's transformers
    # a traced network does not call its stages
    if tokens or not maps or isinstance(model, torch.fx.GraphModule):
        raise InputError(f"no layer of {type(model).__name__} is a last feature map.")
    enough = [name for name, (h, w) in maps.items() if h * w >= MIN_CELLS]
    name = enough[-1] if enough else list(maps)[-1]
    return name, maps[name]


def grad_cam(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM by Captum, enlarged to the images: float (B, 1, H, W), not negative.

    Taken at `last_map`; raises InputError as that does.
    Selvaraju et al. 2017 (arXiv 1610.02391).
    Taught in: chapter 3
    """
    from captum.attr import LayerGradCam

    layer = model.get_submodule(last_map(model, pixels)[0])
    with models.evaluating(model), torch.inference_mode(False), torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_()
        maps = LayerGradCam(model, layer).attribute(leaf, targets.clone())
    return F.interpolate(maps.detach().relu(), pixels.shape[2:], mode="bilinear")


METHODS = {"guided": guided_backprop, "gradient": gradient, "Grad-CAM": grad_cam}


def in_batches(method, model, pixels, targets, batch_size: int) -> Tensor:
    """`method` on many images (N, 3, H, W), a few at a time: activations need memory.

    Taught in: chapter 3
    """
    pairs = zip(pixels.split(batch_size), targets.split(batch_size), strict=True)
    return torch.cat([method(model, part, wanted) for part, wanted in pairs])


# --- maps -----------------------------------------------------------------------------


def magnitude(maps: Tensor) -> Tensor:
    """Sum of |.| over the channels of signed maps (B, C, H, W): (B, H, W).

    The sum, not the maximum: fractions of it on parts of an image then add up to one.
    Taught in: chapter 3
    """
    return maps.abs().sum(1)


def sobel(pixels: Tensor) -> Tensor:
    """Edge strength by Sobel's filter, in grey values from 0 to 1 per pixel: (B, H, W).

    pixels: float (B, 3, H, W), normalized; the border is repeated.
    Taught in: chapter 3
    """
    across = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    grey = torch.tensor([0.299, 0.587, 0.114]) * torch.tensor(STD)  # of normalized RGB
    kernels = torch.stack([across, across.T])[:, None] * grey[:, None, None]
    # the border repeated on four sides, then (B, 2, H, W), then (B, H, W)
    return F.conv2d(F.pad(pixels, [1] * 4, "replicate"), kernels.to(pixels)).norm(dim=1)


def foreground(pixels: Tensor) -> Tensor:
    """Where normalized photographs (B, 3, H, W) are not near-white: bool (B, H, W).

    That is, the darkest channel is below 240 of 255. For catalogues without masks: most
    backgrounds are white. White garments lose their inside; colored backgrounds count.
    Taught in: chapter 3
    """
    return denormalize(pixels).amin(3) < NEAR_WHITE


# --- averages -------------------------------------------------------------------------


def class_averages(
    model, batches, classes: Tensor, *, method=guided_backprop, unit=True, seed=0
) -> SimpleNamespace:
    """Average maps, images and edges per class, in one pass, in memory for one batch.

    Returns float64 on the CPU, NaN for a class without images: count (int64 (C,)),
    signed (C, 3, H, W), the mean map; magnitude (C, H, W), the mean of
    `magnitude(maps)`; its standard_error, NaN below two images; image (C, 3, H, W),
    the mean normalized image; edges, the mean of `sobel(pixels)`; shuffled, the mean
    magnitude of as many images of any class, both (C, H, W).

    batches: (normalized pixels, labels) as `images.batches` yields them, the labels
    unused. classes: int64 (N,) on the CPU, 0 to 5, for the images in that order: what
    each map explains, and the average that it enters. unit: divide each map by its mean
    magnitude, so that each image has one vote. seed: of the control `shuffled`, for
    which all N images exchange their classes. Raises InputError unless N fits.
    Taught in: chapter 4
    """
    count = classes.bincount(minlength=6)  # (C,)
    # means as weighted sums: 1 / count for the images of a class, 0 for all others
    weights = F.one_hot(classes, len(count)).T / count.double()[:, None]  # (C, N)
    rng = torch.Generator().manual_seed(seed)
    shuffled = weights[:, torch.randperm(len(classes), generator=rng)]
    means, done = Counter(), 0
    for pixels, _ in batches:
        part, done = slice(done, done + len(pixels)), done + len(pixels)
        if done > len(classes):
            break
        maps = method(model, pixels, classes[part].to(pixels.device))
        if unit:  # a map of zeros stays one
            maps = F.normalize(maps, p=1, dim=(1, 2, 3)) * maps[0, 0].numel()
        size = magnitude(maps)
        values = {"signed": maps, "magnitude": size, "squares": size**2}
        values |= {"image": pixels, "edges": sobel(pixels), "shuffled": size}
        for name, value in values.items():
            share = (shuffled if name == "shuffled" else weights)[:, part].to(value)
            means[name] += torch.tensordot(share, value, dims=1).cpu().double()
    if done == 0 or done != len(classes):
        raise InputError(f"found {len(classes)} classes for {done} images or more.")
    variance = (means.pop("squares") - means["magnitude"] ** 2).clamp_min(0)
    n = count[:, None, None]
    error = torch.where(n > 1, (variance / (n - 1)).sqrt(), torch.nan)
    return SimpleNamespace(count=count, standard_error=error, **means)
