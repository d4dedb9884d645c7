"""Every family of torchvision's networks goes all the way that the chapters go.

`FAMILIES` is the promise: the smallest images that a network can be trained on, where
Grad-CAM is taken, and what guided backpropagation finds.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from networks import random_images, trained

from fashionlib import artifacts, cpu, images, models, saliency, training
from fashionlib.runtime import InputError

EXACT = {"device": "cpu", "precision": "float32"}
RECIPE = training.Recipe(epochs=2, batch_size=2, learning_rate=1e-3)


class Family(NamedTuple):
    side: int  # of the smallest images to train on, pixels
    last_map: str | None  # the layer of Grad-CAM at 224 pixels; None: refused
    channels: int  # of that map
    guided: tuple[int, int] | None  # ReLUs, other activations; None: refused


FAMILIES = {  # the smallest member of each
    "resnet10": Family(1, "layer4", 512, (9, 0)),
    "resnext50_32x4d": Family(1, "layer4", 2048, (49, 0)),
    "wide_resnet50_2": Family(1, "layer4", 2048, (49, 0)),
    "alexnet": Family(63, "features.12", 256, (7, 0)),
    "vgg11": Family(32, "features.20", 512, (10, 0)),
    "vgg11_bn": Family(32, "features.28", 512, (10, 0)),
    "squeezenet1_1": Family(17, "classifier.2", 6, (26, 0)),
    "densenet121": Family(29, "features.norm5", 1024, (121, 0)),
    "googlenet": Family(15, "inception5b", 1024, (57, 0)),
    "inception_v3": Family(75, "Mixed_7c", 2048, (94, 0)),
    "mnasnet0_5": Family(1, "layers.16", 1280, (35, 0)),
    "mobilenet_v2": Family(1, "features.18", 1280, (35, 0)),
    "mobilenet_v3_small": Family(1, "features.12", 576, (14, 28)),
    "shufflenet_v2_x0_5": Family(1, "conv5", 1024, (37, 0)),
    "regnet_x_400mf": Family(1, "trunk_output.block4", 400, (67, 0)),
    "regnet_y_400mf": Family(1, "trunk_output.block4", 440, (65, 16)),
    "efficientnet_b0": Family(1, "features.8", 1280, None),
    "efficientnet_v2_s": Family(1, "features.7", 1280, None),
    "convnext_tiny": Family(32, "features.7", 768, None),
    "swin_t": Family(4, "permute", 768, None),
    "swin_v2_t": Family(4, "permute", 768, None),  # its ReLUs do not see the image
    "maxvit_t": Family(221, "blocks.3", 512, None),
    "vit_b_32": Family(224, None, 0, None),
}
# What the others have not: a version of the layers, gates beside ReLUs, a convolution
# at the end, ReLU as a function and three outputs
FAST = ("mnasnet0_5", "mobilenet_v3_small", "squeezenet1_1", "googlenet")


def families(fast=FAST, smallest=1):
    chosen = []
    for name, family in FAMILIES.items():
        marks = () if name in fast else pytest.mark.slow
        if family.side >= smallest:
            chosen.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("name", chosen)


def noise(count: int, side: int) -> images.ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return images.from_array(pixels, np.arange(count) % 6)


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(name)


class Stop(Exception):
    """The reader presses stop."""


def test_no_family_of_torchvision_is_missing():
    every = torchvision.models.list_models(module=torchvision.models)
    modules = {torchvision.models.get_model_builder(name).__module__ for name in every}
    for name in set(FAMILIES) & set(every):
        modules.discard(torchvision.models.get_model_builder(name).__module__)
    assert not modules


@families()
def test_a_family_is_trained_saved_loaded_resumed_and_asked(
    name, tmp_path, monkeypatch
):
    """Three images: a batch of two, and one left over that is part of it."""
    data = noise(3, max(FAMILIES[name].side, 32))
    whole, resumed = build(name), build(name)
    expected = training.fit(whole, data, data, recipe=RECIPE, **EXACT)
    save = artifacts.save_checkpoint

    def save_and_stop(path, state):
        save(path, state)
        if len(state["history"]) == 1:
            raise Stop

    options = {"recipe": RECIPE, "checkpoint": tmp_path / "run", **EXACT}
    monkeypatch.setattr(artifacts, "save_checkpoint", save_and_stop)
    with pytest.raises(Stop):
        training.fit(build(name), data, data, **options)
    monkeypatch.setattr(artifacts, "save_checkpoint", save)
    torch.nn.init.zeros_(models.last_layer(resumed).weight)
    history = training.fit(resumed, data, data, **options)
    for one, other in zip(expected, history, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())

    settings = {"architecture": name, "stem": "imagenet", "enlarge": 1.0}
    path = tmp_path / "classifier.safetensors"
    artifacts.save_weights(path, whole, settings | {"weights": "none"})
    loaded, _ = models.load(tmp_path, "cpu")
    logits, _ = training.predict(loaded, data, **EXACT)
    assert torch.equal(logits, training.predict(whole, data, **EXACT)[0])
    assert logits.shape == (3, 6)
    for weights in (path, *tmp_path.glob("run-*.pt")):
        model = models.build(name, weights=str(weights))
        assert torch.equal(training.predict(model, data, **EXACT)[0], logits)


@families(fast=("alexnet", "squeezenet1_1", "googlenet"), smallest=2)
def test_images_below_the_smallest_size_are_refused_before_anything_runs(name):
    model, smaller = build(name), noise(3, FAMILIES[name].side - 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match="cannot take images") as caught:
        training.fit(model, smaller, recipe=RECIPE, **EXACT)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@families(fast=("squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "swin_t"))
def test_grad_cam_is_taken_at_the_last_feature_map(name):
    """By hand at that layer: its channels, weighted by their mean gradients."""
    _, layer_name, channels, _ = FAMILIES[name]
    model, pixels, targets = build(name), random_images(2, 224), torch.tensor([0, 4])
    model = trained(model).eval()
    if layer_name is None:
        with pytest.raises(InputError, match="feature map") as caught:
            saliency.grad_cam(model, pixels, targets)
        assert "\n" not in str(caught.value)
        return
    assert saliency.last_map(model, pixels)[0] == layer_name
    layer, kept = model.get_submodule(layer_name), []
    # a copy goes on: DenseNet's last ReLU works in place
    hook = layer.register_forward_hook(lambda _m, _i, y: kept.append(y) or y.clone())
    score = model(pixels).gather(1, targets[:, None]).sum()
    hook.remove()
    (maps,) = kept
    assert maps.shape[:2] == (2, channels)
    weights = torch.autograd.grad(score, maps)[0].mean((2, 3), keepdim=True)
    expected = (weights * maps).sum(1, keepdim=True).relu()
    expected = torch.nn.functional.interpolate(expected, (224, 224), mode="bilinear")
    found = saliency.grad_cam(model, pixels, targets)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "layer", "cells"),
    [
        ("resnet10", (224, 160), "layer4", (7, 5)),  # a 32nd of both sides
        ("resnet10", (112, 112), "layer3", (7, 7)),  # a 16th; layer4 would have 4x4
        ("resnet10", (64, 64), "layer2", (8, 8)),
        ("resnet10", (8, 8), "layer4", (1, 1)),  # conv1 has 4x4: nothing is enough
        ("tf_efficientnet_lite0", (160, 120), "bn2", (5, 4)),  # just enough
        ("tf_efficientnet_lite0", (96, 96), "blocks.4", (6, 6)),
        ("vgg11", (64, 64), "features.14", (8, 8)),  # 7x7 of its avgpool is 2x2 in fact
        ("swin_t", (64, 64), "permute", (2, 2)),  # before it (B, h, w, C)
    ],
)
def test_on_small_images_an_earlier_stage_has_enough_cells(name, size, layer, cells):
    found = saliency.last_map(build(name).train(), torch.zeros(2, 3, *size))
    assert found == (layer, cells)


@families(fast=("mobilenet_v3_small", "squeezenet1_1", "efficientnet_b0"))
def test_guided_maps_or_a_line_that_says_why_not(name):
    model, counts = trained(build(name)).eval(), FAMILIES[name].guided
    side = max(FAMILIES[name].side, 32)
    pixels, targets = random_images(2, side), torch.tensor([0, 4])
    if counts is None:
        with pytest.raises(InputError, match="ReLU") as caught:
            saliency.guided_backprop(model, pixels, targets)
        assert "\n" not in str(caught.value)
        return
    with saliency.guided_relus(model) as mode:
        maps = saliency.gradient(model, pixels, targets)
    assert (mode.calls, mode.others) == counts
    assert maps.shape == pixels.shape
    assert maps.isfinite().all()
    # as chapter 4 draws them
    fused = saliency.guided_backprop(cpu.fuse_batchnorm(model), pixels, targets)
    torch.testing.assert_close(fused, maps, rtol=1e-2, atol=1e-3 * maps.abs().max())
