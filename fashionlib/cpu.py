"""The same convolutions in less time: for training on small maps, and for maps of saliency.

    with cpu.as_products(device):
        loss = network(pixels) ...      # forward; the backward pass follows, inside or outside
    maps = saliency.guided_backprop(cpu.folded(model), pixels)

oneDNN, a CPU's library, reaches a fraction of the plain product's rate on maps of a few pixels with hundreds of
channels, above all for the gradient of the weights. Unfolded into columns, forward pass and both gradients are one
product each. It is slow, too, where a convolution with stride 2 hands its gradient back to three channels.
"""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fashionlib.runtime import InputError

CHANNELS = 256  # of the result, and more
PIXELS = 25  # of the result's map, and fewer: from 10x7 on the library is as fast


def as_products(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which convolutions with small results run as products on a CPU; elsewhere it does nothing.

    Equal to torch's within the precision that it runs in. Forward and backward pass together, in ms on 2 cores of an
    Intel Xeon with AMX in bfloat16: 128 maps of 512 channels and 5x4 pixels 29 instead of 69, 64 of 3x3 11 instead of
    30. Taught in: chapter 2.
    """
    return _Products() if device.type == "cpu" else contextlib.nullcontext()


class _Products(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d and not kwargs and _suits(*args):
            return _Product.apply(args[0], args[1], args[3][0])
        return function(*args, **(kwargs or {}))


def _suits(
    pixels, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> bool:
    """Whether these are the arguments of a convolution of 3x3 as torchvision's ResNets have it, with a small result."""
    usual = stride in ((1, 1), (2, 2)) and (padding, dilation, groups) == (
        (1, 1),
        (1, 1),
        1,
    )
    if (
        bias is not None
        or not usual
        or weight.shape[2:] != (3, 3)
        or len(weight) < CHANNELS
        or pixels.ndim != 4
    ):
        return False
    height, width = (-(-side // stride[0]) for side in pixels.shape[2:])
    return height * width <= PIXELS and torch.is_grad_enabled()


class _Product(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(
        ctx, pixels: torch.Tensor, weight: torch.Tensor, stride: int
    ) -> torch.Tensor:
        columns = _unfolded(pixels, stride)  # (B H W, 9 C)
        ctx.save_for_backward(columns.flatten(0, 2), weight)
        ctx.shape, ctx.stride = pixels.shape, stride
        return (columns @ weight.permute(0, 2, 3, 1).flatten(1).T).permute(0, 3, 1, 2)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(
        ctx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        columns, weight = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, O)
        of_weight = (rows.T @ columns).view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        if ctx.stride == 1:
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)  # (9 O, C)
            of_pixels = (_unfolded(gradient, 1) @ turned).permute(0, 3, 1, 2)
        else:
            of_pixels = torch.nn.grad.conv2d_input(
                ctx.shape, weight, gradient, ctx.stride, 1
            )
        return of_pixels, of_weight, None


def _unfolded(pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, C, H, W) to (B, H / stride, W / stride, 9 C): the 3x3 neighbours of every pixel, zeros outside."""
    padded = F.pad(pixels.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return (
        padded.unfold(1, 3, stride)
        .unfold(2, 3, stride)
        .permute(0, 1, 2, 4, 5, 3)
        .flatten(3)
    )


# --- for gradients by the pixels --------------------------------------------------------------------------------------


def folded(model: nn.Module) -> nn.Module:
    """A frozen copy of a network in `eval()` whose BatchNorms are folded into the convolutions before them.

    Same logits and same gradients by the pixels, up to rounding; none by the weights. On a CPU a first convolution with
    stride 2 also hands its gradient back faster. Guided maps of ResNet18 at 224x224: 43 instead of 37 a second on 2
    cores of an Intel Xeon (`benchmarks/results/saliency.json`). The stages of a ResNet are no longer modules that are
    called, so Grad-CAM needs the original. Raises InputError for a network that torch.fx cannot trace.
    Taught in: chapter 4.
    """
    try:
        fast = fuse(copy.deepcopy(model).eval(), inplace=True).requires_grad_(False)
    except (fx.proxy.TraceError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"BatchNorm cannot be folded: torch.fx cannot trace {type(model).__name__} ({error}); use it as it is."
        ) from None
    name, first = next(
        ((n, m) for n, m in fast.named_modules() if isinstance(m, nn.Conv2d)),
        ("", None),
    )
    if first is not None and first.weight.device.type == "cpu" and _strided(first):
        fast.set_submodule(name, _FirstConvolution(first))
    return fast


def _strided(layer: nn.Conv2d) -> bool:
    """Whether the layer takes every other pixel of a picture, with a square kernel and as much padding on each side."""
    square = layer.kernel_size == (layer.kernel_size[0],) * 2 and layer.padding in (
        (p, p) for p in range(8)
    )
    plain = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == (
        (2, 2),
        (1, 1),
        1,
        "zeros",
    )
    return square and plain and layer.in_channels <= 4


class _FirstConvolution(nn.Module):
    """A convolution with stride 2 over the pixels, whose gradient by them is one convolution with stride 1."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.layer = layer

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return _Strided.apply(
            pixels, self.layer.weight, self.layer.bias, self.layer.padding[0]
        )


class _Strided(torch.autograd.Function):
    """Each pixel of a 2x2 block gets its gradient from another quarter of the kernel: four results of a small one."""

    @staticmethod
    def forward(
        ctx,
        pixels: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        padding: int,
    ):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.padding = pixels.shape, pixels.dtype, padding
        return F.conv2d(pixels, weight, bias, stride=2, padding=padding)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors  # (O, C, K, K)
        side, (count, channels, height, width) = weight.shape[2], ctx.shape
        before, after = (
            (side - 1 - ctx.padding) // 2,
            (1 + ctx.padding) // 2,
        )  # rows of the gradient on either side
        taps = (
            torch.arange(2)[:, None]
            + ctx.padding
            + 2 * (before - torch.arange(before + after + 1))
        )  # (2, n)
        taps = torch.where(
            (taps < 0) | (taps >= side), side, taps
        )  # `side` is a row of zeros
        kernel = F.pad(weight, (0, 1, 0, 1))[
            :, :, taps[:, None, :, None], taps[None, :, None, :]
        ]  # (O, C, 2, 2, n, n)
        kernel = kernel.permute(1, 2, 3, 0, 4, 5).flatten(0, 2).to(gradient.dtype)
        rows, columns = -(-height // 2), -(-width // 2)
        missing = max(rows - gradient.shape[2], columns - gradient.shape[3], 0)
        edge = max(before, after + missing)
        blocks = F.conv2d(
            gradient, kernel.to(memory_format=torch.channels_last), padding=edge
        )
        blocks = blocks[..., edge - before :, edge - before :][..., :rows, :columns]
        blocks = blocks.reshape(count, channels, 2, 2, rows, columns).permute(
            0, 1, 4, 2, 5, 3
        )
        return blocks.reshape(count, channels, 2 * rows, 2 * columns)[
            ..., :height, :width
        ].to(ctx.dtype), *[None] * 3
