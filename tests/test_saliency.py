"""The guided rule by hand, against Captum and an exact reference; averages."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import GuidedBackprop, IntegratedGradients
from conftest import from_chapter
from networks import (
    assert_untouched,
    exact_guided,
    random_images,
    small,
    snapshot,
    trained,
)
from torch import nn
from torch.nn import functional as F

from fashionlib import images, saliency
from fashionlib.runtime import InputError

chapter_3b = from_chapter("03b_methods")
each_method = pytest.mark.parametrize("name", chapter_3b.METHODS)


class Functional(nn.Module):
    """A convolution before each of some activations, given as functions."""

    def __init__(self, *activations):
        super().__init__()
        convolutions = [nn.Conv2d(3, 5, 3)]
        convolutions += [nn.Conv2d(5, 5, 3) for _ in activations[1:]]
        self.layers, self.head = nn.ModuleList(convolutions), nn.Linear(5, 4)
        self.activations = activations

    def forward(self, x):
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = activation(layer(x))
        return self.head(x.mean((2, 3)))

    def as_modules(self, activation=nn.ReLU):
        parts = [part for layer in self.layers for part in (layer, activation())]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.head)


def forgetful(x):
    """ReLU in place, whose result is not used."""
    x.relu_()
    return x


# --- the guided rule ------------------------------------------------------------------


def test_guided_rule_by_hand():
    x = torch.tensor([-1.0, 2.0, 3.0, 0.0, 6.0, 7.0], requires_grad=True)
    gradient = torch.tensor([5.0, 5.0, -5.0, 5.0, 5.0, 5.0])
    saliency.GuidedReLU.apply(x).backward(gradient)
    # x negative; both positive; gradient negative; x zero; both positive
    assert x.grad.tolist() == [0, 5, 0, 0, 5, 5]
    x.grad = None
    y = saliency.GuidedReLU.apply(x, False, 6.0)
    y.backward(gradient)
    assert y.tolist() == [0, 2, 3, 0, 6, 6]
    assert x.grad.tolist() == [0, 5, 0, 0, 0, 0]  # at and above its ceiling: nothing


def test_toy_network_by_hand():
    """4x4 pixels; 1x1 filters +1 and -1; ReLU; plus filter 0 at the left, minus 1."""
    first, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(32, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])[:, :, None, None])
        left = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4, 1)
        head.weight.copy_(torch.stack([left, -torch.ones(4, 4)]).reshape(1, 32))
    model = nn.Sequential(first, nn.ReLU(inplace=True), nn.Flatten(), head)
    red = torch.tensor([[1.0, -1, 1, -1], [2, 2, 2, 2], [-1, -1, -1, -1], [0, 1, 0, 1]])
    pixels = torch.stack([red, torch.ones(4, 4), torch.ones(4, 4)])[None]
    # filter 0 is active where red > 0 and counts at the left; filter 1 where red < 0,
    # and its gradient is negative
    guided = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    plain = torch.tensor([[1.0, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    expected = {saliency.guided_backprop: guided, saliency.gradient: plain}
    for method, values in expected.items():
        maps = method(model, pixels, torch.tensor([0]))
        assert torch.equal(maps[0, 0], values)
        assert not maps[0, 1:].any()


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_equals_captum(architecture):
    torch.manual_seed(0)
    model = torchvision.models.get_model(architecture, num_classes=6)
    model = trained(model).double().eval()
    pixels, targets = random_images(2, dtype=torch.float64), torch.tensor([4, 1])
    ours = saliency.guided_backprop(model, pixels, targets)
    leaf = pixels.clone().requires_grad_()
    theirs = GuidedBackprop(model).attribute(leaf, target=targets)
    plain = saliency.gradient(model, pixels, targets)
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= 1e-8 * theirs.norm()
    assert (ours - exact_guided(model, pixels, targets)).norm() <= 1e-8 * ours.norm()
    assert (ours - plain).norm() > 0.1 * theirs.norm()


def test_relu6_of_a_mobile_network_is_guided():
    """mobilenet_v2 has 35 in-place ReLU6; EfficientNet-Lite is made of them, too."""
    torch.manual_seed(0)
    model = trained(torchvision.models.mobilenet_v2(num_classes=6)).double().eval()
    for module in model.modules():  # activations above 6 occur
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 2
    pixels, targets = random_images(2, dtype=torch.float64), torch.tensor([4, 1])
    with saliency.guided_relus(model) as mode:
        ours = saliency.gradient(model, pixels, targets)
    assert (mode.calls, mode.others) == (35, 0)
    assert (ours - exact_guided(model, pixels, targets)).norm() <= 1e-8 * ours.norm()
    plain = saliency.gradient(model, pixels, targets)
    assert (ours - plain).norm() > 0.1 * ours.norm()


@pytest.mark.parametrize(
    ("activations", "module"),
    [
        (
            (
                *(F.relu, torch.relu, torch.relu_, torch.Tensor.relu, forgetful),
                *(torch.Tensor.relu_, lambda x: F.relu(input=x, inplace=True)),
                *(lambda x: F.relu(x, True), lambda x: torch.relu(input=x)),
            ),
            nn.ReLU,
        ),
        (
            (
                *(F.relu6, lambda x: F.relu6(x, True), nn.ReLU6(), nn.ReLU6(True)),
                *(lambda x: F.relu6(x, inplace=True), nn.Hardtanh(0, 6)),
                lambda x: F.hardtanh(x, 0.0, 6.0),
            ),
            nn.ReLU6,
        ),
    ],
    ids=["ReLU", "ReLU6"],
)
def test_every_way_to_call_it_is_guided(activations, module):
    torch.manual_seed(0)
    model = Functional(*activations).double()
    for layer in model.layers:  # values on both sides of 0 and of 6
        layer.weight.data *= 4
    pixels, targets = random_images(2, 24, torch.float64), torch.tensor([0, 3])
    with saliency.guided_relus(model) as mode:
        model(pixels).sum().backward()
    assert mode.calls == len(activations)  # and none in the backward pass
    ours = saliency.guided_backprop(model, pixels, targets)
    exact = exact_guided(model.as_modules(module), pixels, targets)
    torch.testing.assert_close(ours, exact, rtol=1e-8, atol=0)
    assert (ours - saliency.gradient(model, pixels, targets)).norm() > 0.1 * ours.norm()


def test_outside_the_context_relu_is_plain():
    with saliency.guided_relus(nn.ReLU()):
        nn.ReLU()(torch.ones(1))
    x = torch.ones(1, requires_grad=True)
    torch.relu(x).backward(torch.tensor([-1.0]))
    assert x.grad.tolist() == [-1]


def test_forward_pass_is_unchanged():
    model, pixels = small().eval(), random_images()
    with saliency.guided_relus(model) as mode:
        guided = model(pixels)
    assert mode.calls == 3
    assert torch.equal(guided, model(pixels))


def test_batch_equals_one_by_one():
    model, pixels = small().double(), random_images(4, dtype=torch.float64)
    targets = torch.tensor([0, 2, 2, 5])
    for name, method in chapter_3b.METHODS.items():
        singly = saliency.in_batches(method, model, pixels, targets, 1)
        together = method(model, pixels, targets)
        torch.testing.assert_close(together, singly, msg=name)


# --- refusals and notices -------------------------------------------------------------


def head(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_refuses_networks_without_relu():
    pixels, targets = random_images(1, 8), torch.tensor([0])
    for activation in (nn.GELU(), nn.Hardtanh()):
        model = head(nn.Conv2d(3, 4, 3), activation)
        with pytest.raises(InputError, match="no ReLU"):
            saliency.guided_backprop(model, pixels, targets)
        assert saliency.gradient(model, pixels, targets).any()


def test_refuses_networks_whose_relus_do_not_see_the_image():
    """As in Swin's version 2: the map would silently be the plain gradient."""
    model = head(nn.Conv2d(3, 4, 3), nn.GELU())
    model.forward = lambda x: nn.Sequential.forward(model, x) + model[0].bias.relu()
    with pytest.raises(InputError, match="sees the image"):
        saliency.guided_backprop(model, random_images(1, 8), torch.tensor([0]))


@pytest.mark.slow  # importing torch's compiler takes 4 s
def test_refuses_compiled_networks():
    pixels, targets = random_images(1, 8), torch.tensor([0])
    model = head(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(InputError, match="compiled"):
        saliency.guided_backprop(torch.compile(model), pixels, targets)
    model[0].compile()
    with pytest.raises(InputError, match="compiled"):
        saliency.guided_backprop(model, pixels, targets)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_refuses_scripted_networks():
    """Also where only a part is: its ReLU would silently keep the plain gradient."""
    part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    for model in (part, head(part, nn.ReLU())):
        with pytest.raises(InputError, match="hidden"):
            saliency.guided_backprop(model, random_images(1, 8), torch.tensor([0]))


def test_a_traced_network_is_guided_as_the_original():
    pixels, targets = random_images(), torch.tensor([0, 1, 2])
    expected = saliency.guided_backprop(small(), pixels, targets)
    traced = torch.fx.symbolic_trace(small().eval())
    assert torch.equal(saliency.guided_backprop(traced, pixels, targets), expected)


class Tokens(nn.Module):
    """Patches through a transformer, whose fast path in `eval()` hides its calls."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.encoder(self.patches(x).flatten(2).mT).mean(1)


def test_the_relu_of_a_transformer_is_guided_on_its_fast_path_too():
    model, pixels = Tokens().eval(), random_images(2, 16)
    with saliency.guided_relus(model) as mode, torch.no_grad():
        model(pixels)
    assert (mode.calls, mode.others) == (1, 0)
    guided = saliency.guided_backprop(model, pixels, torch.tensor([0, 1]))
    plain = saliency.gradient(model, pixels, torch.tensor([0, 1]))
    assert (guided - plain).norm() > 0.1 * plain.norm()


OTHERS = [
    *(F.gelu, F.silu, F.mish, F.hardswish, F.leaky_relu, F.elu, F.selu, F.celu),
    *(F.hardsigmoid, F.softplus, F.softsign, F.logsigmoid, F.tanhshrink, F.rrelu),
    *(F.hardshrink, F.softshrink, F.hardtanh, nn.PReLU(), nn.Threshold(0, 0)),
    *(torch.sigmoid, torch.tanh, torch.selu, torch.celu, torch.rrelu),
    *(nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Softplus(), nn.Hardtanh(-1, 6)),
    *(torch.Tensor.sigmoid, torch.Tensor.tanh, F.sigmoid, F.tanh),
    *(torch.sigmoid_, torch.tanh_, torch.selu_, torch.celu_, torch.Tensor.sigmoid_),
    *(F.elu_, F.leaky_relu_, F.hardtanh_, nn.SiLU(inplace=True), nn.ELU(inplace=True)),
    *(lambda x: F.threshold(x, 0.1, 0, inplace=True), lambda x: x.clamp(min=0)),
    *(lambda x: F.glu(torch.cat([x, x], 1), 1), lambda x: torch.clamp_min(x, 0)),
    *(lambda x: x.clip(0), lambda x: torch.maximum(x, torch.zeros_like(x))),
]


@pytest.mark.parametrize("activation", OTHERS)
def test_every_other_activation_is_counted(activation):
    """Whatever it is called, and also those that may stand for a ReLU."""
    model = Functional(F.relu, activation)
    with saliency.guided_relus(model) as mode:
        model(random_images(1, 8)).sum().backward()
    assert (mode.calls, mode.others) == (1, 1)


def test_says_once_what_is_not_guided(capsys):
    pixels, targets = random_images(1, 64), torch.tensor([0])
    model = torchvision.models.mobilenet_v3_small(num_classes=6)
    saliency._print_once.cache_clear()  # another test may have had this line
    with saliency.guided_relus(model) as mode:
        model.eval()(pixels)
    assert (mode.calls, mode.others) == (14, 28)  # 19 Hardswish, 9 Hardsigmoid
    for _ in range(2):
        saliency.guided_backprop(model, pixels, targets)
    assert capsys.readouterr().out.count("28") == 1
    saliency.guided_backprop(small(), pixels, targets)
    assert not capsys.readouterr().out


# --- nothing is left behind -----------------------------------------------------------


@each_method
def test_one_map_an_image_and_the_model_as_it_was(name):
    model = small().train()
    model.bn2.eval()  # modes and flags may be mixed
    model.conv1.weight.requires_grad_(False)
    before, pixels, targets = snapshot(model), random_images(), torch.tensor([0, 1, 2])
    with torch.no_grad():
        maps = chapter_3b.METHODS[name](model, pixels, targets)
    assert maps.shape in ((3, 3, 64, 64), (3, 1, 64, 64))
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert_untouched(model, before)
    assert torch.equal(pixels, random_images())
    assert not pixels.requires_grad
    # eval() decides, not the mode in which the model came
    again = chapter_3b.METHODS[name](copy.deepcopy(model).eval(), pixels, targets)
    assert torch.equal(maps, again)


@each_method
def test_frozen_networks_have_maps_too(name):
    pixels, targets = random_images(2, 32), torch.tensor([0, 1])
    method, frozen = chapter_3b.METHODS[name], small().requires_grad_(False)
    expected = method(small(), pixels, targets)
    torch.testing.assert_close(method(frozen, pixels, targets), expected)


def test_model_is_left_as_it_was_after_an_exception():
    model = small().train()
    before = snapshot(model)

    def fail(*_):
        raise RuntimeError("inside")

    handle = model.fc.register_forward_hook(fail)
    for method in (saliency.guided_backprop, saliency.grad_cam, chapter_3b.occlusion):
        with pytest.raises(RuntimeError, match="inside"):
            method(model, random_images(), torch.tensor([0, 1, 2]))
    handle.remove()
    assert_untouched(model, before)
    x = torch.ones(1, requires_grad=True)
    torch.relu(x).backward(torch.tensor([-1.0]))
    assert x.grad.tolist() == [-1]  # the rule is off again


@pytest.mark.parametrize("method", saliency.METHODS.values(), ids=saliency.METHODS)
def test_works_where_gradients_are_off(method):
    model = small().eval()
    with torch.inference_mode():
        pixels = random_images()
        targets = model(pixels).argmax(1)
        maps = method(model, pixels, targets)
    assert torch.equal(maps, method(model, random_images(), targets))
    assert torch.equal(maps, method(model, pixels, targets))


def test_first_layer_in_place_does_not_change_the_pixels():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))
    pixels = random_images(1, 2)
    saliency.guided_backprop(model, pixels, torch.tensor([0]))
    assert torch.equal(pixels, random_images(1, 2))


# --- what the methods promise ---------------------------------------------------------


class Corner(nn.Module):
    """Two logits: 0, and how dark the upper left quarter is; nothing else matters."""

    def forward(self, x):
        height, width = x.shape[2] // 2, x.shape[3] // 2
        dark = (images.white(x) - x)[:, :, :height, :width].relu().sum((1, 2, 3))
        return torch.stack([torch.zeros_like(dark), dark], 1)


def grey(size=32):
    return images.normalize(torch.full((1, size, size, 3), 60, dtype=torch.uint8))


@each_method
def test_the_target_decides(name):
    model, pixels = small(), random_images(2, 32)
    first = chapter_3b.METHODS[name](model, pixels, torch.tensor([0, 0]))
    second = chapter_3b.METHODS[name](model, pixels, torch.tensor([1, 1]))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "name", ["gradient", "integrated gradients", "SmoothGrad", "occlusion", "guided"]
)
def test_the_place_that_matters_is_found(name):
    maps = chapter_3b.METHODS[name](Corner(), grey(), torch.tensor([1]))
    size = saliency.magnitude(maps)[0]
    assert size[:16, :16].mean() > 0
    size[:24, :24] = 0  # a patch of occlusion reaches over the quarter by half its side
    assert size.max() == 0


def test_smooth_grad_depends_on_the_image_alone():
    """Not on the global generator, nor on what else is in the batch."""
    model, pale = small(), random_images(2, 32) / 10
    maps = []
    for beside in (pale[1:], 100 * pale[1:]):
        batch = torch.cat([beside, pale[:1]])
        maps.append(chapter_3b.smooth_grad(model, batch, torch.tensor([0, 0]))[1])
    alone = chapter_3b.smooth_grad(model, pale[:1], torch.tensor([0]))[0]
    torch.testing.assert_close(maps, [alone, alone])
    plain = saliency.gradient(model, pale[:1], torch.tensor([0]))[0]
    assert not torch.allclose(alone, plain)


def test_the_noise_of_smooth_grad_follows_the_range_of_the_image():
    class Square(nn.Module):
        def forward(self, x):
            return (x**2).sum((1, 2, 3))[:, None] / 2  # its gradient is the input

    pixels = torch.zeros(2, 3, 64, 64)
    pixels[0, 0, 0, 0], pixels[1, 0, 0, 0] = 1, 10
    maps = chapter_3b.smooth_grad(Square(), pixels, torch.tensor([0, 0]))
    spread = (maps - pixels).std((1, 2, 3)) * chapter_3b.STEPS**0.5
    assert spread.tolist() == pytest.approx([0.15, 1.5], rel=0.05)


def test_integrated_gradients_add_up_to_the_difference_of_the_logits():
    pixels, model = grey(), Corner()
    total = chapter_3b.integrated_gradients(model, pixels, torch.tensor([1])).sum()
    logits = model(torch.cat([pixels, images.white(pixels)]))[:, 1]
    torch.testing.assert_close(total, logits[0] - logits[1], rtol=1e-4, atol=0)
    model, pixels, targets = small().eval(), random_images(2, 32), torch.tensor([0, 1])
    theirs = IntegratedGradients(model).attribute(
        pixels, images.white(pixels), targets, n_steps=chapter_3b.STEPS
    )
    ours = chapter_3b.integrated_gradients(model, pixels, targets)
    torch.testing.assert_close(ours, theirs.float())


@pytest.mark.parametrize(("size", "name"), [(64, "layer4"), (16, "bn2")])
def test_grad_cam_by_hand(size, name):
    """The stage's channels, weighted by mean gradients; the positive part.

    Of 16 pixels layer4 makes 3x3 cells, too few, and the layer before it 7x7.
    """
    model, targets, kept = small().eval(), torch.tensor([0, 1]), []
    pixels = random_images(2, size)
    layer = model.get_submodule(name)
    hook = layer.register_forward_hook(lambda _m, _i, y: kept.append(y))
    score = model(pixels).gather(1, targets[:, None]).sum()
    hook.remove()
    weights = torch.autograd.grad(score, kept[0])[0].mean((2, 3), keepdim=True)
    expected = (weights * kept[0]).sum(1, keepdim=True).relu()
    expected = F.interpolate(expected, (size, size), mode="bilinear")
    found = saliency.grad_cam(model, pixels, targets)
    torch.testing.assert_close(found, expected)
    assert found.any()


def channels_last():
    model = small()
    model.output_fmt = "NHWC"  # as timm's Swin has it
    return model


@pytest.mark.parametrize(
    "model",
    [
        Tokens(),
        channels_last(),
        torch.fx.symbolic_trace(small()),
        nn.Sequential(nn.Flatten(), nn.Linear(768, 6)),
    ],
    ids=["tokens", "channels last", "traced", "no maps"],
)
def test_grad_cam_needs_maps(model):
    with pytest.raises(InputError, match="last feature map"):
        saliency.grad_cam(model, random_images(2, 16), torch.tensor([0, 1]))


# --- maps -----------------------------------------------------------------------------


def test_magnitude_adds_the_channels():
    maps = torch.tensor([1.0, -2.0, 0.5])[None, :, None, None]
    assert saliency.magnitude(maps).tolist() == [[[3.5]]]


def test_sobel_by_hand():
    """An edge from 0 to 255: (1 + 2 + 1) / 8 of a grey value on both its sides."""
    values = np.zeros((3, 4, 4, 3), np.uint8)
    values[0, :, 2:] = 255
    values[1, 2:] = 255  # the third image is flat
    edges = saliency.sobel(images.normalize(torch.from_numpy(values)))
    expected = torch.tensor([0, 0.5, 0.5, 0]).repeat(4, 1)
    expected = torch.stack([expected, expected.T, torch.zeros(4, 4)])
    torch.testing.assert_close(edges, expected, atol=1e-6, rtol=0)


def test_foreground_is_what_is_not_near_white():
    values = [[255, 255, 255], [240, 240, 240], [255, 255, 239], [0, 0, 0]]
    pixels = images.normalize(torch.tensor([[values]], dtype=torch.uint8))
    assert saliency.foreground(pixels).tolist() == [[[False, False, True, True]]]


# --- averages -------------------------------------------------------------------------


def in_parts(pixels, batch_size):
    return [(part, torch.zeros(len(part))) for part in pixels.split(batch_size)]


@pytest.mark.parametrize("unit", [True, False])
def test_streaming_averages_equal_direct_ones(unit):
    model, pixels = small().double(), random_images(30, 32, torch.float64)
    classes = torch.arange(30) % 4 % 3  # 15, 8 and 7 images; three classes have none
    batches = in_parts(pixels, 7)  # the last has two
    averages = saliency.class_averages(model, batches, classes, unit=unit)
    maps = saliency.guided_backprop(model, pixels, classes)
    if unit:
        size = saliency.magnitude(maps).mean((1, 2))
        maps = maps / size[:, None, None, None]
    size = saliency.magnitude(maps)
    assert averages.count.tolist() == [15, 8, 7, 0, 0, 0]
    floats = [values for name, values in vars(averages).items() if name != "count"]
    assert all(values[3:].isnan().all() for values in floats)
    for k in range(3):
        of = classes == k
        torch.testing.assert_close(averages.signed[k], maps[of].mean(0))
        torch.testing.assert_close(averages.magnitude[k], size[of].mean(0))
        error, close = size[of].std(0) / of.sum().sqrt(), {"rtol": 1e-6, "atol": 1e-9}
        torch.testing.assert_close(averages.standard_error[k], error, **close)
        torch.testing.assert_close(averages.image[k], pixels[of].mean(0))
        edges = saliency.sobel(pixels)[of].mean(0)
        torch.testing.assert_close(averages.edges[k], edges)


def test_one_image_has_no_standard_error_and_maps_may_be_zero():
    def zeros(model, pixels, targets):
        return torch.zeros(len(pixels), 1, *pixels.shape[2:])

    batches, classes = in_parts(random_images(3, 16), 2), torch.tensor([0, 1, 1])
    averages = saliency.class_averages(small(), batches, classes, method=zeros)
    assert averages.standard_error[0].isnan().all()
    assert not averages.standard_error[1].any()
    assert not averages.magnitude[:2].any()
    averages = saliency.class_averages(small(), batches, classes)
    assert averages.standard_error[0].isnan().all()


def test_the_shuffled_control_mixes_classes_that_come_in_blocks():
    """As in the catalogue, where rows are in the order of ids and ids cluster."""

    def own_class(model, pixels, targets):  # pixel k of a map is 1 for class k
        return F.one_hot(targets, 6).double()[:, None, None]

    counts = torch.tensor([300, 100, 200, 150, 150, 100])
    classes = torch.arange(6).repeat_interleave(counts)
    batches = in_parts(torch.zeros(1000, 3, 1, 6), 50)
    options = {"method": own_class, "unit": False}
    averages = saliency.class_averages(None, batches, classes, **options)
    torch.testing.assert_close(averages.magnitude[:, 0], torch.eye(6).double())
    mixture, frequency = averages.shuffled[:, 0], counts / 1000  # (6, 6), rows sum to 1
    noise = (frequency * (1 - frequency) / counts[:, None]).sqrt()
    assert ((mixture - frequency).abs() < 4 * noise).all()
    # every image is in exactly one group
    torch.testing.assert_close(counts.double() @ mixture, counts.double())
    again = saliency.class_averages(None, batches, classes, **options)
    other = saliency.class_averages(None, batches, classes, seed=1, **options)
    assert torch.equal(again.shuffled, averages.shuffled)
    assert not torch.equal(other.shuffled, averages.shuffled)


@pytest.mark.parametrize("classes", [[], [0, 1, 2], [0, 1, 2, 3, 4]])
def test_averages_need_a_class_for_each_image(classes):
    classes = torch.tensor(classes, dtype=torch.int64)
    with pytest.raises(InputError, match="classes"):
        saliency.class_averages(small(), in_parts(random_images(4, 16), 2), classes)
    with pytest.raises(InputError, match="classes"):
        saliency.class_averages(small(), [], classes)
