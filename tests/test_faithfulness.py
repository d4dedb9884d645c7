"""Whether to believe a map: scores and controls by hand, models left as they were."""

import numpy as np
import pytest
import torch
from conftest import from_chapter
from networks import assert_untouched, random_images, small, snapshot
from scipy.stats import spearmanr
from torch import nn

from fashionlib import faithfulness, images, models, saliency
from fashionlib.runtime import InputError

chapter_3, chapter_3b = from_chapter("03_guided_backprop"), from_chapter("03b_methods")
chapter_4 = from_chapter("04_average_saliency")


class Darkness(nn.Module):
    """Two logits: 0, and a weighted sum of how far red is below white, in levels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        darkness = 255 - images.denormalize(x)[..., 0].float()
        score = (self.weight * darkness).sum((1, 2))
        return torch.stack([torch.zeros_like(score), score], 1)


# --- does it depend on what has been learned? -----------------------------------------


def test_similarity_by_hand_and_against_scipy():
    a = torch.tensor([[[1.0, 2.0], [3.0, 99.0]]])
    b = torch.tensor([[[5.0, 4.0], [6.0, -1.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    # ranks 1 2 3 against 2 1 3: 1 - 6 * (1 + 1 + 0) / (3 * 8) = 0.5; not the fourth
    assert faithfulness.similarity(a, b, mask).tolist() == pytest.approx([0.5])
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (2, 8, 8), generator=rng)  # ties
    y = torch.rand(2, 8, 8, generator=rng)
    inside = torch.rand(2, 8, 8, generator=rng) < 0.7
    expected = [spearmanr(x[i][inside[i]], y[i][inside[i]]).statistic for i in range(2)]
    scores = faithfulness.similarity(x, y, inside)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected)
    assert faithfulness.similarity(torch.ones(1, 2, 2), a, mask).isnan().all()
    for pixels in (0, 1):  # a mask of no pixel, and of one
        inside = torch.arange(4).view(1, 2, 2) < pixels
        assert faithfulness.similarity(a, b, inside).isnan().all()
    assert faithfulness.similarity(a[:0], b[:0], mask[:0]).shape == (0,)


def test_structural_similarity_of_equal_scaled_and_unrelated_maps():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 32, 32, generator=rng)
    mask = torch.ones(2, 32, 32, dtype=torch.bool)
    mask[1] = False
    same = chapter_3b.structural_similarity(a, 7 * a, mask)
    assert same[0] == pytest.approx(1, abs=1e-5)
    assert same[1].isnan()
    one_is_zero = a * torch.tensor([0.0, 1.0])[:, None, None]
    for pair in ((one_is_zero, one_is_zero), (a, one_is_zero), (one_is_zero, a)):
        found = chapter_3b.structural_similarity(*pair, torch.ones_like(mask))
        assert found[0].isnan()  # two maps of zeros are alike and say nothing
        assert found[1] == pytest.approx(1, abs=1e-5)
    assert chapter_3b.structural_similarity(a, b, mask)[0] < 0.1
    left = mask.clone()
    left[0, :, 16:] = False
    mixed = torch.cat([a[..., :16], b[..., 16:]], 2)
    assert chapter_3b.structural_similarity(a, mixed, left)[0] > 0.8
    assert chapter_3b.structural_similarity(a, mixed, ~left & mask)[0] < 0.4


@pytest.mark.parametrize("last", [1, 2, None])
def test_randomized_stages_change_and_come_back(last):
    model = small()
    before, generator = snapshot(model), torch.random.get_rng_state()
    with faithfulness.randomize_weights(model, seed=3, last=last):
        drawn = {name: value.clone() for name, value in model.state_dict().items()}
        assert torch.equal(torch.random.get_rng_state(), generator)
    assert_untouched(model, before)
    stages = list(reversed(models.stages(model)))[:last]
    weights = {name for name, p in model.named_parameters() if p.dim() > 1}
    changed = {name for name in drawn if not torch.equal(drawn[name], before[0][name])}
    assert {name.split(".")[0] for name in changed} == set(stages)
    assert changed >= {name for name in weights if name.split(".")[0] in stages}
    with faithfulness.randomize_weights(model, seed=3, last=last):
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in drawn.items())
    with faithfulness.randomize_weights(model, seed=4, last=last):
        assert not torch.equal(model.fc.weight, drawn["fc.weight"])


def test_the_cascade_keeps_what_it_has_drawn():
    model = small()
    expected = ["fc", "layer4", "bn2", "bn1", "conv2", "conv1"]
    assert list(reversed(models.stages(model))) == expected
    with faithfulness.randomize_weights(model, last=1):
        last_layer = model.fc.weight.clone()
    with faithfulness.randomize_weights(model, last=2):
        assert torch.equal(model.fc.weight, last_layer)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v3_small", ["classifier.3", "classifier.0", "features.12"]),
        ("mnasnet0_5", ["classifier.1", "layers.15", "layers.14"]),
        ("squeezenet1_1", ["classifier.1", "features.12", "features.11"]),
        pytest.param(
            "vit_b_32",
            ["heads.head", "encoder", "conv_proj", ""],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_first_stage_is_the_last_layer_alone(name, expected):
    """Hidden layers beside it are a stage of their own; parameters of no child, too."""
    model = models.build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stages = list(reversed(models.stages(model)))
    assert stages[: len(expected)] == expected
    kept = {}
    for last in range(1, len(stages) + 1):
        with faithfulness.randomize_weights(model, last=last):
            drawn = model.state_dict()
            changed = {
                key: value.clone()
                for key, value in drawn.items()
                if not torch.equal(value, before[key])
            }
            if last == 1:
                assert {key.rpartition(".")[0] for key in changed} == {expected[0]}
        # what has been drawn once stays as it is when the next stage follows
        assert all(torch.equal(changed[key], value) for key, value in kept.items())
        kept = changed
    weights = {key for key, parameter in model.named_parameters() if parameter.ndim > 1}
    assert set(kept) >= weights
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("groups", "variance"), [(1, 2 / (9 * 400)), (400, 2 / 9)])
def test_random_convolutions_neither_damp_nor_amplify(groups, variance):
    """He's variance: 2 for each weight by which a pixel of a map is reached.

    Without the groups, a network of depthwise convolutions would fade to nothing.
    """
    layer = nn.Conv2d(400, 400, 3, padding=1, groups=groups, bias=False)
    with faithfulness.randomize_weights(layer):
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.1)


def test_weights_come_back_after_an_exception():
    model = small()
    before = snapshot(model)

    def fail():
        with faithfulness.randomize_weights(model):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert_untouched(model, before)


# --- does it name the pixels that matter? ---------------------------------------------


def test_deletion_and_insertion_by_hand():
    """A black 1x4 image: removing a pixel takes its weight off the logit."""
    weight = torch.tensor([[3.0, 0.0, 1.0, 0.0]]) / 255
    pixels = images.normalize(torch.zeros(1, 1, 4, 3, dtype=torch.uint8))
    ranking = torch.tensor([[[9.0, 1.0, 5.0, 0.0]]])  # the order 0, 2, 1, 3
    result = chapter_3.deletion_insertion(
        Darkness(weight), pixels, torch.tensor([1]), ranking, steps=4
    )
    logits = torch.tensor([[4.0, 1, 0, 0, 0], [0, 3, 4, 4, 4]], dtype=torch.float64)
    expected = logits.sigmoid()
    curves = torch.cat([result["deletion"], result["insertion"]])
    torch.testing.assert_close(curves, expected, rtol=1e-5, atol=0)
    assert result["fractions"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    areas = (expected[:, :-1] + expected[:, 1:]).sum(1) / 8  # trapezoids of width 1/4
    found = torch.cat([result["deletion_auc"], result["insertion_auc"]])
    torch.testing.assert_close(found, areas, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.0, 2.5, float("nan")])
def test_a_constant_map_is_no_order(value):
    """A map of zeros, as Grad-CAM's can be: its pixels would go from top to bottom."""
    pixels, targets = random_images(2, 16), torch.tensor([0, 1])
    ranking = torch.rand(2, 16, 16)
    ranking[0] = value
    curves = chapter_3.deletion_insertion(small(), pixels, targets, ranking, steps=2)
    for name in ("deletion", "insertion", "deletion_auc", "insertion_auc"):
        assert curves[name][0].isnan().all()
        assert curves[name][1].isfinite().all()


def test_deletion_fills_and_leaves_the_model_as_it_was():
    pixels, targets = random_images(3, 16), torch.tensor([0, 1, 2])
    model, ranking = small().train(), torch.rand(3, 16, 16)
    before, ends = snapshot(model), {}
    fills = {"white": images.white, "blurred": lambda x: images.blur(x, 5.0)}
    for name, fill in fills.items():
        options = {"steps": 1, "fill": fill, "batch_size": 2}
        with models.evaluating(model):
            curves = chapter_3.deletion_insertion(
                model, pixels, targets, ranking, **options
            )
        ends[name] = curves["deletion"]  # (3, 2): nothing is removed, then everything
    assert_untouched(model, before)
    white = model.eval()(images.white(pixels)).softmax(1).gather(1, targets[:, None])
    expected = white[:, 0].double()
    torch.testing.assert_close(ends["white"][:, 1], expected, rtol=1e-4, atol=0)
    assert torch.equal(ends["white"][:, 0], ends["blurred"][:, 0])
    assert not torch.equal(ends["white"][:, 1], ends["blurred"][:, 1])


# --- how much of a map lies where? ----------------------------------------------------


def test_mass_share_by_hand():
    masks = torch.tensor([[[0, 1], [3, 3]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    maps = torch.tensor([[[50.0, 2.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    mass, area = faithfulness.mass_share(maps, masks, 1)
    assert mass[0] == 0.5  # 2 of 4: the background's 50 do not count
    assert area[0] == pytest.approx(1 / 3)
    assert mass[1].isnan()
    assert area[1].isnan()


def test_density_ratio_by_hand():
    """Half of the mass on a fifth of the area: odds 1 and 1/4, four times as dense."""
    ratio, (low, high), count = faithfulness.density_ratio([0.4, 0.6], [0.3, 0.1])
    assert ratio == pytest.approx(4)
    assert low < 4 < high
    assert count == 2
    assert faithfulness.density_ratio([0.5, 0.5], [0.5, 0.5]) == (1, [1, 1], 2)


@pytest.mark.parametrize("seed", range(12))
def test_images_without_the_part_are_left_out(seed):
    """Two of six figures show no head: a draw of these alone would be 0/0."""
    masks = torch.full((6, 8, 8), faithfulness.REST, dtype=torch.uint8)
    masks[:4, :2] = faithfulness.FACE
    maps = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(seed))
    mass, area = faithfulness.mass_share(maps, masks, faithfulness.FACE)
    estimate = faithfulness.density_ratio(mass, area, seed=seed)
    assert estimate.count == 4
    assert np.isfinite([estimate.value, *estimate.ci95]).all()
    assert estimate == faithfulness.density_ratio(mass[:4], area[:4], seed=seed)


@pytest.mark.parametrize(
    ("mass", "area", "count"),
    [
        ([0.5, float("nan")], [0.5, 0.5], 1),  # no saliency
        ([0.5, 0.0], [0.5, 0.0], 1),  # no part
        ([0.5, 1.0], [0.5, 1.0], 1),  # no rest
        ([], [], 0),
        ([1.0, 1.0, 0.5], [0.5, 0.5, 0.5], 3),  # nothing on the rest
    ],
)
def test_a_ratio_without_an_interval_is_no_number(mass, area, count):
    found = faithfulness.density_ratio(torch.tensor(mass), torch.tensor(area))
    assert found.reason == f"too few values for an interval: {count}"
    assert np.isnan(found.value)


def test_outline_by_hand():
    """A block cut by the lower edge: the band is a pixel wide on both sides of it."""
    inside = torch.zeros(1, 6, 7, dtype=torch.bool)
    inside[0, 2:, 2:5] = True
    rows = ["0000000", "0111110", "0111110", "0113110", "0113110", "0113110"]
    expected = torch.tensor([[int(value) for value in row] for row in rows])
    bands = chapter_3.outline_masks(inside, 1)[0]
    assert torch.equal(bands, expected.to(torch.uint8))


# --- where is the face? ---------------------------------------------------------------


@pytest.mark.parametrize("cascade", chapter_4.CASCADES)
def test_small_images_are_refused_and_noise_has_no_face(cascade):
    with pytest.raises(InputError, match="112"):
        chapter_4.find_faces(
            np.zeros((1, 80, 60, 3), np.uint8), torch.zeros(1, 3, 80, 60), cascade
        )
    pixels = random_images(1, 112)
    photographs = images.denormalize(pixels).numpy()
    masks = chapter_4.find_faces(photographs, pixels, cascade)
    assert torch.equal(masks == faithfulness.REST, saliency.foreground(pixels))


def test_a_found_box_is_scaled_back_and_keeps_the_background(monkeypatch):
    """A detector that sees 112x56 at (56, 28) of 448: 28x14 at (14, 7) of 112."""
    import cv2

    class Detector:
        def __init__(self, path):
            assert path.endswith(".xml")

        def detectMultiScale(self, image, **_options):
            assert image.shape == (448, 448)
            return [(56, 28, 112, 56)]

    monkeypatch.setattr(cv2, "CascadeClassifier", Detector)
    photographs = np.zeros((1, 112, 112, 3), np.uint8)
    photographs[0, :10] = 255
    pixels = images.normalize(torch.from_numpy(photographs))
    (mask,) = chapter_4.find_faces(photographs, pixels)
    expected = torch.full((112, 112), faithfulness.REST, dtype=torch.uint8)
    expected[7:21, 14:42] = faithfulness.FACE
    expected[:10] = 0
    assert torch.equal(mask, expected)


def test_box_by_hand():
    masks = torch.zeros(2, 5, 6, dtype=torch.uint8)
    masks[0, 1, 2] = masks[0, 3, 4] = faithfulness.FACE
    masks[0, 4, 5] = faithfulness.REST
    boxes = chapter_4.face_boxes(masks)
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(boxes[0], expected)
    assert not boxes[1].any()


def test_the_control_is_as_large_beside_the_face_and_on_the_figure():
    inside = torch.zeros(2, 12, 8, dtype=torch.bool)
    inside[:, :, 2:6] = True
    face = torch.zeros_like(inside)
    face[0, 1:4, 3:5] = True
    control = chapter_4.box_elsewhere(face, inside)
    assert control[0].sum() == 6
    assert not (control & face).any()
    assert (control[0] & inside[0]).sum() == 6
    assert control[0, 4:7, 2:4].all()  # the topmost place below it
    assert not control[1].any()
