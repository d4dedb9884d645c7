"""Convolutions as products: the same values and gradients as torch's, where they are used and where they are not."""

import pytest
import torch
import torchvision
from networks import assert_untouched, pictures, snapshot, trained
from torch import nn
from torch.nn import functional as F

from fashionlib import cpu, saliency
from fashionlib.runtime import InputError

CPU = torch.device("cpu")


def passes(
    pixels: torch.Tensor, weight: torch.Tensor, stride: int, products: bool
) -> list[torch.Tensor]:
    """Result, gradient of the pixels, gradient of the weights; and the name of the node that made the result."""
    pixels, weight = pixels.clone().requires_grad_(), weight.clone().requires_grad_()
    layer = nn.Conv2d(
        weight.shape[1], len(weight), 3, stride=stride, padding=1, bias=False
    )
    layer.weight = nn.Parameter(weight)
    with cpu.as_products(CPU if products else torch.device("meta")):
        result = layer(pixels)
    (
        result
        * torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    ).sum().backward()
    assert ("_Product" in result.grad_fn.name()) == products
    return [result.detach(), pixels.grad, layer.weight.grad]


@pytest.mark.parametrize(
    ("height", "width", "stride"),
    [(3, 3, 1), (5, 4, 1), (1, 2, 1), (5, 4, 2), (10, 9, 2), (3, 3, 2)],
)
def test_products_are_equal_to_the_convolution(height, width, stride):
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 5, height, width, dtype=torch.float64, generator=random)
    pixels = pixels.to(memory_format=torch.channels_last)
    weight = torch.randn(cpu.CHANNELS, 5, 3, 3, dtype=torch.float64, generator=random)
    ours, theirs = (
        passes(pixels, weight, stride, products) for products in (True, False)
    )
    for own, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_as_exact_as_the_library_s():
    random = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(64, 256, 3, padding=1, bias=False)
    pixels = torch.randn(8, 64, 4, 4, generator=random)
    exact = F.conv2d(pixels, layer.weight, padding=1)
    errors = []
    for context in (cpu.as_products(CPU), cpu.as_products(torch.device("meta"))):
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
    with cpu.as_products(CPU):
        assert "_Product" not in layer(torch.randn(2, 4, *size)).grad_fn.name()


def test_one_picture_without_a_batch_and_a_pass_without_gradients():
    layer = nn.Conv2d(4, 256, 3, padding=1, bias=False)
    picture = torch.randn(4, 3, 3)
    with cpu.as_products(CPU):
        alone = layer(picture)
        with torch.no_grad():
            together = layer(picture[None])
    torch.testing.assert_close(alone, together[0])


# --- for gradients by the pixels --------------------------------------------------------------------------------------


def build(name: str) -> nn.Module:
    """A network in float64 whose BatchNorms do something."""
    torch.manual_seed(0)
    options = (
        {"aux_logits": True, "init_weights": False} if name == "inception_v3" else {}
    )
    return trained(
        torchvision.models.get_model(name, num_classes=6, **options)
    ).double()


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 64),
        ("resnet18", 75),
        ("resnet50", 64),
        ("vgg11_bn", 64),
        ("inception_v3", 95),
    ],
)
def test_folded_networks_give_the_same_logits_and_gradients(name, side):
    model, pixels, targets = (
        build(name).train(),
        pictures(2, side, torch.float64),
        torch.tensor([4, 1]),
    )
    before = snapshot(model)
    fast = cpu.folded(model)
    assert_untouched(model, before)
    assert not [m for m in fast.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    torch.testing.assert_close(fast(pixels), model.eval()(pixels), rtol=1e-9, atol=1e-9)
    for method in (saliency.gradient, saliency.guided_backprop):
        ours, wanted = (method(network, pixels, targets) for network in (fast, model))
        assert (ours - wanted).norm() <= 1e-8 * wanted.norm() != 0


@pytest.mark.parametrize(
    ("kernel", "padding"),
    [(7, 3), (3, 0), (3, 1), (5, 2), (4, 1), (1, 0), (7, 0), (2, 3)],
)
@pytest.mark.parametrize("size", [(16, 16), (17, 14), (9, 11)])
def test_a_strided_convolution_hands_back_the_same_gradient(kernel, padding, size):
    torch.manual_seed(0)
    layer = (
        nn.Conv2d(3, 5, kernel, stride=2, padding=padding)
        .double()
        .requires_grad_(False)
    )
    found = []
    for network in (nn.Sequential(layer), cpu.folded(nn.Sequential(layer))):
        pixels = torch.randn(
            2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        result = network(pixels.requires_grad_())
        (
            result
            * torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
        ).sum().backward()
        found.append(pixels.grad)
    assert "_Strided" in result.grad_fn.name()
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_the_gradient_comes_back_in_the_pixels_precision():
    layer = nn.Conv2d(3, 8, 7, stride=2, padding=3)
    pixels = torch.randn(1, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = cpu.folded(nn.Sequential(layer))(pixels)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    exact = torch.autograd.grad(layer(pixels).sum(), pixels)[0]
    assert pixels.grad.dtype == torch.float32
    assert (pixels.grad - exact).norm() < 0.01 * exact.norm()


def test_a_network_that_cannot_be_traced_is_one_line():
    class Branching(nn.Module):
        def forward(self, pixels):
            return pixels if pixels.sum() > 0 else -pixels

    with pytest.raises(
        InputError, match=r"torch\.fx cannot trace Branching .*; use it as it is"
    ):
        cpu.folded(Branching())


def test_a_compiled_network_is_one_line():
    with pytest.raises(
        InputError, match=r"torch\.fx cannot trace OptimizedModule .*; use it as it is"
    ):
        cpu.folded(torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3))))
