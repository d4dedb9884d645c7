"""3x3 convolutions on small maps as matrix products: for a CPU, whose library is slow there.

    with convolutions.as_products(device):
        loss = network(pixels) ...      # forward; the backward pass follows, inside or outside

oneDNN reaches a fraction of the plain product's rate on maps of a few pixels with hundreds of channels, above all for
the gradient of the weights. Unfolded into columns, forward pass and both gradients are one product each.
"""

from __future__ import annotations

import contextlib

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

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


def _suits(pixels, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> bool:
    """Whether these are the arguments of a convolution of 3x3 as torchvision's ResNets have it, with a small result."""
    usual = stride in ((1, 1), (2, 2)) and (padding, dilation, groups) == ((1, 1), (1, 1), 1)
    if bias is not None or not usual or weight.shape[2:] != (3, 3) or len(weight) < CHANNELS or pixels.ndim != 4:
        return False
    height, width = (-(-side // stride[0]) for side in pixels.shape[2:])
    return height * width <= PIXELS and torch.is_grad_enabled()


class _Product(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, pixels: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        columns = _unfolded(pixels, stride)  # (B H W, 9 C)
        ctx.save_for_backward(columns.flatten(0, 2), weight)
        ctx.shape, ctx.stride = pixels.shape, stride
        return (columns @ weight.permute(0, 2, 3, 1).flatten(1).T).permute(0, 3, 1, 2)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        columns, weight = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, O)
        of_weight = (rows.T @ columns).view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        if ctx.stride == 1:
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)  # (9 O, C)
            of_pixels = (_unfolded(gradient, 1) @ turned).permute(0, 3, 1, 2)
        else:
            of_pixels = torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, ctx.stride, 1)
        return of_pixels, of_weight, None


def _unfolded(pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, C, H, W) to (B, H / stride, W / stride, 9 C): the 3x3 neighbours of every pixel, zeros outside."""
    padded = F.pad(pixels.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3).flatten(3)
