"""gan_metrics: distances by hand and against other libraries; copies, diversity."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import from_chapter
from PIL import Image
from scipy import linalg
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fashionlib import gan_metrics, models
from fashionlib.runtime import InputError

chapter_5 = from_chapter("05_dcgan")
chapter_5.device = "cpu"


def identity(dimensions):
    """An extractor for torchmetrics that takes features as they are."""
    extractor = nn.Identity()
    extractor.num_features = dimensions
    return extractor


def gray(*values):
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


# --- distances ------------------------------------------------------------------------


def test_frechet_distance_against_the_formula():
    rng = np.random.default_rng(0)
    real = rng.normal(0, 1, (60, 4))
    generated = rng.normal(0.5, 2, (60, 4)) @ rng.normal(0, 1, (4, 4))
    a, b = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    gap = real.mean(0) - generated.mean(0)
    expected = gap @ gap + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    found = gan_metrics.frechet_distance(torch.tensor(real), torch.tensor(generated))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [20, 200])  # fewer and more images than features
def test_distances_equal_torchmetrics(count):
    rng = torch.Generator().manual_seed(0)
    pair = torch.randn(2, count, 50, generator=rng, dtype=torch.float64).relu()
    real, generated = pair[0], 3 * pair[1]
    frechet = FrechetInceptionDistance(feature=identity(50))
    kernel = KernelInceptionDistance(identity(50), subsets=1, subset_size=count)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(generated, real=False)
    found = gan_metrics.frechet_distance(real, generated)
    assert found == pytest.approx(frechet.compute().item(), rel=1e-6)
    found = gan_metrics.kernel_distance(real, generated)
    assert found == pytest.approx(kernel.compute()[0].item(), rel=1e-5)


@pytest.mark.parametrize("count", [40, 400])
def test_the_same_features_in_another_order_are_at_no_distance(count):
    """-4e-10 by rounding would stand in a table as -0.000."""
    features = 100 * torch.randn(count, 16, generator=torch.Generator().manual_seed(0))
    distance = gan_metrics.frechet_distance(features, features.flip(0))
    assert f"{distance:.3f}" == "0.000"


def test_frechet_distance_with_fewer_images_than_features():
    """Without full rank: a shift by 1 in 50 features is still worth exactly 50."""
    real = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    assert gan_metrics.frechet_distance(real, real) == pytest.approx(0, abs=1e-4)
    assert gan_metrics.frechet_distance(real, real + 1) == pytest.approx(50, abs=1e-3)


def test_kernel_distance_by_hand():
    """Features of one number: k(a, b) = (a b + 1)^3; real 0, 1 and generated 0, 2."""
    real, generated = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    across = (1 + 1 + 1 + 27) / 4  # k(0, 0), k(0, 2), k(1, 0), k(1, 2)
    within = 1 + 1  # k(0, 1) and k(0, 2)
    found = gan_metrics.kernel_distance(real, generated)
    assert found == pytest.approx(within - 2 * across)


def test_precision_and_recall_by_hand():
    """On a line: real 0, 1, 2, 3, generated 0.5 and 50.

    With one neighbour a real point reaches 1, and 50 reaches 49.5: 0.5 and 50 reach
    each other and all that lies between.
    """
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    generated = torch.tensor([[0.5], [50.0]])
    assert gan_metrics.precision_and_recall(real, generated, 1) == (0.5, 1.0)
    far = torch.tensor([[100.0], [101.0]])
    assert gan_metrics.precision_and_recall(real, far, 1) == (0.0, 0.0)


def test_precision_and_recall_need_a_neighbour_more():
    four, three = torch.randn(4, 2), torch.randn(3, 2)
    gan_metrics.precision_and_recall(four, four)
    for real, generated in ((four, three), (three, four)):
        with pytest.raises(InputError, match="found 3"):
            gan_metrics.precision_and_recall(real, generated)


@pytest.mark.parametrize("count", [0, 1])
def test_distances_need_two_features_that_are_finite(count):
    two = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    for distance in (gan_metrics.frechet_distance, gan_metrics.kernel_distance):
        assert np.isfinite(distance(two, two))
        for pair in ((two, two[:count]), (two[:count], two)):
            with pytest.raises(InputError, match=f"2 images or more.*found {count}"):
                distance(*pair)
        with pytest.raises(InputError, match="not finite"):
            distance(two, two * torch.nan)
    with pytest.raises(InputError, match=f"found {count}"):
        gan_metrics.diversity(np.zeros((count, 2, 2, 3), np.uint8))


def test_real_images_that_are_all_the_same_are_refused():
    """Nothing can be a fraction of their diversity, which is 0."""
    same, others = gray(9, 9, 9, 9), gray(1, 2, 3, 4)

    def embed(pixels):
        return torch.from_numpy(pixels.mean((1, 2, 3)))[:, None]

    assert gan_metrics.scores(embed, others, {"same": same})["same"]["diversity"] == 0
    with pytest.raises(InputError, match="4 real images are all the same"):
        gan_metrics.scores(embed, same, {"others": others})


@pytest.mark.parametrize("count", [25, 26, 64])
def test_many_images_that_are_all_the_same_have_no_diversity(count):
    """From 26 on torch's distances are differences of products, and rounded."""
    one = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert gan_metrics.diversity(one.repeat(count, 0)) == 0


def test_scores_of_the_same_images_and_of_darker_ones():
    """Features: the mean gray. Halved, 0, 40, ..., 200 have half the mean, which was
    100, and half the deviation.
    """

    def embed(pixels):
        return torch.from_numpy(pixels.mean((1, 2, 3)))[:, None]

    real = gray(*range(0, 201, 40))
    found = gan_metrics.scores(embed, real, {"same": real, "darker": real // 2})
    assert found["same"].pop("kernel") < 0  # unbiased: of a set with itself below 0
    expected = {"frechet": 0, "precision": 1, "recall": 1, "diversity": 1}
    assert found["same"] == pytest.approx(expected, abs=1e-6)
    variance = 40**2 * 3.5  # of 0, 1, ..., 5 it is 3.5
    assert found["darker"]["frechet"] == pytest.approx(50**2 + variance / 4)
    assert found["darker"]["diversity"] == pytest.approx(0.5)
    with pytest.raises(InputError, match="few"):
        gan_metrics.scores(embed, real, {"few": real[:5]})
    with pytest.raises(InputError, match="found 3"):
        gan_metrics.scores(embed, real[:3], {"three": real[:3]})


# --- Inception ------------------------------------------------------------------------


@pytest.fixture
def inception_weights(tmp_path, monkeypatch):
    """A file as the download leaves it in torch's cache, with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / Path(fidelity.URL_INCEPTION_V3).name
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_gives_the_distance_of_torchmetrics(inception_weights, monkeypatch):
    asked = []
    monkeypatch.setattr(models, "download", lambda url, what: asked.append(url))
    rng = np.random.default_rng(0)
    real, generated = rng.integers(0, 256, (2, 6, 64, 64, 3), np.uint8)
    generated = generated // 2
    embed = chapter_5.inception_features(batch_size=4)
    assert [Path(url).name for url in asked] == [inception_weights.name]
    assert embed(real).shape == (6, 2048)
    weights = str(inception_weights)
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=weights)
    for pixels, is_real in ((real, True), (generated, False)):
        metric.update(torch.from_numpy(pixels).permute(0, 3, 1, 2), real=is_real)
    found = gan_metrics.frechet_distance(embed(real), embed(generated))
    assert found > 0
    assert found == pytest.approx(metric.compute().item(), rel=1e-3)


def test_inception_without_network_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(InputError, match=r"weights-inception\S+\.pth"):
        chapter_5.inception_features()


# --- the film of a training ---


def test_a_film_begins_with_its_end_and_shows_every_moment():
    moments = {
        epoch: np.full((16, 8, 8, 3), 10 * epoch, np.uint8) for epoch in (1, 5, 9)
    }
    film = Image.open(io.BytesIO(chapter_5.film(moments, columns=8)))
    assert (film.n_frames, film.size, film.info["loop"]) == (3, (64, 16), 0)
    shown = []
    for i in range(3):
        film.seek(i)
        shown.append((film.convert("RGB").getpixel((5, 5)), film.info["duration"]))
    assert shown == [((90,) * 3, 2000), ((10,) * 3, 400), ((50,) * 3, 400)]


def test_a_film_keeps_the_order_of_its_images():
    content = chapter_5.film({1: gray(0, 80, 160, 240)}, columns=2)  # 2x2 pixels each
    frame = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert frame.shape == (4, 4)
    assert frame[::2, ::2].tolist() == [[0, 80], [160, 240]]


# --- pixels ---------------------------------------------------------------------------


def test_the_baseline_has_the_mean_and_the_deviation_of_the_real_images():
    real = np.zeros((2, 64, 64, 3), np.uint8)
    real[:, :32] = 200  # everywhere
    real[0, 32:], real[1, 32:] = 90, 110  # mean 100, deviation 10
    drawn = chapter_5.mean_and_noise(real, 50, seed=0)
    assert (drawn[:, :32] == 200).all()
    assert drawn[:, 32:].mean() == pytest.approx(100, abs=0.1)
    assert drawn[:, 32:].std() == pytest.approx(10, abs=0.1)


def test_nearest_neighbours_by_hand():
    """The copies of the last three are beyond the first batch of 1,024."""
    real = gray(0, 100, *[30] * 1200, 200, 255)
    index, distance = chapter_5.nearest_neighbours(gray(103, 250, 0, 201), real)
    assert index.tolist() == [1, 1203, 0, 1202]
    assert distance.tolist() == [3, 5, 0, 1]
    features = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    index, distance = chapter_5.nearest_neighbours(features[1:] + 1, features)
    assert (index.tolist(), distance.tolist()) == ([1], [1])


def test_diversity_by_hand():
    """Gray 0, 30 and 90: the pairs differ by 30, 60 and 90."""
    assert gan_metrics.diversity(gray(0, 30, 90)) == pytest.approx(60)
    with pytest.raises(InputError, match="found 1"):
        gan_metrics.diversity(gray(0))
