"""dcgan: shapes, numbers of parameters, losses and distances worked out by hand; a stopped training ends the same."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fashionlib import artifacts, dcgan, images, runtime
from fashionlib.images import ImageSet

TINY = {"features": 2, "latent": 4, "batch_size": 4, "device": "cpu", "precision": "float32"}


@pytest.fixture
def pictures():
    """Ten pictures: bright squares of different grey on black."""
    pixels = np.zeros((10, 64, 64, 3), np.uint8)
    for i in range(10):
        pixels[i, 16:48, 16:48] = 100 + 15 * i
    return ImageSet(pixels, np.arange(10), np.full(10, 1))


# --- networks --------------------------------------------------------------------------------------------------------


def test_parameters_of_the_published_networks():
    generator = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (512 + 256 + 128 + 64)
    discriminator = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1) + 2 * (128 + 256 + 512)
    assert (generator, discriminator) == (3_576_704, 2_765_568)
    assert sum(p.numel() for p in dcgan.Generator().parameters()) == generator
    assert sum(p.numel() for p in dcgan.Discriminator().parameters()) == discriminator


def test_shapes_of_every_block():
    x = torch.randn(3, 5).reshape(3, 5, 1, 1)
    sides = []
    for layer in dcgan.Generator(latent=5, features=2):
        x = layer(x)
        if isinstance(layer, nn.ConvTranspose2d):
            sides.append(tuple(x.shape))
    assert sides == [(3, 16, 4, 4), (3, 8, 8, 8), (3, 4, 16, 16), (3, 2, 32, 32), (3, 3, 64, 64)]
    assert x.abs().max() <= 1
    assert dcgan.Discriminator(features=2)(x).shape == (3,)


def test_initial_weights_are_drawn_as_published():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [dcgan.Generator(), dcgan.Discriminator()]
    for network in networks:
        convolutions = [m.weight for m in network if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
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
    assert dcgan.discriminator_loss(undecided, undecided).item() == pytest.approx(2 * math.log(2))
    assert dcgan.generator_loss(undecided).item() == pytest.approx(math.log(2))
    real, fake = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, -math.log(3)])  # D = 1/2, 3/4; 1/2, 1/4
    each = (math.log(2) + math.log(4 / 3)) / 2
    assert dcgan.discriminator_loss(real, fake).item() == pytest.approx(2 * each)
    assert dcgan.generator_loss(fake).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    sure = torch.tensor([-200.0])  # log(1 - D) is flat here; the non-saturating loss still has slope -1
    sure.requires_grad_()
    dcgan.generator_loss(sure).backward()
    assert sure.grad.item() == pytest.approx(-1)


# --- fit -------------------------------------------------------------------------------------------------------------


def test_both_networks_learn_and_what_is_recorded(pictures):
    result = dcgan.fit(pictures, epochs=2, **TINY)
    assert [record["epoch"] for record in result.history] == [1, 1, 2, 2]  # 10 pictures: 2 full batches of 4
    assert set(result.history[0]) == {"epoch", *dcgan.RECORD}
    assert all(math.isfinite(record[name]) for record in result.history for name in dcgan.RECORD)
    assert all(0 < record[name] < 1 for record in result.history for name in ("real_score", "fake_score"))
    assert set(result.snapshots) == {1, 2}
    assert result.snapshots[2].shape == (16, 64, 64, 3)
    assert result.images_per_second == pytest.approx(16 / result.seconds)
    start, _ = dcgan._players(4, 2, 2e-4, 0.5, 0.0, 0, torch.device("cpu"))
    for name, trained in (("generator", result.generator), ("discriminator", result.discriminator)):
        for before, after in zip(start[name].parameters(), trained.parameters(), strict=True):
            assert not torch.equal(before, after)


def test_each_player_moves_its_own_weights_only(pictures):
    networks, updates = dcgan._players(4, 2, 0.0, 0.5, 0.0, 0, torch.device("cpu"))
    updates["discriminator"].param_groups[0]["lr"] = 0.1
    before = {name: value.clone() for name, value in networks.named_parameters()}
    real = torch.from_numpy(pictures.images[:4]).permute(0, 3, 1, 2) / 127.5 - 1
    dcgan.step(networks, updates, real, dcgan.noise(4, 4), "float32")
    moved = {name.split(".")[0] for name, value in networks.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"discriminator"}


def test_pictures_reach_the_discriminator_in_minus_one_to_one(pictures):
    batch, _ = next(dcgan._batches(torch.from_numpy(pictures.images), 10, 1, 0, flip=False))
    centre = sorted(round(float(value) * 127.5 + 127.5) for value in batch[:, 0, 32, 32])
    assert centre == [100 + 15 * i for i in range(10)]  # every picture once
    assert batch[:, :, 0, 0].eq(-1).all()
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_flip_mirrors_about_half_of_the_pictures():
    pixels = torch.zeros(200, 64, 64, 3, dtype=torch.uint8)
    pixels[:, :, 0] = 255  # a white left edge
    mirrored = {
        flip: sum(int((batch[:, 0, 0, 63] == 1).sum()) for batch, _ in dcgan._batches(pixels, 50, 1, seed=0, flip=flip))
        for flip in (True, False)
    }
    assert 70 < mirrored[True] < 130
    assert mirrored[False] == 0


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_training_ends_with_the_same_numbers(pictures, tmp_path, monkeypatch, ema):
    options = {**TINY, "epochs": 3, "ema": ema}
    whole = dcgan.fit(pictures, **options)
    path, save, saved = tmp_path / "checkpoint.safetensors", artifacts.save_checkpoint, []

    def save_once(*arguments, **keywords):
        if saved:
            raise KeyboardInterrupt
        saved.append(save(*arguments, **keywords))

    monkeypatch.setattr(artifacts, "save_checkpoint", save_once)
    with pytest.raises(KeyboardInterrupt):
        dcgan.fit(pictures, checkpoint=path, **options)
    monkeypatch.setattr(artifacts, "save_checkpoint", save)
    state, _ = artifacts.read_checkpoint(path)
    assert len(state["records"]) == 1
    resumed = dcgan.fit(pictures, checkpoint=path, **options)
    assert resumed.history == whole.history
    for ours, theirs in zip(
        resumed.generator.state_dict().values(), whole.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert all(np.array_equal(resumed.snapshots[epoch], whole.snapshots[epoch]) for epoch in (1, 2, 3))

    monkeypatch.setattr(dcgan, "_epoch", None)  # a finished training must not train again
    assert dcgan.fit(pictures, checkpoint=path, **options).history == whole.history


def test_the_average_is_the_running_mean_of_the_weights(pictures):
    """Two steps: the average starts at the first weights w1, then decay w1 + (1 - decay) w2."""
    one, two = (dcgan.fit(pictures, epochs=epochs, **(TINY | {"batch_size": 10})) for epochs in (1, 2))
    mean = dcgan.fit(pictures, epochs=2, ema=0.75, **(TINY | {"batch_size": 10})).generator
    for first, second, average in zip(*(r.parameters() for r in (one.generator, two.generator, mean)), strict=True):
        assert torch.allclose(average, 0.75 * first + 0.25 * second, atol=1e-7)


def test_the_same_seed_gives_the_same_training_and_another_seed_another(pictures):
    first, again, other = (dcgan.fit(pictures, epochs=1, seed=seed, **TINY).history for seed in (0, 0, 1))
    assert first == again != other


def test_mistakes_are_named(pictures, tmp_path):
    with pytest.raises(runtime.InputError, match=r"found 10 pictures and batch_size = 11.*smaller batch_size"):
        dcgan.fit(pictures, epochs=1, **(TINY | {"batch_size": 11}))
    with pytest.raises(runtime.InputError, match=r"64x64 pictures; found \(32, 32, 3\)"):
        dcgan.fit(pictures._replace(images=pictures.images[:, :32, :32]), epochs=1, **TINY)
    with pytest.raises(runtime.InputError, match="not finite: lower learning_rate = inf"):
        dcgan.fit(pictures, epochs=2, learning_rate=math.inf, **TINY)
    prepared = images.Prepared(tmp_path, None, {})
    with pytest.raises(runtime.InputError, match="class 6 does not exist; the classes are 0 Men/Accessories, 1 Women"):
        dcgan.of_class(prepared, 6)


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
        dcgan.interpolate(start, end, 3), torch.tensor([[2.0, 0.0], [half, half], [0.0, 2.0]]), atol=1e-6
    )
    with pytest.raises(runtime.InputError, match=r"cosine is -1\.000"):
        dcgan.interpolate(start, -start, 3)


def test_saved_weights_draw_the_same_pictures(tmp_path):
    generator, path = dcgan.Generator(4, 2).eval(), tmp_path / "dcgan_1.safetensors"
    artifacts.save_weights(path, generator, {"latent": 4, "features": 2})
    loaded, settings = dcgan.load(path, "cpu")
    points = dcgan.noise(3, 4)
    assert settings == {"latent": 4, "features": 2}
    assert np.array_equal(dcgan.sample(loaded, points), dcgan.sample(generator, points))


# --- distances -------------------------------------------------------------------------------------------------------


def test_features_are_the_input_of_the_last_linear_layer_and_the_hook_is_gone():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6)).train()
    grey = np.full((5, 64, 64, 3), 51, np.uint8)  # 0.2
    seen, logits = dcgan.embed(model, grey, size=(32, 24), batch_size=2, precision="float32")
    expected = [(0.2 - mean) / deviation for mean, deviation in zip(images.MEAN, images.STD, strict=True)]
    assert torch.allclose(seen, torch.tensor(expected).expand(5, 3), atol=1e-5)
    assert torch.allclose(logits, model[2](seen), atol=1e-5)
    assert model.training
    assert not model[2]._forward_pre_hooks


def test_embed_resizes_to_the_size_of_the_classifier():
    sides = []
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6))
    model.register_forward_pre_hook(lambda _module, inputs: sides.append(tuple(inputs[0].shape)))
    for size in (64, 32, (80, 60)):
        dcgan.embed(model, np.zeros((2, 64, 64, 3), np.uint8), size=size)
    assert sides == [(2, 3, 64, 64), (2, 3, 32, 32), (2, 3, 80, 60)]


def test_frechet_distance_against_the_formula():
    chance = np.random.default_rng(0)
    real, generated = chance.normal(0, 1, (60, 4)), chance.normal(0.5, 2, (60, 4)) @ chance.normal(0, 1, (4, 4))
    covariances = [np.cov(x, rowvar=False) for x in (real, generated)]
    gap = real.mean(0) - generated.mean(0)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert dcgan.frechet_distance(torch.tensor(real), torch.tensor(generated)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [20, 200])  # fewer and more pictures than features
def test_frechet_distance_equals_torchmetrics(count):
    chance = torch.Generator().manual_seed(0)
    real, generated = torch.randn(2, count, 50, generator=chance, dtype=torch.float64).relu()
    extractor = nn.Identity()
    extractor.num_features = 50
    metric = FrechetInceptionDistance(feature=extractor)
    metric.update(real, real=True)
    metric.update(3 * generated, real=False)
    assert dcgan.frechet_distance(real, 3 * generated) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_frechet_distance_with_fewer_pictures_than_features():
    """A covariance without full rank: a shift by 1 in 50 features is still worth exactly 50."""
    real = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    assert dcgan.frechet_distance(real, real) == pytest.approx(0, abs=1e-4)
    assert dcgan.frechet_distance(real, real + 1) == pytest.approx(50, abs=1e-3)


def test_kernel_distance_by_hand():
    """Features of one number: k(a, b) = (a b + 1)^3; real 0, 1 and generated 0, 2."""
    real, generated = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    across = (1 + 1 + 1 + 27) / 4  # k(0,0), k(0,2), k(1,0), k(1,2)
    assert dcgan.kernel_distance(real, generated) == pytest.approx(1 + 1 - 2 * across)  # k(0,1) + k(0,2) - 2 across


def test_baseline_has_the_mean_and_the_deviation_of_the_real_pictures():
    real = np.zeros((2, 64, 64, 3), np.uint8)
    real[:, :32], real[0, 32:], real[1, 32:] = 200, 90, 110  # 200 everywhere; mean 100, deviation 10
    drawn = dcgan.mean_and_noise(real, 50, seed=0)
    assert (drawn[:, :32] == 200).all()
    assert drawn[:, 32:].mean() == pytest.approx(100, abs=0.1)
    assert drawn[:, 32:].std() == pytest.approx(10, abs=0.1)


def test_nearest_neighbours_by_hand():
    real = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (0, 100, 200, 255)])
    queries = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (103, 250, 0)])
    for chunk in (1, 3, 100):
        index, distance = dcgan.nearest_neighbours(queries, real, chunk=chunk)
        assert index.tolist() == [1, 3, 0]
        assert distance.tolist() == [3, 5, 0]
