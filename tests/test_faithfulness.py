"""Whether to believe a map: scores and controls by hand, models left as they were."""

import pytest
import torch
from networks import assert_untouched, pictures, small, snapshot
from scipy.stats import spearmanr
from torch import nn

from fashionlib import faithfulness, images
from fashionlib.runtime import InputError


class Linear(nn.Module):
    """Two logits: 0, and the sum of weight * darkness (the value below white, in units of 1/255) of the red channel."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        darkness = 255 - images.denormalise(x)[..., 0].float()
        score = (self.weight * darkness).sum((1, 2))
        return torch.stack([torch.zeros_like(score), score], 1)


def test_similarity_by_hand_and_against_scipy():
    a = torch.tensor([[[1.0, 2.0], [3.0, 99.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    # ranks 1 2 3 against 2 1 3: 1 - 6 * (1 + 1 + 0) / (3 * 8) = 0.5; the fourth pixel is not looked at
    assert faithfulness.similarity(
        a, torch.tensor([[[5.0, 4.0], [6.0, -1.0]]]), mask
    ).tolist() == pytest.approx([0.5])
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (2, 8, 8), generator=generator)  # ties
    y = torch.rand(2, 8, 8, generator=generator)
    inside = torch.rand(2, 8, 8, generator=generator) < 0.7
    expected = [spearmanr(x[i][inside[i]], y[i][inside[i]]).statistic for i in range(2)]
    assert faithfulness.similarity(x, y, inside).tolist() == pytest.approx(expected)
    assert faithfulness.similarity(torch.ones(1, 2, 2), a, mask).isnan().all()


@pytest.mark.parametrize("last", [1, 2, None])
def test_randomised_changes_the_parts_named_and_brings_them_back(last):
    model = small()
    before = snapshot(model)
    state = torch.random.get_rng_state()
    with faithfulness.randomised(model, seed=3, last=last):
        drawn = {name: value.clone() for name, value in model.state_dict().items()}
        assert torch.equal(torch.random.get_rng_state(), state)
    changed = {
        name for name, value in drawn.items() if not torch.equal(value, before[0][name])
    }
    weights = {name for name, p in model.named_parameters() if p.dim() > 1} | {
        "fc.bias"
    }
    assert changed >= {
        name
        for name in weights
        if name.split(".")[0] in faithfulness.parts(model)[:last]
    }
    assert {name.split(".")[0] for name in changed} == set(
        faithfulness.parts(model)[:last]
    )
    assert_untouched(model, before)
    with faithfulness.randomised(model, seed=3, last=last):
        assert all(
            torch.equal(value, drawn[name])
            for name, value in model.state_dict().items()
        )
    with faithfulness.randomised(model, seed=4, last=last):
        assert not torch.equal(model.fc.weight, drawn["fc.weight"])


def test_the_cascade_keeps_what_it_has_drawn():
    model = small()
    assert faithfulness.parts(model) == ["fc", "layer4", "bn2", "bn1", "conv2", "conv1"]
    with faithfulness.randomised(model, last=1):
        head = model.fc.weight.clone()
    with faithfulness.randomised(model, last=2):
        assert torch.equal(model.fc.weight, head)


def test_randomised_brings_the_weights_back_after_an_exception():
    model = small()
    before = snapshot(model)

    def fail():
        with faithfulness.randomised(model):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert_untouched(model, before)


def test_structural_similarity_of_equal_scaled_and_unrelated_maps():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 32, 32, generator=generator) for _ in range(2))
    mask = torch.ones(2, 32, 32, dtype=torch.bool)
    mask[1] = False
    same = faithfulness.structural_similarity(a, 7 * a, mask)
    assert same[0] == pytest.approx(1, abs=1e-5)
    assert same[1].isnan()
    assert faithfulness.structural_similarity(a, b, mask)[0] < 0.1
    half = mask.clone()
    half[0, :, 16:] = False
    mixed = torch.cat([a[..., :16], b[..., 16:]], 2)
    outside = ~half & mask
    assert faithfulness.structural_similarity(a, mixed, half)[0] > 0.8
    assert faithfulness.structural_similarity(a, mixed, outside)[0] < 0.4


def test_deletion_and_insertion_by_hand():
    """A black 1x4 picture: removing a pixel takes its weight off the logit, putting it in adds it."""
    weight = torch.tensor([[3.0, 0.0, 1.0, 0.0]]) / 255
    pixels = images.normalise(torch.zeros(1, 1, 4, 3, dtype=torch.uint8))
    ranking = torch.tensor([[[9.0, 1.0, 5.0, 0.0]]])  # the order 0, 2, 1, 3
    result = faithfulness.deletion_insertion(
        Linear(weight), pixels, torch.tensor([1]), ranking, steps=4
    )
    expected = torch.tensor(
        [[4.0, 1, 0, 0, 0], [0, 3, 4, 4, 4]], dtype=torch.float64
    ).sigmoid()
    torch.testing.assert_close(
        torch.cat([result["deletion"], result["insertion"]]),
        expected,
        rtol=1e-5,
        atol=0,
    )
    assert result["fractions"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    areas = (expected[:, :-1] + expected[:, 1:]).sum(
        1
    ) / 8  # four trapezoids of width 1/4
    torch.testing.assert_close(
        torch.cat([result["deletion_auc"], result["insertion_auc"]]),
        areas,
        rtol=1e-5,
        atol=0,
    )


def test_deletion_fills():
    pixels = pictures(2, 16)
    model, ranking = small().eval(), torch.rand(2, 16, 16)
    targets = torch.tensor([0, 1])
    ends = {
        fill: faithfulness.deletion_insertion(
            model, pixels, targets, ranking, steps=1, fill=fill
        )["deletion"]
        for fill in ("white", "blurred")
    }
    white = (
        model(images.normalise(torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)))
        .softmax(1)[0, :2]
        .double()
    )
    torch.testing.assert_close(ends["white"][:, 1], white, rtol=1e-4, atol=0)
    assert torch.equal(
        ends["white"][:, 0], ends["blurred"][:, 0]
    )  # nothing removed yet
    assert not torch.equal(ends["white"][:, 1], ends["blurred"][:, 1])
    with pytest.raises(InputError, match="white or blurred"):
        faithfulness.deletion_insertion(model, pixels, targets, ranking, fill="black")


def test_mass_share_by_hand():
    masks = torch.tensor([[[0, 1], [3, 3]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    maps = torch.tensor([[[50.0, 2.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    mass, area = faithfulness.mass_share(maps, masks, 1)
    assert mass[0] == 0.5  # 2 of 4: the background's 50 do not count
    assert area[0] == pytest.approx(1 / 3)
    assert mass[1].isnan()
    assert area[1].isnan()


def test_density_ratio_by_hand():
    """Half of the mass on a fifth of the area: odds 1 against 1/4, four times as dense."""
    ratio, (low, high) = faithfulness.density_ratio([0.4, 0.6], [0.3, 0.1])
    assert ratio == pytest.approx(4)
    assert low < 4 < high
    assert faithfulness.density_ratio([0.5, 0.5], [0.5, 0.5]) == (1, [1, 1])
    with pytest.raises(InputError, match="needs two pictures or more; found 1"):
        faithfulness.density_ratio([0.5, float("nan")], [0.5, 0.5])


def test_mean_interval_by_hand():
    """1, 2, 3: standard error 1 / sqrt(3), two degrees of freedom: 4.303 of them."""
    mean, interval, count = faithfulness.mean_interval([1, 2, 3, float("nan")])
    assert (mean, count) == (2, 3)
    assert interval == pytest.approx(
        [2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4
    )
    with pytest.raises(InputError, match="at least two pictures, found 1"):
        faithfulness.mean_interval([1, float("nan")])
    assert (
        faithfulness.interval_text((0.214, [0.15, 0.268], 9), "+.2f")
        == "+0.21 (+0.15 to +0.27)"
    )
