"""The other methods: what each promises, models left as they were."""

import pytest
import torch
from networks import assert_untouched, pictures, small, snapshot
from torch import nn

from fashionlib import attribution, images, saliency

each_method = pytest.mark.parametrize("name", attribution.METHODS)


class Corner(nn.Module):
    """Two logits: 0, and how dark the upper left quarter is; nothing else matters."""

    def forward(self, x):
        dark = (
            (images.white(x) - x)[:, :, : x.shape[2] // 2, : x.shape[3] // 2]
            .relu()
            .sum((1, 2, 3))
        )
        return torch.stack([torch.zeros_like(dark), dark], 1)


@each_method
def test_one_map_a_picture_and_the_model_as_it_was(name):
    model, pixels, targets = small().train(), pictures(3, 32), torch.tensor([0, 1, 2])
    before = snapshot(model)
    maps = attribution.METHODS[name](model, pixels, targets)
    assert maps.shape in ((3, 3, 32, 32), (3, 1, 32, 32))
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert pixels.grad is None
    assert_untouched(model, before)


@each_method
def test_the_target_decides(name):
    torch.manual_seed(0)
    model, pixels = small(), pictures(2, 32)
    first, second = (
        attribution.METHODS[name](model, pixels, torch.full((2,), target))
        for target in (0, 1)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "name", ["gradient", "integrated gradients", "SmoothGrad", "occlusion", "guided"]
)
def test_the_place_that_matters_is_found(name):
    pixels = images.normalise(torch.full((1, 32, 32, 3), 60, dtype=torch.uint8))
    maps = saliency.magnitude(
        attribution.METHODS[name](Corner(), pixels, torch.tensor([1]))
    )
    inside, outside = maps[0, :16, :16].clone(), maps[0].clone()
    outside[:24, :24] = (
        0  # the patch of the occlusion reaches half of its side beyond the quarter
    )
    assert inside.mean() > 0
    assert outside.max() == 0


def test_the_noise_of_smoothgrad_depends_on_its_own_picture():
    model, targets = small(), torch.tensor([0, 0])
    pale = pictures(2, 32) / 10
    maps = []
    for beside in (pale[1:], 100 * pale[1:]):
        torch.manual_seed(0)
        maps.append(
            attribution.smooth_grad(model, torch.cat([pale[:1], beside]), targets)[0]
        )
    torch.testing.assert_close(maps[0], maps[1])


def test_integrated_gradients_add_up_to_the_difference_of_the_logits():
    pixels = images.normalise(torch.full((1, 32, 32, 3), 60, dtype=torch.uint8))
    total = attribution.integrated_gradients(Corner(), pixels, torch.tensor([1])).sum()
    logits = Corner()(torch.cat([pixels, images.white(pixels)]))[:, 1]
    torch.testing.assert_close(total, logits[0] - logits[1], rtol=1e-4, atol=0)


def test_guided_grad_cam_is_the_product():
    model, pixels, targets = small(), pictures(2, 32), torch.tensor([0, 1])
    expected = saliency.guided_backprop(model, pixels, targets) * saliency.grad_cam(
        model, pixels, targets
    )
    torch.testing.assert_close(
        attribution.guided_grad_cam(model, pixels, targets), expected
    )
