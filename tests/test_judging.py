"""Judging: distances worked out by hand and against an independent library, copies and variety."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torchmetrics.image.fid import FrechetInceptionDistance

from fashionlib import gan_metrics, images
from fashionlib.runtime import InputError


def test_features_are_the_input_of_the_last_linear_layer_and_the_hook_is_gone():
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6)
    ).train()
    grey = np.full((5, 64, 64, 3), 51, np.uint8)  # 0.2
    seen, logits = gan_metrics.embed(
        model, grey, size=(32, 24), batch_size=2, precision="float32"
    )
    expected = [
        (0.2 - mean) / deviation
        for mean, deviation in zip(images.MEAN, images.STD, strict=True)
    ]
    assert torch.allclose(seen, torch.tensor(expected).expand(5, 3), atol=1e-5)
    assert torch.allclose(logits, model[2](seen), atol=1e-5)
    assert model.training
    assert not model[2]._forward_pre_hooks


def test_embed_resizes_to_the_size_of_the_classifier():
    sides = []
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6))
    model.register_forward_pre_hook(
        lambda _module, inputs: sides.append(tuple(inputs[0].shape))
    )
    for size in (64, 32, (80, 60)):
        gan_metrics.embed(model, np.zeros((2, 64, 64, 3), np.uint8), size=size)
    assert sides == [(2, 3, 64, 64), (2, 3, 32, 32), (2, 3, 80, 60)]


def test_frechet_distance_against_the_formula():
    chance = np.random.default_rng(0)
    real, generated = (
        chance.normal(0, 1, (60, 4)),
        chance.normal(0.5, 2, (60, 4)) @ chance.normal(0, 1, (4, 4)),
    )
    covariances = [np.cov(x, rowvar=False) for x in (real, generated)]
    gap = real.mean(0) - generated.mean(0)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert gan_metrics.frechet_distance(
        torch.tensor(real), torch.tensor(generated)
    ) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [20, 200])  # fewer and more pictures than features
def test_frechet_distance_equals_torchmetrics(count):
    chance = torch.Generator().manual_seed(0)
    real, generated = torch.randn(
        2, count, 50, generator=chance, dtype=torch.float64
    ).relu()
    extractor = nn.Identity()
    extractor.num_features = 50
    metric = FrechetInceptionDistance(feature=extractor)
    metric.update(real, real=True)
    metric.update(3 * generated, real=False)
    assert gan_metrics.frechet_distance(real, 3 * generated) == pytest.approx(
        metric.compute().item(), rel=1e-6
    )


def test_frechet_distance_with_fewer_pictures_than_features():
    """A covariance without full rank: a shift by 1 in 50 features is still worth exactly 50."""
    real = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    assert gan_metrics.frechet_distance(real, real) == pytest.approx(0, abs=1e-4)
    assert gan_metrics.frechet_distance(real, real + 1) == pytest.approx(50, abs=1e-3)


@pytest.fixture
def inception_weights(tmp_path, monkeypatch):
    """A file as the download leaves it in torch's cache, with random weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / Path(inception.URL_INCEPTION_V3).name
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = inception.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"]
            )
    torch.save(network.state_dict(), path)
    return path


def test_inception_gives_the_distance_of_torchmetrics(inception_weights):
    chance = np.random.default_rng(0)
    real, generated = chance.integers(0, 256, (2, 6, 64, 64, 3), np.uint8)
    generated = generated // 2
    embed = gan_metrics.inception(batch_size=4, device="cpu")
    assert embed(real).shape == (6, 2048)
    metric = FrechetInceptionDistance(
        2048, feature_extractor_weights_path=str(inception_weights)
    )
    metric.update(torch.from_numpy(real).permute(0, 3, 1, 2), real=True)
    metric.update(torch.from_numpy(generated).permute(0, 3, 1, 2), real=False)
    found = gan_metrics.frechet_distance(embed(real), embed(generated))
    assert found > 0
    assert found == pytest.approx(metric.compute().item(), rel=1e-3)


def test_inception_without_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        InputError,
        match=r"Inception's weights could not be had.*Put weights-inception\S+\.pth, which",
    ):
        gan_metrics.inception()


def test_scores_of_the_same_pictures_and_of_darker_ones():
    """Features: the mean grey. Halved, 0, 40, ..., 200 have a mean of 50 instead of 100, and half the deviation s."""
    real = np.stack(
        [np.full((4, 4, 3), value, np.uint8) for value in range(0, 201, 40)]
    )
    found = gan_metrics.scores(
        lambda pixels: torch.from_numpy(pixels.mean((1, 2, 3)))[:, None],
        real,
        {"same": real, "darker": real // 2},
    )
    assert (
        found["same"].pop("kernel") < 0
    )  # without bias: a set against itself falls below 0
    assert found["same"] == pytest.approx(
        {"frechet": 0, "precision": 1, "recall": 1, "variety": 1}, abs=1e-6
    )
    variance = 40**2 * 3.5  # of 0, 1, ..., 5 it is 3.5
    assert found["darker"]["frechet"] == pytest.approx(50**2 + variance / 4)
    assert found["darker"]["variety"] == pytest.approx(0.5)
    with pytest.raises(
        InputError, match="few: expected 6 pictures as in the reference, found 5"
    ):
        gan_metrics.scores(lambda pixels: pixels, real, {"few": real[:5]})


def test_kernel_distance_by_hand():
    """Features of one number: k(a, b) = (a b + 1)^3; real 0, 1 and generated 0, 2."""
    real, generated = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    across = (1 + 1 + 1 + 27) / 4  # k(0,0), k(0,2), k(1,0), k(1,2)
    assert gan_metrics.kernel_distance(real, generated) == pytest.approx(
        1 + 1 - 2 * across
    )  # k(0,1) + k(0,2) - 2 across


def test_baseline_has_the_mean_and_the_deviation_of_the_real_pictures():
    real = np.zeros((2, 64, 64, 3), np.uint8)
    real[:, :32], real[0, 32:], real[1, 32:] = (
        200,
        90,
        110,
    )  # 200 everywhere; mean 100, deviation 10
    drawn = gan_metrics.mean_and_noise(real, 50, seed=0)
    assert (drawn[:, :32] == 200).all()
    assert drawn[:, 32:].mean() == pytest.approx(100, abs=0.1)
    assert drawn[:, 32:].std() == pytest.approx(10, abs=0.1)


def test_nearest_neighbours_by_hand():
    real = np.stack(
        [np.full((2, 2, 3), value, np.uint8) for value in (0, 100, 200, 255)]
    )
    queries = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (103, 250, 0)])
    for chunk in (1, 3, 100):
        index, distance = gan_metrics.nearest_neighbours(queries, real, chunk=chunk)
        assert index.tolist() == [1, 3, 0]
        assert distance.tolist() == [3, 5, 0]


def test_variety_by_hand():
    """Grey 0, 30 and 90: the pairs differ by 30, 60 and 90."""
    pictures = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (0, 30, 90)])
    assert gan_metrics.variety(pictures) == pytest.approx(60)
    with pytest.raises(InputError, match="at least two pictures, found 1"):
        gan_metrics.variety(pictures[:1])


def test_precision_and_recall_by_hand():
    """On a line: real 0, 1, 2, 3, generated 0.5 and 50. With one neighbour a real point reaches 1, 50 reaches 49.5."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    generated = torch.tensor([[0.5], [50.0]])
    precision, recall = gan_metrics.precision_and_recall(real, generated, neighbours=1)
    assert precision == 0.5
    assert recall == 1.0  # 0.5 and 50 reach each other, and all that lies between
    far = torch.tensor([[100.0], [101.0]])
    assert gan_metrics.precision_and_recall(real, far, neighbours=1) == (0.0, 0.0)
