"""Convolutions as products: the same values and gradients as torch's, where they are used and where they are not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fashionlib import convolutions

CPU = torch.device("cpu")


def passes(pixels: torch.Tensor, weight: torch.Tensor, stride: int, products: bool) -> list[torch.Tensor]:
    """Result, gradient of the pixels, gradient of the weights; and the name of the node that made the result."""
    pixels, weight = pixels.clone().requires_grad_(), weight.clone().requires_grad_()
    layer = nn.Conv2d(weight.shape[1], len(weight), 3, stride=stride, padding=1, bias=False)
    layer.weight = nn.Parameter(weight)
    with convolutions.as_products(CPU if products else torch.device("meta")):
        result = layer(pixels)
    (result * torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)).sum().backward()
    assert ("_Product" in result.grad_fn.name()) == products
    return [result.detach(), pixels.grad, layer.weight.grad]


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(3, 3, 1), (5, 4, 1), (1, 2, 1), (5, 4, 2), (10, 9, 2), (3, 3, 2)]
)
def test_products_are_equal_to_the_convolution(height, width, stride):
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 5, height, width, dtype=torch.float64, generator=random)
    pixels = pixels.to(memory_format=torch.channels_last)
    weight = torch.randn(convolutions.CHANNELS, 5, 3, 3, dtype=torch.float64, generator=random)
    ours, theirs = (passes(pixels, weight, stride, products) for products in (True, False))
    for own, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_as_exact_as_the_library_s():
    random = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(64, 256, 3, padding=1, bias=False)
    pixels = torch.randn(8, 64, 4, 4, generator=random)
    exact = F.conv2d(pixels, layer.weight, padding=1)
    errors = []
    for context in (convolutions.as_products(CPU), convolutions.as_products(torch.device("meta"))):
        with torch.autocast("cpu", dtype=torch.bfloat16), context:
            result = layer(pixels)
        assert result.dtype == torch.bfloat16
        result.float().square().sum().backward()
        assert layer.weight.grad.dtype == torch.float32
        errors.append((result.float() - exact).norm() / exact.norm())
    assert errors[0] < 1.1 * errors[1] < 0.01


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((10, 7), {"padding": 1, "bias": False}),
        ((4, 4), {"padding": 1}),
        ((4, 4), {"padding": 0, "bias": False}),
        ((4, 4), {"padding": "same", "bias": False}),
        ((4, 4), {"padding": 1, "bias": False, "groups": 2}),
        ((4, 4), {"padding": 2, "dilation": 2, "bias": False}),
    ],
    ids=["large map", "bias", "no padding", "same", "groups", "dilation"],
)
def test_everything_else_is_left_to_the_library(size, options):
    layer = nn.Conv2d(4, 256, 3, **options)
    with convolutions.as_products(CPU):
        assert "_Product" not in layer(torch.randn(2, 4, *size)).grad_fn.name()


def test_one_picture_without_a_batch_and_a_pass_without_gradients():
    layer = nn.Conv2d(4, 256, 3, padding=1, bias=False)
    picture = torch.randn(4, 3, 3)
    with convolutions.as_products(CPU):
        alone = layer(picture)
        with torch.no_grad():
            together = layer(picture[None])
    torch.testing.assert_close(alone, together[0])
