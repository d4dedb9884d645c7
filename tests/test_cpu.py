"""What makes a CPU fast gives the same values and gradients as the plain network."""

import subprocess
import sys

import pytest
import torch
import torchvision
from networks import exact_guided, random_images
from torch import nn
from torch.nn import functional as F

from fashionlib import cpu, models, saliency
from fashionlib.runtime import InputError

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


# --- small convolutions as matrix products --------------------------------------------


def is_product(result: torch.Tensor) -> bool:
    return "_GemmConvolution" in result.grad_fn.name()


def forward_and_backward(
    pixels: torch.Tensor, weight: torch.Tensor, stride: int, device: torch.device
) -> list[torch.Tensor]:
    """Result, gradient of the pixels, gradient of the weights."""
    options = {"stride": stride, "padding": 1, "bias": False}
    layer = nn.Conv2d(weight.shape[1], len(weight), 3, **options)
    layer.weight = nn.Parameter(weight.clone())
    pixels = pixels.clone().requires_grad_()
    with cpu.gemm_convolutions(device):
        result = layer(pixels)
    assert is_product(result) == (device is CPU)
    factors = torch.linspace(-1, 1, result.numel(), dtype=result.dtype)
    (result * factors.view_as(result)).sum().backward()
    return [result.detach(), pixels.grad, layer.weight.grad]


@pytest.mark.parametrize(
    ("height", "width", "stride"),
    [(3, 3, 1), (5, 4, 1), (1, 2, 1), (5, 4, 2), (10, 9, 2), (3, 3, 2)],
)
def test_products_are_equal_to_the_convolution(height, width, stride):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 5, height, width, dtype=torch.float64, generator=rng)
    pixels = pixels.to(memory_format=torch.channels_last)
    shape = (cpu.MIN_CHANNELS, 5, 3, 3)
    weight = torch.randn(shape, dtype=torch.float64, generator=rng)
    ours = forward_and_backward(pixels, weight, stride, CPU)
    expected = forward_and_backward(pixels, weight, stride, ELSEWHERE)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_as_exact_as_the_library_s():
    rng = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(64, 256, 3, padding=1, bias=False)
    pixels = torch.randn(8, 64, 4, 4, generator=rng)
    exact = F.conv2d(pixels, layer.weight, padding=1)
    errors = []
    for device in (CPU, ELSEWHERE):
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            cpu.gemm_convolutions(device),
        ):
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
    with cpu.gemm_convolutions(CPU):
        assert not is_product(layer(torch.randn(2, 4, *size)))


def test_one_image_without_a_batch_and_a_pass_without_gradients():
    layer = nn.Conv2d(4, 256, 3, padding=1, bias=False)
    image = torch.randn(4, 3, 3)
    with cpu.gemm_convolutions(CPU):
        alone = layer(image)
        with torch.no_grad():
            together = layer(image[None])
    torch.testing.assert_close(alone, together[0])


# --- BatchNorm as part of the convolution ---------------------------------------------


def trained(model: nn.Module) -> nn.Module:
    """A network in float64 with statistics and scales as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model.double()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "tf_efficientnet_lite0",  # timm's layers, which hold their activations
        pytest.param("inception_v3", marks=pytest.mark.slow),
        pytest.param("vgg11_bn", marks=pytest.mark.slow),
    ],
)
def test_fused_networks_give_the_same_logits_and_gradients(name):
    torch.manual_seed(0)
    model = trained(models.build(name, enlarge=1.25))
    pixels, targets = random_images(1, 64, torch.float64), torch.tensor([4])
    fused = cpu.fuse_batchnorm(model)
    assert not [each for each in fused.modules() if isinstance(each, nn.BatchNorm2d)]
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    model.eval()
    torch.testing.assert_close(fused(pixels), model(pixels), rtol=1e-9, atol=1e-9)
    for method in (saliency.gradient, saliency.guided_backprop):
        found = method(fused, pixels, targets)
        expected = method(model, pixels, targets)
        assert (found - expected).norm() <= 1e-8 * expected.norm() != 0
    if name != "inception_v3":  # whose ReLUs are functions
        exact = exact_guided(model, pixels, targets)
        assert (found - exact).norm() <= 1e-8 * exact.norm()


class Shared(nn.Module):
    """Not to be fused: what has two uses, convolutions and a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)
        self.third = nn.Conv2d(3, 3, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.norm3 = nn.BatchNorm2d(3)

    def forward(self, pixels):
        first = self.first(pixels)
        second = self.second(first + self.norm1(first))
        second = self.norm2(self.second(second)) + self.norm3(pixels[..., 2:, 2:])
        return self.norm3(self.third(second))


@pytest.mark.parametrize("size", [(32, 32), (31, 33), (64, 47)])
def test_the_first_convolution_in_blocks_is_the_same(size):
    layer = nn.Conv2d(3, 8, 7, stride=2, padding=3)
    pixels = torch.randn(2, 3, *size)
    torch.testing.assert_close(cpu.SpaceToDepth(layer)(pixels), layer(pixels))


@pytest.mark.parametrize(("stride", "padding"), [(1, 3), (2, 2), (2, 0)])
def test_only_that_convolution_is_put_into_blocks(stride, padding):
    layer = nn.Conv2d(3, 8, 7, stride, padding, bias=False)
    model = nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU()).eval()
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(cpu.fuse_batchnorm(model)(pixels), model(pixels))


def test_what_another_layer_needs_as_it_is_stays_apart():
    torch.manual_seed(0)
    model, pixels = trained(Shared()).eval(), torch.randn(2, 3, 8, 8).double()
    expected = model(pixels)
    torch.testing.assert_close(cpu.fuse_batchnorm(model)(pixels), expected)


def test_fusing_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = trained(torchvision.models.resnet18(num_classes=6)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cpu.fuse_batchnorm(model)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Branching(nn.Module):
    def forward(self, pixels):
        return pixels if pixels.sum() > 0 else -pixels


@pytest.mark.parametrize(
    "prepare", [nn.Sequential, pytest.param(torch.compile, marks=pytest.mark.slow)]
)
def test_a_network_that_cannot_be_traced_is_one_line(prepare):
    with pytest.raises(InputError, match="use it as it is") as caught:
        cpu.fuse_batchnorm(prepare(Branching()))
    assert len(str(caught.value).splitlines()) == 1


# --- memory ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_only_where_that_is_asked_for():
    """64 MiB are filled again and again: in new pages each time, or in the same.

    With the end of the context all that was kept goes back; of what is freed later, no
    more stays than the hole that it has left.
    """
    program = """
import psutil, resource, torch
from fashionlib import cpu

def megabytes():
    return psutil.Process().memory_info().rss / 1e6

def faults():
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain, small = faults(), megabytes()
try:
    with cpu.keep_freed_memory(torch.device("cpu")):
        kept = faults()
        blocks = [torch.ones(2**22) for _ in range(40)]  # 671 MB
        del blocks
        large = megabytes()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
after = megabytes()
blocks = [torch.ones(2**24) for _ in range(30)]  # 2,013 MB
del blocks
print(plain, kept, small, large, after, megabytes())
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    plain, kept, small, large, after, later = map(float, result.stdout.split())
    assert 2 * kept < plain
    assert large > small + 600
    assert after < small + 100
    assert later < large + 100
