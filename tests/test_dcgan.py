"""dcgan: shapes, parameters and losses worked out by hand; every ingredient; a stopped training ends the same."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fashionlib import adversarial, artifacts, dcgan, images, runtime
from fashionlib.images import ImageSet

TINY = {"epochs": 1, "features": 2, "latent": 4, "batch_size": 4}
INGREDIENTS = {
    "plain": {},
    "ema": {"ema": 0.9},
    "hinge": {"loss": "hinge"},
    "two rates": {"discriminator_rate": 1e-3},
    "spectral norm": {"spectral_norm": True},
    "penalty": {"r1": 1.0},
    "augment": {"augment": True},
    "conditional": {"conditional": True},
}

EVERYTHING = {
    name: value for changed in INGREDIENTS.values() for name, value in changed.items()
}


def fit(pictures, checkpoint=None, **changed):
    recipe = dcgan.Recipe(**(TINY | changed))
    return dcgan.fit(
        pictures,
        recipe=recipe,
        device="cpu",
        precision="float32",
        checkpoint=checkpoint,
    )


def game(pictures, **changed):
    return dcgan.Game(
        pictures, dcgan.Recipe(**(TINY | changed)), torch.device("cpu"), "float32"
    )


@pytest.fixture
def pictures():
    """Ten pictures: bright squares of different grey on black."""
    pixels = np.zeros((10, 64, 64, 3), np.uint8)
    for i in range(10):
        pixels[i, 16:48, 16:48] = 100 + 15 * i
    return ImageSet(pixels, np.arange(10), np.array([1, 2] * 5))


# --- networks --------------------------------------------------------------------------------------------------------


def test_parameters_of_the_published_networks():
    generator = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (
        512 + 256 + 128 + 64
    )
    discriminator = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1) + 2 * (
        128 + 256 + 512
    )
    assert (generator, discriminator) == (3_576_704, 2_765_568)
    assert sum(p.numel() for p in dcgan.Generator().parameters()) == generator
    assert sum(p.numel() for p in dcgan.Discriminator().parameters()) == discriminator


def test_shapes_of_every_block():
    x = torch.randn(3, 5, 1, 1)
    sides = []
    for layer in dcgan.Generator(latent=5, features=2):
        x = layer(x)
        if isinstance(layer, nn.ConvTranspose2d):
            sides.append(tuple(x.shape))
    assert sides == [
        (3, 16, 4, 4),
        (3, 8, 8, 8),
        (3, 4, 16, 16),
        (3, 2, 32, 32),
        (3, 3, 64, 64),
    ]
    assert x.abs().max() <= 1
    assert dcgan.Discriminator(features=2)(x).shape == (3,)


def test_initial_weights_are_drawn_as_published():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [dcgan.Generator(), dcgan.Discriminator()]
    for network in networks:
        convolutions = [
            m.weight for m in network if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        ]
        scales = torch.cat([m.weight for m in network if isinstance(m, nn.BatchNorm2d)])
        assert all(m.bias.eq(0).all() for m in network if isinstance(m, nn.BatchNorm2d))
        drawn = torch.cat([weight.flatten() for weight in convolutions])
        assert drawn.mean().item() == pytest.approx(0, abs=1e-4)
        assert drawn.std().item() == pytest.approx(0.02, rel=0.01)
        assert scales.mean().item() == pytest.approx(1, abs=0.005)
        assert scales.std().item() == pytest.approx(0.02, rel=0.15)


def test_transposed_convolution_by_hand():
    """Each input value stamps the kernel, times itself, at twice its place; stamps that overlap are added."""
    layer = nn.ConvTranspose2d(1, 1, 3, stride=2, bias=False)
    layer.weight.data = torch.arange(1.0, 10).reshape(1, 1, 3, 3)  # rows 123, 456, 789
    output = layer(torch.tensor([[[[1.0, 2.0], [0.0, 3.0]]]])).squeeze()
    expected = [
        [1, 2, 3 + 2, 4, 6],
        [4, 5, 6 + 8, 10, 12],
        [7, 8, 9 + 14 + 3, 16 + 6, 18 + 9],
        [0, 0, 12, 15, 18],
        [0, 0, 21, 24, 27],
    ]
    assert output.tolist() == expected


def test_losses_by_hand():
    undecided = torch.zeros(4)
    assert adversarial.discriminator_loss(undecided, undecided).item() == pytest.approx(
        2 * math.log(2)
    )
    assert adversarial.generator_loss(undecided).item() == pytest.approx(math.log(2))
    real, fake = (
        torch.tensor([0.0, math.log(3)]),
        torch.tensor([0.0, -math.log(3)]),
    )  # D = 1/2, 3/4; 1/2, 1/4
    each = (math.log(2) + math.log(4 / 3)) / 2
    assert adversarial.discriminator_loss(real, fake).item() == pytest.approx(2 * each)
    assert adversarial.generator_loss(fake).item() == pytest.approx(
        (math.log(2) + math.log(4)) / 2
    )
    sure = torch.tensor(
        [-200.0]
    )  # log(1 - D) is flat here; the non-saturating loss still has slope -1
    sure.requires_grad_()
    adversarial.generator_loss(sure).backward()
    assert sure.grad.item() == pytest.approx(-1)


# --- fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", INGREDIENTS.values(), ids=INGREDIENTS)
def test_both_networks_learn_and_what_is_recorded(pictures, changed):
    result = fit(pictures, epochs=2, **changed)
    assert [record["epoch"] for record in result.history] == [
        1,
        1,
        2,
        2,
    ]  # 10 pictures: 2 full batches of 4
    assert set(result.history[0]) == {"epoch", *dcgan.RECORD}
    assert all(
        math.isfinite(record[name])
        for record in result.history
        for name in dcgan.RECORD
    )
    assert all(
        0 < record[name] < 1
        for record in result.history
        for name in ("real_score", "fake_score")
    )
    assert set(result.snapshots) == set(result.variety) == {1, 2}
    assert result.snapshots[2].shape == (16, 64, 64, 3)
    assert result.images_per_second == pytest.approx(16 / result.seconds)
    start = game(pictures, **changed).networks
    for name, trained in (
        ("generator", result.generator),
        ("discriminator", result.discriminator),
    ):
        for before, after in zip(
            start[name].parameters(), trained.parameters(), strict=True
        ):
            assert not torch.equal(before, after)


def test_every_ingredient_changes_the_training(pictures):
    last = {
        name: fit(pictures, epochs=2, **changed).history[-1]
        for name, changed in INGREDIENTS.items()
    }
    assert (
        last.pop("ema") == last["plain"]
    )  # it follows the weights and does not steer them
    assert len({tuple(record.values()) for record in last.values()}) == len(last)


def test_each_player_moves_its_own_weights_only(pictures):
    started = game(pictures)
    started.updates["generator"].param_groups[0]["lr"] = 0.0
    before = {
        name: value.clone() for name, value in started.networks.named_parameters()
    }
    real, labels, chance = next(started.batches(1))
    started.step(real, labels, dcgan.noise(4, 4), chance, penalty=False)
    after = started.networks.named_parameters()
    moved = {
        name.split(".")[0]
        for name, value in after
        if not torch.equal(value, before[name])
    }
    assert moved == {"discriminator"}


def test_pictures_reach_the_discriminator_in_minus_one_to_one(pictures):
    batch, labels, _ = next(game(pictures, batch_size=10, flip=False).batches(1))
    centre = {
        round(float(value) * 127.5 + 127.5): int(label)
        for value, label in zip(batch[:, 0, 32, 32], labels, strict=True)
    }
    assert centre == {
        100 + 15 * i: i % 2 for i in range(10)
    }  # every picture once, with its label
    assert batch[:, :, 0, 0].eq(-1).all()
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_flip_mirrors_about_half_of_the_pictures():
    pixels = np.zeros((200, 64, 64, 3), np.uint8)
    pixels[:, :, 0] = 255  # a white left edge
    pictures = ImageSet(pixels, np.arange(200), np.ones(200, np.int64))
    mirrored = {
        flip: sum(
            int((batch[:, 0, 0, 63] == 1).sum())
            for batch, *_ in game(pictures, batch_size=50, flip=flip).batches(1)
        )
        for flip in (True, False)
    }
    assert 70 < mirrored[True] < 130
    assert mirrored[False] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {name: value for each in INGREDIENTS.values() for name, value in each.items()},
    ],
)
def test_a_stopped_training_ends_with_the_same_numbers(
    pictures, tmp_path, monkeypatch, changed
):
    options = {"epochs": 3, **changed}
    whole = fit(pictures, **options)
    path, save, saved = (
        tmp_path / "checkpoint.safetensors",
        artifacts.save_checkpoint,
        [],
    )

    def save_once(*arguments, **keywords):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*arguments, **keywords))

    monkeypatch.setattr(artifacts, "save_checkpoint", save_once)
    with pytest.raises(KeyboardInterrupt):
        fit(pictures, path, **options)
    monkeypatch.setattr(artifacts, "save_checkpoint", save)
    state, _ = artifacts.read_checkpoint(path)
    assert len(state["records"]) == 1
    resumed = fit(pictures, path, **options)
    assert resumed.history == whole.history
    assert resumed.variety == whole.variety
    ours, theirs = (
        list(result.generator.state_dict().values()) for result in (resumed, whole)
    )
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))
    assert all(
        np.array_equal(resumed.snapshots[epoch], whole.snapshots[epoch])
        for epoch in (1, 2, 3)
    )

    monkeypatch.setattr(
        dcgan.Game, "epoch", None
    )  # a finished training must not train again
    assert fit(pictures, path, **options).history == whole.history


def test_the_average_is_the_running_mean_of_the_weights(pictures):
    """Two steps: the average starts at the first weights w1, then decay w1 + (1 - decay) w2."""
    one, two = (fit(pictures, epochs=epochs, batch_size=10) for epochs in (1, 2))
    mean = fit(pictures, epochs=2, batch_size=10, ema=0.75).generator
    for first, second, average in zip(
        *(r.parameters() for r in (one.generator, two.generator, mean)), strict=True
    ):
        assert torch.allclose(average, 0.75 * first + 0.25 * second, atol=1e-7)


def test_the_same_seed_gives_the_same_training_and_another_seed_another(pictures):
    first, again, other = (fit(pictures, seed=seed).history for seed in (0, 0, 1))
    assert first == again != other


def test_mistakes_are_named(pictures, tmp_path):
    with pytest.raises(
        runtime.InputError,
        match=r"found 10 pictures and batch_size = 11.*smaller batch_size",
    ):
        fit(pictures, batch_size=11)
    with pytest.raises(
        runtime.InputError, match=r"64x64 pictures; found \(32, 32, 3\)"
    ):
        fit(pictures._replace(images=pictures.images[:, :32, :32]))
    with pytest.raises(
        runtime.InputError, match="not finite: lower learning_rate = inf"
    ):
        fit(pictures, epochs=2, learning_rate=math.inf)
    with pytest.raises(
        runtime.InputError,
        match="loss must be one of non-saturating, hinge; found 'wasserstein'",
    ):
        dcgan.Recipe(epochs=1, loss="wasserstein")
    with pytest.raises(runtime.InputError, match="epochs must be above 0; found 0"):
        dcgan.Recipe(epochs=0)
    prepared = images.Prepared(tmp_path, None, {})
    with pytest.raises(
        runtime.InputError,
        match="class 6 does not exist; the classes are 0 Men/Accessories, 1 Women",
    ):
        dcgan.of_classes(prepared, [1, 6])


def test_what_went_wrong_is_said():
    steps = [{"real_score": 0.5, "fake_score": 0.5}] * 9 + [
        {"real_score": 0.99, "fake_score": 0.01}
    ]
    assert dcgan._alarms(steps[:9], {1: 0.2, 5: 0.9}) == []
    (won,) = dcgan._alarms(steps, {5: 0.9})
    assert won.startswith("the discriminator has won: D(x) - D(G(z)) is 0.98")
    (collapse,) = dcgan._alarms(steps[:9], {1: 0.9, 5: 0.2})
    assert collapse.startswith(
        "mode collapse: the pictures differ from each other 0.20 times"
    )


# --- ingredients -----------------------------------------------------------------------------------------------------


def test_hinge_loss_by_hand():
    assert (
        adversarial.hinge_loss(
            torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
        ).item()
        == (0 + 1) / 2 + (0 + 2) / 2
    )


def test_gradient_penalty_of_a_linear_discriminator():
    """A logit of 3 times the sum of 12 values has a squared slope of 12 * 9; half of it is 54."""

    class Linear(nn.Module):
        def forward(self, x, labels=None):
            return 3 * x.sum((1, 2, 3))

    assert adversarial.gradient_penalty(
        Linear(), torch.zeros(5, 3, 2, 2)
    ).item() == pytest.approx(54)


def test_spectral_norm_makes_every_layer_a_contraction():
    torch.manual_seed(0)
    network = dcgan.Discriminator(4, spectral=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network)
    for _ in range(50):
        network(
            torch.randn(2, 3, 64, 64)
        )  # each pass is one step of the power iteration
    network.eval()
    for layer in (module for module in network if isinstance(module, nn.Conv2d)):
        assert torch.linalg.matrix_norm(
            layer.weight.flatten(1), 2
        ).item() == pytest.approx(1, abs=0.02)


def test_augment_changes_colour_place_and_a_patch_and_lets_gradients_pass():
    pixels = torch.randn(64, 3, 16, 16).requires_grad_()
    changed = adversarial.augment(pixels, torch.Generator().manual_seed(0))
    assert changed.shape == pixels.shape
    empty = (changed == 0).all(1).flatten(1).float().mean(1)  # moved in, or cut out
    assert 0.1 < empty.mean() < 0.45
    assert empty.max() <= 0.25 + 2 * 2 / 16
    changed.square().sum().backward()
    assert pixels.grad.abs().sum() > 0
    again = adversarial.augment(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(again, changed)


def test_augment_moves_and_cuts_as_drawn(monkeypatch):
    """No change of colour, one row down, two columns left, the upper left quarter cut out."""
    drawn = torch.tensor([0.5, 0.5, 0.5, 0.75, 0.0, 0.25, 0.25]).reshape(7, 1)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    pixels = torch.arange(1.0, 257).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    changed = adversarial.augment(pixels, torch.Generator())[0, 0]
    expected = F.pad(pixels[0, 0, :-1, 2:], (0, 2, 1, 0))
    expected[:8, :8] = 0
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-3)


def test_a_conditional_pair_knows_its_classes():
    torch.manual_seed(0)
    generator, discriminator = (
        dcgan.Generator(4, 2, classes=3).eval(),
        dcgan.Discriminator(2, classes=3).eval(),
    )
    points = dcgan.noise(1, 4).expand(3, 4)
    drawn = dcgan.sample(generator, points, torch.arange(3))
    assert not np.array_equal(drawn[0], drawn[1])
    pixels = torch.randn(3, 3, 64, 64)
    logits = torch.stack(
        [discriminator(pixels, torch.full((3,), label)) for label in range(3)], 1
    )
    mixed = discriminator(pixels, torch.tensor([2, 0, 1]))
    assert torch.equal(mixed, logits[torch.arange(3), torch.tensor([2, 0, 1])])


def test_one_class_of_a_conditional_training(pictures, tmp_path):
    result = fit(pictures, conditional=True)
    points = dcgan.noise(3, 4)
    for index in range(2):
        one = result.of_class(index)
        drawn = dcgan.sample(one.generator, points)
        assert np.array_equal(
            drawn, dcgan.sample(result.generator, points, torch.full((3,), index))
        )
        assert np.array_equal(one.snapshots[1], result.snapshots[1][index::2])
        path = tmp_path / f"dcgan_{index}.safetensors"
        dcgan.save(path, result, dcgan.Recipe(**TINY), index)
        assert np.array_equal(dcgan.sample(dcgan.load(path, "cpu")[0], points), drawn)
    plain = fit(pictures)
    assert plain.of_class(0) is plain


def test_the_recipes_by_name(pictures):
    assert dcgan.ingredients("plain") == {}
    best = fit(pictures, **dcgan.ingredients("best"))
    assert best.history != fit(pictures).history
    with pytest.raises(
        runtime.InputError, match="recipe must be plain or best; found 'bset'"
    ):
        dcgan.ingredients("bset")


# --- sample ----------------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_its_own_point_only():
    generator = dcgan.Generator(4, 2).train()
    points = dcgan.noise(5, 4, seed=3)
    together = dcgan.sample(generator, points, batch_size=2)
    alone = np.concatenate([dcgan.sample(generator, point[None]) for point in points])
    assert together.shape == (5, 64, 64, 3)
    assert together.dtype == np.uint8
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert generator.training


def test_interpolation_by_hand():
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    half = math.sqrt(2)
    assert torch.allclose(
        dcgan.interpolate(start, end, 3),
        torch.tensor([[2.0, 0.0], [half, half], [0.0, 2.0]]),
        atol=1e-6,
    )
    for other, cosine in ((-start, "-1"), (start, "1"), (0 * start, "0")):
        with pytest.raises(runtime.InputError, match=rf"cosine is {cosine}\.000"):
            dcgan.interpolate(start, other, 3)


def test_saved_weights_draw_the_same_pictures(pictures, tmp_path):
    result, path = fit(pictures), tmp_path / "dcgan_1.safetensors"
    dcgan.save(path, result, dcgan.Recipe(**TINY))
    loaded, settings = dcgan.load(path, "cpu")
    points = dcgan.noise(3, 4)
    assert settings == {
        "latent": 4,
        "features": 2,
        "epochs": 1,
        "classes": 0,
        "index": 0,
    }
    assert np.array_equal(
        dcgan.sample(loaded, points), dcgan.sample(result.generator, points)
    )
