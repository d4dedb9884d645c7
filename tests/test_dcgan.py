"""dcgan: shapes, parameters and losses worked out by hand; a stopped training ends the
same; the ingredients of the experiment with recipes.
"""

import functools
import math
import sys

import numpy as np
import pytest
import torch
from conftest import from_chapter
from torch import nn
from torch.nn import functional as F

from fashionlib import artifacts, dcgan, runtime
from fashionlib.images import ImageSet

TINY = {"epochs": 1, "base_channels": 2, "latent_dim": 4, "batch_size": 4}
CPU = torch.device("cpu")


def fit(data, checkpoint=None, **changed):
    recipe = dcgan.Recipe(**(TINY | changed))
    options = {"device": "cpu", "precision": "float32", "checkpoint": checkpoint}
    return dcgan.fit(data, recipe=recipe, **options)


def trainer(**changed):
    return dcgan.DCGANTrainer(dcgan.Recipe(**(TINY | changed)), CPU, "float32")


@pytest.fixture
def data():
    """Ten images: bright rectangles of different gray on black, not quite centered."""
    pixels = np.zeros((10, 64, 64, 3), np.uint8)
    for i in range(10):
        pixels[i, 16:48, 20:48] = 100 + 15 * i
    return ImageSet(pixels, np.arange(10), np.array([1, 2] * 5))


# --- networks and losses --------------------------------------------------------------


def test_parameters_of_the_published_networks():
    generator = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    generator += 2 * (512 + 256 + 128 + 64)
    discriminator = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    discriminator += 2 * (128 + 256 + 512)
    assert (generator, discriminator) == (3_576_704, 2_765_568)
    assert sum(p.numel() for p in dcgan.Generator().parameters()) == generator
    assert sum(p.numel() for p in dcgan.Discriminator().parameters()) == discriminator


def test_shapes_of_every_block():
    x, shapes = torch.randn(3, 5), []
    for layer in dcgan.Generator(latent_dim=5, base_channels=2):
        x = layer(x)
        if isinstance(layer, nn.ConvTranspose2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 4, 4), (8, 8, 8), (4, 16, 16), (2, 32, 32), (3, 64, 64)]
    assert x.abs().max() <= 1
    assert dcgan.Discriminator(base_channels=2)(x).shape == (3,)


def test_initial_weights_are_as_published():
    torch.manual_seed(0)
    for network in (dcgan.Generator(), dcgan.Discriminator()):
        kinds = nn.Conv2d | nn.ConvTranspose2d
        weights = [m.weight.flatten() for m in network if isinstance(m, kinds)]
        norms = [m for m in network if isinstance(m, nn.BatchNorm2d)]
        scales = torch.cat([norm.weight for norm in norms])
        assert all(norm.bias.eq(0).all() for norm in norms)
        assert torch.cat(weights).mean().item() == pytest.approx(0, abs=1e-4)
        assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.01)
        assert scales.mean().item() == pytest.approx(1, abs=0.005)
        assert scales.std().item() == pytest.approx(0.02, rel=0.15)


def test_transposed_convolution_by_hand():
    """Each value stamps the kernel, times itself, at twice its place; stamps add up."""
    layer = nn.ConvTranspose2d(1, 1, 3, stride=2, bias=False)
    layer.weight.data = torch.arange(1.0, 10).reshape(1, 1, 3, 3)  # rows 123, 456, 789
    output = layer(torch.tensor([[[[1.0, 2.0], [0.0, 3.0]]]])).squeeze()
    assert output.tolist() == [
        [1, 2, 3 + 2, 4, 6],
        [4, 5, 6 + 8, 10, 12],
        [7, 8, 9 + 14 + 3, 16 + 6, 18 + 9],
        [0, 0, 12, 15, 18],
        [0, 0, 21, 24, 27],
    ]


def test_losses_by_hand():
    even = torch.zeros(4)
    d_loss, g_loss = dcgan.discriminator_loss, dcgan.generator_loss
    assert d_loss(even, even).item() == pytest.approx(2 * math.log(2))
    assert g_loss(even).item() == pytest.approx(math.log(2))
    real = torch.tensor([0.0, math.log(3)])  # D = 1/2, 3/4
    fake = torch.tensor([0.0, -math.log(3)])  # D = 1/2, 1/4
    each = (math.log(2) + math.log(4 / 3)) / 2
    assert d_loss(real, fake).item() == pytest.approx(2 * each)
    assert g_loss(fake).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    sure = torch.tensor([-200.0], requires_grad=True)  # where log(1 - D) is flat
    g_loss(sure).backward()
    assert sure.grad.item() == pytest.approx(-1)


# --- training -------------------------------------------------------------------------


def test_a_step_by_hand_equals_the_trainer(data):
    """The two updates as a chapter writes them: plain lines, torch's defaults."""
    taught, ours = trainer(), trainer()
    generator, discriminator = taught.generator, taught.discriminator
    adam = functools.partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)
    d_optimizer = adam(discriminator.parameters())
    g_optimizer = adam(generator.parameters())
    log_d = nn.LogSigmoid()  # log D of a logit; of minus the logit, log(1 - D)
    for real, z in ours.batches(torch.from_numpy(data.images), 1):
        fake = generator(z)
        d_loss = -log_d(discriminator(real)).mean()
        d_loss = d_loss - log_d(-discriminator(fake.detach())).mean()
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()
        g_loss = -log_d(discriminator(fake)).mean()
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        assert ours.train_step(real, z)[:2].tolist() == [d_loss.item(), g_loss.item()]
    for name, value in ours.generator.state_dict().items():
        assert torch.equal(value, generator.state_dict()[name])


def test_both_networks_learn_and_what_is_recorded(data):
    result = fit(data, epochs=2)
    epochs = [record["epoch"] for record in result.history]
    assert epochs == [1, 1, 2, 2]  # 10 images: 2 full batches of 4
    for record in result.history:
        assert set(record) == {"epoch", *dcgan.RECORDED}
        assert all(math.isfinite(value) for value in record.values())
        assert 0 < record["real_score"] < 1
        assert 0 < record["fake_score"] < 1
    assert set(result.snapshots) == set(result.diversity) == {1, 2}
    assert result.snapshots[2].shape == (16, 64, 64, 3)
    assert result.snapshots[2].dtype == np.uint8
    assert result.images_per_second == pytest.approx(16 / result.seconds)
    start = trainer()
    for name in ("generator", "discriminator"):
        first, trained = getattr(start, name), getattr(result, name)
        pairs = zip(first.parameters(), trained.parameters(), strict=True)
        assert not any(torch.equal(before, after) for before, after in pairs)
        assert not trained.training


def test_each_player_moves_its_own_weights_only(data):
    started = trainer()
    started.g_optimizer.param_groups[0]["lr"] = 0.0
    before = {name: value.clone() for name, value in started.named_parameters()}
    started.train_step(*next(started.batches(torch.from_numpy(data.images), 1)))
    moved = set()
    for name, value in started.named_parameters():
        if not torch.equal(value, before[name]):
            moved.add(name.split(".")[0])
    assert moved == {"discriminator"}


def test_images_reach_the_discriminator_in_minus_one_to_one(data):
    pixels = torch.from_numpy(data.images)
    real, z = next(trainer(batch_size=10, flip=False).batches(pixels, 1))
    centers = (real[:, 0, 32, 32] * 127.5 + 127.5).round().int().tolist()
    assert sorted(centers) == [100 + 15 * i for i in range(10)]  # each image once
    assert real[:, :, 0, 0].eq(-1).all()
    assert real.is_contiguous(memory_format=torch.channels_last)
    assert z.shape == (10, 4)


def test_flip_mirrors_about_half_of_the_images():
    pixels = torch.zeros(200, 64, 64, 3, dtype=torch.uint8)
    pixels[:, :, 0] = 255  # a white left edge
    for flip in (True, False):
        mirrored = 0
        for real, _ in trainer(batch_size=50, flip=flip).batches(pixels, 1):
            mirrored += int((real[:, 0, 0, 63] == 1).sum())
        assert 70 < mirrored < 130 if flip else mirrored == 0


@pytest.mark.parametrize("changed", [{}, {"ema_decay": 0.9}])
def test_a_stopped_training_ends_with_the_same_numbers(
    data, tmp_path, monkeypatch, changed
):
    options = {"epochs": 3, **changed}
    whole, path, save = (
        fit(data, **options),
        tmp_path / "dcgan",
        artifacts.save_checkpoint,
    )

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            fit(data, path, **options)
    assert len(list(tmp_path.glob("dcgan-*.pt"))) == 1
    resumed = fit(data, path, **options)
    assert resumed.history == whole.history
    assert resumed.diversity == whole.diversity
    for name in ("generator", "discriminator"):
        theirs = getattr(whole, name).state_dict()
        for key, value in getattr(resumed, name).state_dict().items():
            assert torch.equal(value, theirs[key])
    for epoch in (1, 2, 3):
        assert np.array_equal(resumed.snapshots[epoch], whole.snapshots[epoch])

    monkeypatch.setattr(dcgan.DCGANTrainer, "train_epoch", None)  # must not be called
    again = fit(data, path, **options)
    assert again.history == whole.history
    assert again.seconds == resumed.seconds


def test_other_data_or_another_recipe_never_go_on_from_a_checkpoint(data, tmp_path):
    path = tmp_path / "dcgan"
    fit(data, path)
    fit(data, path, seed=1)
    fit(data._replace(rows=data.rows[1:]), path)
    recipe, options = dcgan.Recipe(**TINY), {"device": "cpu", "precision": "float32"}
    settings = {"data": "another checksum"}
    dcgan.fit(data, recipe=recipe, checkpoint=path, settings=settings, **options)
    assert len(list(tmp_path.glob("dcgan-*.pt"))) == 4


def test_the_average_is_the_running_mean_of_the_weights(data):
    """It starts at the weights of step one, w1; after two it is d w1 + (1 - d) w2."""
    one = fit(data, epochs=1, batch_size=10).generator
    two = fit(data, epochs=2, batch_size=10).generator
    mean = fit(data, epochs=2, batch_size=10, ema_decay=0.75).generator
    triples = zip(*(each.parameters() for each in (one, two, mean)), strict=True)
    for first, second, average in triples:
        assert torch.allclose(average, 0.75 * first + 0.25 * second, atol=1e-7)


def test_the_average_does_not_steer_the_training(data):
    assert fit(data, epochs=2, ema_decay=0.9).history == fit(data, epochs=2).history


def test_the_same_seed_gives_the_same_training_and_another_seed_another(data):
    first, again, other = (fit(data, seed=seed).history for seed in (0, 0, 1))
    assert first == again != other


def test_mistakes_are_named(data):
    with pytest.raises(runtime.InputError, match=r"11.*found \(10,"):
        fit(data, batch_size=11)
    with pytest.raises(runtime.InputError, match=r"found \(10, 32, 32, 3\)"):
        fit(data._replace(images=data.images[:, :32, :32]))
    with pytest.raises(runtime.InputError, match="learning_rate"):
        fit(data, epochs=3, learning_rate=1e30)
    with pytest.raises(runtime.InputError, match="all the same"):
        fit(data._replace(rows=np.zeros(10, int)))


def test_diversity_is_compared_with_a_sample_of_all_images():
    """Of 128 images the first 64 are all black: no sample has these alone."""
    pixels = np.zeros((128, 64, 64, 3), np.uint8)
    pixels[64:] = np.arange(64, dtype=np.uint8)[:, None, None, None] * 3
    train = ImageSet(pixels, np.arange(128), np.ones(128, int))
    first, again = (fit(train, epochs=1, batch_size=64).diversity for _ in range(2))
    assert 0 < first[1] < 100
    assert first == again


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "epochs": (0, 2.0, "3", True),
        "batch_size": (1, -4, 64.0),
        "learning_rate": (0, -1e-4, math.inf, math.nan, "2e-4"),
        "beta1": (-0.1, 1, 1.5, None),
        "ema_decay": (-0.1, 1, 1.5, math.nan),
        "latent_dim": (0, 1, 1.5, "100"),
        "base_channels": (0, 1.5),
        "flip": (1, "false", None),
        "seed": (-1, 0.5, 2**32),
    }.items(),
)
def test_a_recipe_refuses_what_no_training_can_use(name, values):
    for value in values:
        with pytest.raises(runtime.InputError, match=f"{name} must be"):
            dcgan.Recipe(**(TINY | {name: value}))


def test_the_recipes_by_name(data):
    plain, best = (fit(data, **dcgan.RECIPES[name]) for name in ("plain", "best"))
    assert plain.history == fit(data).history != best.history


# --- use ------------------------------------------------------------------------------


def test_a_sample_depends_on_its_own_noise_only():
    generator = dcgan.Generator(4, 2).train()
    z = dcgan.noise(5, 4, seed=3)
    together = dcgan.sample(generator, z, batch_size=2)
    alone = np.concatenate([dcgan.sample(generator, each[None]) for each in z])
    assert (together.shape, together.dtype) == ((5, 64, 64, 3), np.uint8)
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert generator.training


def test_interpolation_by_hand():
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    half = math.sqrt(2)
    expected = torch.tensor([[2.0, 0.0], [half, half], [0.0, 2.0]])
    interpolate = from_chapter("05_dcgan").interpolate
    assert torch.allclose(interpolate(start, end, 3), expected, atol=1e-6)
    for other in (-start, start, 0 * start):
        with pytest.raises(runtime.InputError, match="cosine"):
            interpolate(start, other, 3)


def test_saved_weights_draw_the_same_images(data, tmp_path):
    result, path = fit(data), tmp_path / "dcgan_1.safetensors"
    recipe = dcgan.Recipe(**TINY)
    artifacts.save_weights(path, result.generator, vars(recipe))
    loaded = dcgan.Generator(recipe.latent_dim, recipe.base_channels)
    settings = artifacts.load_weights(path, loaded)
    z = dcgan.noise(3, 4)
    assert dcgan.Recipe(**settings) == recipe
    assert np.array_equal(dcgan.sample(loaded, z), dcgan.sample(result.generator, z))


# --- the ingredients of benchmarks/experiments/gan_recipes.py -------------------------


@pytest.fixture
def recipes(monkeypatch):
    folder = runtime.project_root() / "benchmarks" / "experiments"
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.syspath_prepend(str(folder))
    import gan_recipes

    yield gan_recipes
    sys.modules.pop("gan_recipes")


def fit_variant(recipes, data, **changed):
    recipe = recipes.Recipe(**(TINY | {"epochs": 2} | changed))
    labels = torch.from_numpy(data.labels - 1)
    made = functools.partial(recipes.Trainer, labels=labels)
    options = {"device": "cpu", "precision": "float32", "trainer": made}
    return dcgan.fit(data, recipe=recipe, **options)


def test_every_ingredient_trains_and_changes_the_training(recipes, data):
    plain = fit(data, epochs=2).history
    assert fit_variant(recipes, data).history == plain
    for name, changed in recipes.VARIANTS.items():
        steered = changed.keys() - {"ema_decay"}
        history = fit_variant(recipes, data, **changed).history
        assert all(math.isfinite(step["generator_loss"]) for step in history)
        assert (history == plain) == (not steered), name


def test_a_conditional_batch_has_the_labels_of_its_images(recipes, data):
    recipe = recipes.Recipe(**(TINY | {"classes": 2, "batch_size": 5, "flip": False}))
    labels = torch.arange(10) % 2
    conditional = recipes.Trainer(recipe, CPU, "float32", labels=labels)
    for (real, chosen), _ in conditional.batches(torch.from_numpy(data.images), 1):
        gray = (real[:, 0, 32, 32] * 127.5 + 127.5).round().int()
        assert torch.equal((gray - 100) // 15 % 2, chosen)
    generator, discriminator = conditional.generator.eval(), conditional.discriminator
    z = dcgan.noise(1, 4).expand(2, 4)
    first, second = generator(z, torch.tensor([0, 1]))
    assert not torch.equal(first, second)
    assert torch.equal(generator(z)[1], first)  # untold, it draws the first class
    discriminator.eval()
    pixels = torch.randn(2, 3, 64, 64)
    logits = [discriminator(pixels, torch.full((2,), label)) for label in (0, 1)]
    mixed = discriminator(pixels, torch.tensor([1, 0]))
    assert mixed.tolist() == [logits[1][0], logits[0][1]]


def test_hinge_loss_and_gradient_penalty_by_hand(recipes):
    """A logit of 3 times the sum of 12 values has a squared slope of 12 * 9."""
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert recipes.hinge_loss(real, fake).item() == (0 + 1) / 2 + (0 + 2) / 2

    def linear(x, labels):
        return 3 * x.sum((1, 2, 3))

    penalty = recipes.gradient_penalty(linear, torch.zeros(5, 3, 2, 2))
    assert penalty.item() == pytest.approx(12 * 9 / 2)


def test_spectral_norm_makes_every_layer_a_contraction(recipes):
    torch.manual_seed(0)
    network = recipes.Discriminator(4, spectral=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network)
    for _ in range(50):  # each pass is one step of the power iteration
        network(torch.randn(2, 3, 64, 64))
    network.eval()
    for layer in (module for module in network if isinstance(module, nn.Conv2d)):
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=0.02)


def test_augment_changes_color_place_and_a_patch_and_lets_gradients_pass(recipes):
    pixels = torch.randn(64, 3, 16, 16).requires_grad_()
    changed = recipes.augment(pixels, torch.Generator().manual_seed(0))
    empty = (changed == 0).all(1).flatten(1).float().mean(1)  # moved in, or cut out
    assert 0.1 < empty.mean() < 0.45
    assert empty.max() <= 0.25 + 2 * 2 / 16
    changed.square().sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_augment_moves_and_cuts_by_hand(recipes, monkeypatch):
    """No change of color, a row down, two columns left, the upper left quarter cut."""
    drawn = torch.tensor([0.5, 0.5, 0.5, 0.75, 0.0, 0.25, 0.25]).reshape(7, 1)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    pixels = torch.arange(1.0, 257).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    changed = recipes.augment(pixels, torch.Generator())[0, 0]
    expected = F.pad(pixels[0, 0, :-1, 2:], (0, 2, 1, 0))
    expected[:8, :8] = 0
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_the_experiment_makes_a_dry_run(recipes, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gan_recipes", "--dry-run"])
    recipes.main()
    assert "11 variants" in capsys.readouterr().out
