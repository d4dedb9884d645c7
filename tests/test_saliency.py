"""Saliency: the guided rule by hand and against Captum, models left untouched, averages."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import GuidedBackprop
from networks import assert_untouched, pictures, small, snapshot, trained
from torch import nn
from torch.nn import functional as F

from fashionlib import images, saliency
from fashionlib.runtime import InputError


class Functional(nn.Module):
    """Every way to call ReLU, none of them a module; one of them ignores what it returns."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 5, 3), *(nn.Conv2d(5, 5, 3) for _ in range(7))]
        )
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        activations = (
            *(F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
            *(
                lambda x: F.relu(x, inplace=True),
                lambda x: F.relu(x, True),
                self.forgetful,
            ),
        )
        for layer, activation in zip(self.layers, activations, strict=True):
            x = activation(layer(x))
        return self.head(x.mean((2, 3)))

    def forgetful(self, x):
        x.relu_()
        return x

    def as_modules(self):
        parts = [part for layer in self.layers for part in (layer, nn.ReLU())]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.head)


# --- the guided rule --------------------------------------------------------------------------------------------------


def test_guided_rule_by_hand():
    x = torch.tensor([[-1.0, 2.0, 3.0, 0.0]], requires_grad=True)
    saliency.GuidedReLU.apply(x, False).backward(torch.tensor([[5.0, 5.0, -5.0, 5.0]]))
    assert x.grad.tolist() == [
        [0, 5, 0, 0]
    ]  # x negative; both positive; gradient negative; x zero


def test_toy_network_by_hand():
    """4x4 pixels; two 1x1 filters, +1 and -1; ReLU; the head adds filter 0 on the left and takes filter 1 off."""
    first, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(32, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])[:, :, None, None])
        left = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4, 1)
        head.weight.copy_(torch.stack([left, -torch.ones(4, 4)]).reshape(1, 32))
    model = nn.Sequential(first, nn.ReLU(inplace=True), nn.Flatten(), head)
    red = torch.tensor([[1.0, -1, 1, -1], [2, 2, 2, 2], [-1, -1, -1, -1], [0, 1, 0, 1]])
    pixels = torch.stack([red, torch.ones(4, 4), torch.ones(4, 4)])[None]
    # filter 0 fires where red > 0 and counts on the left; filter 1 fires where red < 0, and its gradient is negative
    guided = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    plain = torch.tensor([[1.0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    for method, expected in (
        (saliency.guided_backprop, guided),
        (saliency.gradient, plain),
    ):
        maps = method(model, pixels)
        assert torch.equal(maps[0, 0], expected)
        assert not maps[0, 1:].any()


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(
    "build",
    [
        lambda: trained(torchvision.models.resnet18(num_classes=6)),
        lambda: torchvision.models.vgg11(num_classes=6),
    ],
    ids=["resnet18", "vgg11"],
)
def test_equals_captum(build):
    torch.manual_seed(0)
    model = build().double().eval()
    pixels, targets = pictures(2, dtype=torch.float64), torch.tensor([4, 1])
    ours = saliency.guided_backprop(model, pixels, targets)
    theirs = GuidedBackprop(model).attribute(
        pixels.clone().requires_grad_(), target=targets
    )
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= 1e-8 * theirs.norm()
    assert (
        ours - saliency.gradient(model, pixels, targets)
    ).norm() > 0.1 * theirs.norm()


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_functional_relus_are_guided():
    torch.manual_seed(0)
    model = Functional().double()
    pixels = pictures(2, 24, torch.float64)
    targets = torch.tensor([0, 3])
    with saliency.guided_relus(model) as mode:
        model(pixels)
    assert mode.calls == 8
    ours = saliency.guided_backprop(model, pixels, targets)
    theirs = GuidedBackprop(model.as_modules()).attribute(
        pixels.clone().requires_grad_(), target=targets
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)
    assert (ours - saliency.gradient(model, pixels, targets)).norm() > 0.1 * ours.norm()


def test_outside_the_context_relu_is_plain():
    with saliency.guided_relus(nn.ReLU()):
        nn.ReLU()(torch.ones(1))
    x = torch.ones(1, requires_grad=True)
    torch.relu(x).backward(torch.tensor([-1.0]))
    assert x.grad.tolist() == [-1]


def test_forward_pass_is_unchanged():
    model = small().eval()
    pixels = pictures()
    with saliency.guided_relus(model) as mode:
        guided = model(pixels)
    assert mode.calls == 3
    assert torch.equal(guided, model(pixels))


def test_predicted_class_is_the_default_target():
    model, pixels = small().eval(), pictures()
    predicted = model(pixels).argmax(1)
    for method in (saliency.guided_backprop, saliency.gradient, saliency.grad_cam):
        assert torch.equal(method(model, pixels), method(model, pixels, predicted))
        assert not torch.equal(
            method(model, pixels), method(model, pixels, (predicted + 1) % 6)
        )


def test_batch_equals_one_by_one():
    model, pixels = small().double(), pictures(4, dtype=torch.float64)
    targets = torch.tensor([0, 2, 2, 5])
    for method in (saliency.guided_backprop, saliency.gradient, saliency.grad_cam):
        singly = [
            method(model, pixels[i : i + 1], targets[i : i + 1]) for i in range(4)
        ]
        torch.testing.assert_close(method(model, pixels, targets), torch.cat(singly))


# --- nothing is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [saliency.guided_backprop, saliency.gradient, saliency.grad_cam]
)
def test_model_is_left_as_it_was(method):
    model = small().train()
    model.bn2.eval()  # modes and flags may be mixed
    model.conv1.weight.requires_grad_(False)
    before, pixels = snapshot(model), pictures()
    with torch.no_grad():
        inside = method(model, pixels)
    assert_untouched(model, before)
    assert torch.equal(pixels, pictures())
    assert not pixels.requires_grad
    assert torch.equal(
        inside, method(copy.deepcopy(model).eval(), pixels)
    )  # eval() decides, not the mode it came in


def test_model_is_left_as_it_was_after_an_exception():
    model = small().train()
    before = snapshot(model)

    def fail(*_):
        raise RuntimeError("inside")

    handle = model.fc.register_forward_hook(fail)
    for method in (saliency.guided_backprop, saliency.gradient, saliency.grad_cam):
        with pytest.raises(RuntimeError, match="inside"):
            method(model, pictures())
    handle.remove()
    assert_untouched(model, before)
    x = torch.ones(1, requires_grad=True)
    torch.relu(x).backward(torch.tensor([-1.0]))
    assert x.grad.tolist() == [-1]  # the mode is off again


def test_works_where_gradients_are_off():
    model = small()
    with torch.inference_mode():
        pixels = pictures()
        maps = saliency.guided_backprop(model, pixels)
    assert torch.equal(maps, saliency.guided_backprop(model, pictures()))


def test_first_layer_in_place_does_not_change_the_pixels():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))
    pixels = pictures(1, 2)
    saliency.guided_backprop(model, pixels)
    assert torch.equal(pixels, pictures(1, 2))


def test_refuses_a_model_without_relu_and_a_compiled_one():
    gelu = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    with pytest.raises(InputError, match="no ReLU call in Sequential"):
        saliency.guided_backprop(gelu, pictures(1, 8))
    assert saliency.gradient(gelu, pictures(1, 8)).any()
    relu = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    with pytest.raises(InputError, match="compiled"):
        saliency.guided_backprop(torch.compile(relu), pictures(1, 8))
    relu[0].compile()
    with pytest.raises(InputError, match="compiled"):
        saliency.guided_backprop(relu, pictures(1, 8))


# --- maps -------------------------------------------------------------------------------------------------------------


def test_magnitude_adds_the_channels():
    maps = torch.tensor([1.0, -2.0, 0.5])[None, :, None, None]
    assert saliency.magnitude(maps).tolist() == [[[3.5]]]


def test_sobel_by_hand():
    """A vertical edge from 0 to 255: (1 + 2 + 1) / 8 of a grey value on both sides of it; a flat picture has none."""
    values = np.zeros((2, 4, 4, 3), np.uint8)
    values[0, :, 2:] = 255
    edges = saliency.sobel(images.normalise(torch.from_numpy(values)))
    expected = torch.tensor([0, 0.5, 0.5, 0]).repeat(4, 1)
    torch.testing.assert_close(
        edges, torch.stack([expected, torch.zeros(4, 4)]), atol=1e-6, rtol=0
    )


def test_foreground_is_what_is_not_near_white():
    values = torch.tensor(
        [[255, 255, 255], [240, 240, 240], [255, 255, 239], [0, 0, 0]],
        dtype=torch.uint8,
    )
    mask = saliency.foreground(images.normalise(values[None, None]))
    assert mask.tolist() == [[[False, False, True, True]]]


def test_outline_by_hand():
    """A 4x3 block that the lower edge cuts: the band is one pixel on both sides of the outline, not at the edge."""
    inside = torch.zeros(1, 6, 7, dtype=torch.bool)
    inside[0, 2:, 2:5] = True
    expected = """0000000
                  0111110
                  0111110
                  0113110
                  0113110
                  0113110"""
    rows = [[int(value) for value in row.strip()] for row in expected.splitlines()]
    assert saliency.outline_masks(inside, 1)[0].tolist() == rows


def test_in_batches_equals_at_once():
    model, pixels, targets = (
        small().double(),
        pictures(5, 16, torch.float64),
        torch.tensor([0, 1, 2, 3, 4]),
    )
    maps = saliency.in_batches(saliency.gradient, model, pixels, targets, 2)
    torch.testing.assert_close(maps, saliency.gradient(model, pixels, targets))


# --- averages ---------------------------------------------------------------------------------------------------------


def test_one_picture_has_no_standard_error():
    model, pixels = small(), pictures(1, 32)
    averages = saliency.class_averages(
        model, [(pixels, torch.zeros(1, dtype=torch.int64))]
    )
    assert averages.standard_error.isnan().all()


@pytest.mark.parametrize("unit", [True, False])
def test_streaming_averages_equal_direct_ones(unit):
    model, pixels = small().double(), pictures(30, 32, torch.float64)
    model.fc.bias.data -= model.eval()(pixels).mean(0)  # several classes are predicted
    batches = [
        (part, torch.zeros(len(part), dtype=torch.int64)) for part in pixels.split(7)
    ]  # the last has two
    averages = saliency.class_averages(model, batches, unit=unit)
    predicted = model.eval()(pixels).argmax(1)
    maps = saliency.guided_backprop(model, pixels)
    size = saliency.magnitude(maps)
    if unit:
        maps, size = (
            maps / size.mean((1, 2))[:, None, None, None],
            size / size.mean((1, 2))[:, None, None],
        )
    assert averages.count.tolist() == predicted.bincount(minlength=6).tolist()
    assert (averages.count > 1).sum() > 1
    for k in range(6):
        if not (of := predicted == k).any():
            assert averages.magnitude[k].isnan().all()
            continue
        torch.testing.assert_close(averages.signed[k], maps[of].mean(0))
        torch.testing.assert_close(averages.magnitude[k], size[of].mean(0))
        error = size[of].std(0) / of.sum().sqrt()
        torch.testing.assert_close(
            averages.standard_error[k], error, equal_nan=True, rtol=1e-6, atol=1e-9
        )
        torch.testing.assert_close(averages.image[k], pixels[of].mean(0))
        torch.testing.assert_close(
            averages.edges[k], saliency.sobel(pixels)[of].mean(0)
        )


def test_shuffled_averages_take_as_many_pictures_of_any_class():
    model, pixels = small(), pictures(12, 16)
    batches = [(pixels, torch.zeros(12, dtype=torch.int64))]
    averages = saliency.class_averages(model, batches)
    size = saliency.magnitude(saliency.guided_backprop(model, pixels))
    size = (size / size.mean((1, 2))[:, None, None]).double()
    weighted = (averages.shuffled.nan_to_num() * averages.count[:, None, None]).sum(0)
    torch.testing.assert_close(
        weighted, size.sum(0), rtol=1e-5, atol=1e-8
    )  # every picture is in one group
    seen = averages.count > 0
    assert (averages.shuffled[seen].mean((1, 2)) - 1).abs().max() < 1e-5
    if seen.sum() > 1:
        assert not torch.allclose(averages.shuffled[seen], averages.magnitude[seen])


def test_averages_of_nothing_are_refused():
    with pytest.raises(InputError, match="at least one batch"):
        saliency.class_averages(small(), [])
