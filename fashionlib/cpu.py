"""What makes a CPU fast: products for small convolutions, fused BatchNorm, kept memory.

    with cpu.keep_freed_memory(device), cpu.gemm_convolutions(device):
        loss = network(pixels) ...     # forward; backward follows, inside or outside
    maps = saliency.guided_backprop(cpu.fuse_batchnorm(model), pixels, targets)

The results are those of the plain network; `training.fit` uses the first two by itself.
Measured in `benchmarks/results/train.json` and `saliency.json`.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import sys
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from fashionlib.runtime import InputError

MIN_CHANNELS = 256  # of the result
MAX_PIXELS = 25  # of the result's map: from 10x7 on the library is as fast
# M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD: see man 3 mallopt
KEEPING = {-4: 0, -1: 2**31 - 1, -2: 2**28}
USUAL = {-4: 2**16, -1: 2**26, -2: 2**17, -3: 2**25}  # where blocks of 32 MiB are freed


@contextlib.contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """A context in which the C library keeps the memory that tensors give back.

    A training step frees and asks for hundreds of MiB. The system hands out each page
    anew, zeroed, at its first touch: 300,000 page faults a step for ResNet10 on 128
    images of 80x60, and 67 images/s. Kept, they are 6,000, and 112 images/s (2 cores of
    an Intel Xeon, float32). For the whole process; at the end it is given back, and
    the library's own settings return. Linux with glibc; elsewhere, and on other
    devices, nothing is done.
    Taught in: chapter 2
    """
    linux = device.type == "cpu" and sys.platform == "linux"
    libc = ctypes.CDLL(None) if linux else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    try:
        for setting in KEEPING.items():
            libc.mallopt(*setting)
        yield
    finally:
        for setting in USUAL.items():
            libc.mallopt(*setting)
        libc.malloc_trim(0)


# --- small convolutions as matrix products --------------------------------------------


def gemm_convolutions(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which convolutions with small results are matrix products on a CPU.

    oneDNN, a CPU's library, reaches a fraction of a product's rate on maps of a few
    pixels with hundreds of channels, above all for the gradient of the weights. Forward
    and backward pass together, in ms on 2 cores of an Intel Xeon with AMX in bfloat16:
    128 maps of 512 channels and 5x4 pixels 29 instead of 69, of 64 channels and 3x3
    pixels 11 instead of 30. On other devices nothing changes.
    Taught in: chapter 2
    """
    return _GemmConvolutions() if device.type == "cpu" else contextlib.nullcontext()


class _GemmConvolutions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d and not kwargs and _is_small(*args):
            pixels, weight, _bias, stride = args[:4]
            return _GemmConvolution.apply(pixels, weight, stride[0])
        return function(*args, **(kwargs or {}))


def _is_small(pixels, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Whether it is a 3x3 convolution as in ResNets, in training, with a small map."""
    usual = bias is None and (padding, dilation, groups) == ((1, 1), (1, 1), 1)
    usual = usual and stride in ((1, 1), (2, 2)) and weight.shape[2:] == (3, 3)
    if not usual or pixels.ndim != 4 or len(weight) < MIN_CHANNELS:
        return False
    height, width = (-(-side // stride[0]) for side in pixels.shape[2:])  # rounded up
    return height * width <= MAX_PIXELS and torch.is_grad_enabled()


class _GemmConvolution(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, pixels, weight, stride):
        neighbors = _neighbors(pixels, stride)  # (B, H, W, 9 C)
        ctx.save_for_backward(neighbors, weight)
        ctx.shape, ctx.stride = pixels.shape, stride
        kernel = weight.permute(0, 2, 3, 1).flatten(1)  # (O, 9 C)
        return (neighbors @ kernel.T).permute(0, 3, 1, 2)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        neighbors, weight = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, O)
        of_weight = rows.T @ neighbors.flatten(0, 2)  # (O, 9 C)
        of_weight = of_weight.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        if ctx.stride == 1:  # a convolution with the kernel turned by 180 degrees
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)  # (9 O, C)
            of_pixels = (_neighbors(gradient, 1) @ turned).permute(0, 3, 1, 2)
        else:
            of_pixels = nn.grad.conv2d_input(ctx.shape, weight, gradient, ctx.stride, 1)
        return of_pixels, of_weight, None


def _neighbors(pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, C, H, W) to (B, H / stride, W / stride, 9 C): 3x3 pixels, zeros outside."""
    padded = F.pad(pixels.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 3, stride).unfold(2, 3, stride)  # (B, H, W, C, 3, 3)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


# --- BatchNorm as part of the convolution ---------------------------------------------


def fuse_batchnorm(model: nn.Module) -> nn.Module:
    """A frozen copy in `eval()` whose BatchNorms are part of the convolutions before.

    Same logits and same gradients by the pixels, up to rounding; none by the weights.
    On a CPU a ResNet's first convolution gets another form (`SpaceToDepth`), too. The
    stages of a ResNet are no longer modules that are called, so Grad-CAM needs the
    original. Raises InputError for a network that torch.fx cannot trace.
    Taught in: chapter 4
    """
    try:
        tracer = _Tracer()
        graph = tracer.trace(copy.deepcopy(model).eval())
    except (fx.proxy.TraceError, TypeError, NotImplementedError) as error:
        name = type(model).__name__
        raise InputError(f"cannot fuse {name}, use it as it is: {error}") from error
    fused = fx.GraphModule(tracer.root, graph)
    layers = dict(fused.named_modules())
    calls = Counter(node.target for node in graph.nodes)
    for node in graph.nodes:
        norm = layers.get(node.target)
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            before = node.args[0]
            convolution = layers.get(before.target)
            alone = len(before.users) == calls[before.target] == calls[node.target] == 1
            if isinstance(convolution, nn.Conv2d) and alone:
                convolution = fuse_conv_bn_eval(convolution, norm)
                if _is_stem(convolution):
                    convolution = SpaceToDepth(convolution)
                fused.set_submodule(before.target, convolution)
                # timm's BatchNorms hold an activation, which stays; torch's are empty
                fused.set_submodule(node.target, nn.Sequential(*norm.children()))
    return fused.requires_grad_(False)


class _Tracer(fx.Tracer):
    """Looks into no convolution or BatchNorm, also where they are timm's."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layer = isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        return layer or super().is_leaf_module(module, name)


def _is_stem(layer: nn.Conv2d) -> bool:
    """Whether it is the first convolution of an ImageNet ResNet, on a CPU."""
    shape = layer.weight.shape[1:], layer.stride, layer.padding, layer.dilation
    return layer.weight.is_cpu and shape == ((3, 7, 7), (2, 2), (3, 3), (1, 1))


class SpaceToDepth(nn.Module):
    """A 7x7 convolution with stride 2 as a 4x4 one on blocks of 2x2 pixels.

    The gradient of three channels with stride 2 is slow on a CPU; of twelve channels
    with stride 1 it takes two thirds of the time.
    Taught in: chapter 4
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        eight = F.pad(convolution.weight, (1, 0, 1, 0))  # (O, 3, 8, 8), zeros first
        self.weight = nn.Parameter(F.pixel_unshuffle(eight, 2))  # (O, 12, 4, 4)
        self.bias = convolution.bias

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        odd = pixels.shape[3] % 2, pixels.shape[2] % 2  # a block needs even sides
        padded = F.pad(pixels, (4, 2 + odd[0], 4, 2 + odd[1]))
        return F.conv2d(F.pixel_unshuffle(padded, 2), self.weight, self.bias)
