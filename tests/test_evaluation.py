"""Results worked out by hand, or by scikit-learn, SciPy and torchmetrics."""

import json
import math
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from conftest import from_chapter
from hypothesis import given
from hypothesis import strategies as st

from fashionlib import evaluation, images
from fashionlib.evaluation import Estimate
from fashionlib.runtime import InputError

chapter_2, chapter_2b = from_chapter("02_resnet152"), from_chapter("02b_comparisons")


def random_answers(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 6, generator=rng)
    return logits, torch.randint(0, 6, (count,), generator=rng)


# --- numbers with their intervals -----------------------------------------------------


def test_a_format_is_that_of_all_three_numbers():
    estimate = Estimate(0.214, [0.151, 0.269], 30)
    assert f"{estimate:.2f}" == "0.21 (0.15 to 0.27)"
    assert f"{estimate:+.1f}" == "+0.2 (+0.2 to +0.3)"
    assert f"{estimate:.0%}" == "21% (15% to 27%)"
    assert f"{estimate.in_percent():.1f}" == "21.4 (15.1 to 26.9)"
    assert estimate.in_percent().count == 30


def test_mean_interval_by_hand():
    """1, 2, 3, 6: mean 3, deviation sqrt(14/3); Student's 97.5 % point is 3.182446."""
    found = evaluation.mean_interval(np.array([1, 2, np.nan, 3, 6]))
    reach = 3.182446 * math.sqrt(14 / 3) / 2
    assert (found.value, found.count) == (3, 4)
    assert found.ci95 == pytest.approx([3 - reach, 3 + reach])
    assert evaluation.mean_interval(torch.ones(5)) == Estimate(1, [1, 1], 5)


def test_mean_interval_agrees_with_scipy():
    from scipy import stats

    values = np.random.default_rng(0).normal(size=50)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert evaluation.mean_interval(values).ci95 == pytest.approx(list(expected))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [np.nan] * 3])
def test_fewer_than_two_values_have_no_interval_and_say_why(values):
    found = evaluation.mean_interval(np.array(values))
    count = int(np.isfinite(values).sum())
    assert np.isnan([found.value, *found.ci95]).all()
    assert found.count == found.in_percent().count == count
    assert found.reason == f"too few values for an interval: {count}"
    assert (
        f"{found:.2f}" == f"{found.in_percent():+.0f}" == f"no number ({found.reason})"
    )
    assert found.reason in evaluation.table({"row": {"mean": found}}).to_html()
    assert evaluation.mean_interval(np.array([1.0, 2.0])).reason == ""


def test_wilson_interval_of_eight_in_ten():
    """Worked out by hand from Wilson's formula with z = 1.959964."""
    z, p, n = 1.959963985, 0.8, 10
    middle = p + z**2 / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = evaluation.wilson_interval(8, 10)
    assert low == pytest.approx((middle - reach) / (1 + z**2 / n))
    assert high == pytest.approx((middle + reach) / (1 + z**2 / n))


def test_accuracy_from_answers_or_from_two_numbers():
    correct = torch.tensor([True, True, False, True])
    expected = Estimate(0.75, evaluation.wilson_interval(3, 4), 4)
    assert evaluation.accuracy(correct) == expected
    assert evaluation.accuracy(correct.numpy()) == expected
    assert evaluation.accuracy((3, 4)) == expected
    for nothing in ((0, 0), torch.zeros(0, dtype=torch.bool)):
        assert evaluation.accuracy(nothing).reason


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_accuracy_lies_in_its_interval(pair):
    value, (low, high), _ = evaluation.accuracy(pair)
    assert 0 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= 1


def test_the_interval_of_newcombe():
    """Newcombe 1998, table II, method 10 (a): 56/70 and 48/80 give 0.0524 to 0.3339."""
    low, high = chapter_2.newcombe_interval((56, 70), (48, 80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_the_interval_of_agresti_and_min_by_hand():
    """Ten images: the first alone is correct on three, the second alone on one."""
    first = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    second = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    middle = (3.5 - 1.5) / 12
    reach = 1.959964 * math.sqrt((5 / 12 - middle**2) / 12)
    found = evaluation.agresti_min_interval(first, second)
    assert found == pytest.approx([middle - reach, middle + reach])
    low, high = evaluation.agresti_min_interval(first.repeat(100), first.repeat(100))
    assert -0.01 < low < 0 < high < 0.01


# --- one result -----------------------------------------------------------------------


def test_evaluate_by_hand():
    """Two correct; wrong in gender (0 for 1), category (2 for 0), both (4 for 3)."""
    labels, predicted = torch.tensor([0, 5, 1, 0, 3]), torch.tensor([0, 5, 0, 2, 4])
    logits = 10 * torch.nn.functional.one_hot(predicted, 6).float()
    result = evaluation.evaluate(logits, labels)
    kinds = [result[f"{kind}_errors"] for kind in ("gender", "category", "both")]
    assert kinds == [1, 1, 1]
    assert (result["count"], result["accuracy"]) == (5, 0.4)
    assert result["accuracy_ci95"] == evaluation.wilson_interval(2, 5)
    assert result["recall"] == [0.5, 0, None, 0, None, 1]  # 2 and 4 have no image
    assert result["precision"] == [0.5, None, 0, None, 0, 1]  # never predicted: 1 and 3
    assert result["macro_f1"] == pytest.approx((0.5 + 0 + 0 + 0 + 0 + 1) / 6)
    names = ["Men/Accessories", "Women/Accessories", "Women/Apparel", "Women/Other"]
    assert list(evaluation.recalls(result)) == names
    recall = Estimate(0.5, evaluation.wilson_interval(1, 2), 2)
    assert evaluation.recalls(result)["Men/Accessories"] == recall
    assert result["confusion"][0] == [1, 0, 1, 0, 0, 0]
    # Five single mistakes of a kind: no class is shifted by more than one image.
    p = evaluation.marginal_homogeneity(result["confusion"])
    assert 0.1 < result["marginal_homogeneity_p"] == p
    assert result["true_distribution"] == [0.4, 0.2, 0, 0.2, 0, 0.2]
    assert result["predicted_distribution"] == [0.4, 0, 0.2, 0, 0.2, 0.2]
    confidence = math.exp(10) / (math.exp(10) + 5)
    error = chapter_2.calibration_error(chapter_2.reliability(logits, labels))
    assert error == pytest.approx(confidence - 0.4, abs=1e-5)
    json.dumps(result)  # plain numbers


@pytest.mark.parametrize("present", [[3], [2, 3], [0, 2, 4]])
def test_a_class_that_is_absent_is_no_class_that_is_never_found(present):
    labels = torch.tensor(present * 4)
    logits = torch.nn.functional.one_hot(labels, 6).float()
    result = evaluation.evaluate(logits, labels)
    assert (result["accuracy"], result["macro_f1"]) == (1, 1)
    found = [k for k in range(6) if result["recall"][k] is not None]
    assert found == present
    assert result["recall_equality_p"] == 1
    logits[:, 5] = 9  # all are wrong, by a class that is absent
    result = evaluation.evaluate(logits, labels)
    assert [result["recall"][k] for k in present] == [0] * len(present)
    assert [k for k in range(6) if result["precision"][k] is not None] == [5]
    assert (result["macro_f1"], result["recall_equality_p"]) == (0, 1)
    json.dumps(result, allow_nan=False)


def test_nothing_can_be_evaluated_on_no_images_or_without_an_answer():
    """The largest of six NaN would be the first class, and half of these correct."""
    with pytest.raises(InputError, match="no images"):
        evaluation.evaluate(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="not finite"):
        evaluation.evaluate(torch.full((2, 6), torch.nan), torch.tensor([0, 1]))


def test_evaluate_agrees_with_scikit_learn():
    from sklearn import metrics

    logits, labels = random_answers(500, seed=0)
    logits[:, 2] = -100  # a class that is never predicted
    predicted, result = logits.argmax(1), evaluation.evaluate(logits, labels)
    per_class = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(6), zero_division=0
    )
    assert result["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert result["precision"][2] is None
    result["precision"][2] = 0  # scikit-learn's convention
    assert result["precision"] == pytest.approx(per_class[0].tolist())
    assert result["recall"] == pytest.approx(per_class[1].tolist())
    assert result["macro_f1"] == pytest.approx(per_class[2].mean())
    assert result["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    wrong = [result[f"{kind}_errors"] for kind in ("gender", "category", "both")]
    assert sum(wrong) == int((predicted != labels).sum())


@pytest.mark.slow  # torchmetrics takes seconds to import
def test_the_calibration_error_agrees_with_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = random_answers(500, seed=1)
    expected = multiclass_calibration_error(
        logits.softmax(1), labels, num_classes=6, n_bins=15
    )
    found = chapter_2.calibration_error(chapter_2.reliability(logits, labels))
    assert found == pytest.approx(expected.item(), abs=1e-6)


def test_recall_equality_is_the_chi_square_test_by_hand():
    """Two classes of 50, 40 and 30 correct: in each 35 correct, 15 wrong are expected.

    SciPy corrects a table of two by two by Yates' half.
    """
    confusion = np.zeros((6, 6), int)
    confusion[0, :2], confusion[1, :2] = (40, 10), (20, 30)
    corrected = 2 * (4.5**2 / 35 + 4.5**2 / 15)
    expected = math.erfc(math.sqrt(corrected / 2))
    assert evaluation.recall_equality(confusion) == pytest.approx(expected)
    assert evaluation.recall_equality(np.diag([5] * 6)) == 1


def test_marginal_homogeneity_is_the_test_of_stuart_and_maxwell():
    """Stuart 1955, the sight of both eyes of 7,477 women: chi-square 11.96 with 3."""
    from scipy.stats import chi2

    eyes = [[1520, 266, 124, 66], [234, 1512, 432, 78]]
    eyes += [[117, 362, 1772, 205], [36, 82, 179, 492]]
    found = evaluation.marginal_homogeneity(eyes)
    assert chi2.isf(found, 3) == pytest.approx(11.96, abs=0.005)


def test_two_classes_have_the_test_of_mcnemar():
    """20 one way, 5 the other: (20 - 5)^2 / 25 = 9 with one free shift."""
    confusion = np.zeros((6, 6), int)
    confusion[0, :2], confusion[1, :2] = (30, 20), (5, 45)
    confusion[4, 4] = 7  # never confused
    expected = math.erfc(math.sqrt(9 / 2))
    assert evaluation.marginal_homogeneity(confusion) == pytest.approx(expected)
    # Another pair that mixes with no class of the first: 9 + 9 with two.
    confusion[2, 2:4], confusion[3, 2:4] = (30, 5), (20, 45)
    expected = math.exp(-18 / 2)
    assert evaluation.marginal_homogeneity(confusion) == pytest.approx(expected)


def test_marginal_homogeneity_agrees_with_mistakes_that_are_turned_round():
    """Where no class is favoured, each mistake is as likely the other way round."""
    rng = np.random.default_rng(0)
    confusion = rng.poisson(6, (6, 6)) + np.diag([80] * 6)
    confusion[0, 3] += 30
    wrong = np.triu(confusion + confusion.T, 1)
    turned = rng.binomial(wrong, 0.5, (20_000, 6, 6))
    turned = turned + (wrong - turned).transpose(0, 2, 1)
    mixed = wrong + wrong.T
    inverse = np.linalg.pinv(np.diag(mixed.sum(1)) - mixed)
    shifts = np.concatenate([confusion[None], turned])
    shifts = shifts.sum(1) - shifts.sum(2)
    ours, *others = np.einsum("nk,kj,nj->n", shifts, inverse, shifts)
    p = np.mean(np.array(others) >= ours)
    assert 0.01 < p < 0.3
    assert evaluation.marginal_homogeneity(confusion) == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize("shape", ["zeros", "correct", "one class", "never predicted"])
def test_marginal_homogeneity_of_degenerate_answers(shape):
    confusion = np.zeros((6, 6), int)
    if shape == "correct":
        confusion = np.diag([3, 0, 1, 1000, 1, 1])
    if shape == "one class":
        confusion[2, 2] = 5
    expected = 1.0
    if shape == "never predicted":  # 100 of class 5, all taken for class 4
        confusion[4, 4], confusion[5, 4] = 50, 100
        expected = math.erfc(math.sqrt(100 / 2))
    found = evaluation.marginal_homogeneity(confusion.tolist())
    assert found == pytest.approx(expected)


def test_the_largest_shift_by_hand():
    """Of 100 images 20 go from class 1 to 4 and 8 back: -12 points, 6 comparisons."""
    confusion = np.zeros((6, 6), int)
    confusion[1, 1], confusion[1, 4] = 30, 20
    confusion[4, 4], confusion[4, 1] = 42, 8
    confusion[4, 2] = 0
    k, shift = evaluation.largest_shift(confusion.tolist())
    assert (k, shift.value, shift.count) == (1, pytest.approx(-0.12), 100)
    z = 2.638257  # of the standard normal, 1 - 0.025 / 6
    middle = (8.5 - 20.5) / 102
    reach = z * math.sqrt((29 / 102 - middle**2) / 102)
    assert shift.ci95 == pytest.approx([middle - reach, middle + reach], abs=1e-6)
    k, shift = evaluation.largest_shift(np.diag([5] * 6))
    assert shift.value == 0
    assert shift.ci95[0] < 0 < shift.ci95[1]


def test_six_intervals_hold_all_six_shifts():
    """No class is favoured: in at most one set of twenty the largest excludes 0."""
    rng, missed = np.random.default_rng(1), 0
    for _ in range(300):
        labels = rng.integers(0, 6, 400)
        other = rng.integers(0, 6, 400)
        predicted = np.where(rng.random(400) < 0.7, labels, other)
        confusion = np.bincount(6 * labels + predicted, minlength=36).reshape(6, 6)
        low, high = evaluation.largest_shift(confusion)[1].ci95
        missed += not low <= 0 <= high
    assert missed <= 300 * 0.08


def test_a_temperature_undoes_a_scale():
    """Labels sampled from the softmax of logits: three times these are too sure."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 6, generator=rng)
    labels = torch.multinomial(logits.softmax(1), 1, generator=rng).flatten()
    assert chapter_2.fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.1)
    assert chapter_2.fit_temperature(logits / 2, labels) == pytest.approx(0.5, abs=0.02)


def test_reliability_by_hand():
    """Sure to 0.9 three times, correct twice; sure to 0.49 once, wrong; two bins."""
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.49])
    others = ((1 - confidence) / 5)[:, None].expand(4, 5)
    logits = torch.cat([confidence[:, None], others], 1).log()
    found = chapter_2.reliability(logits, torch.tensor([0, 0, 1, 2]), bins=2)
    assert found["count"].tolist() == [1, 3]
    assert found["confidence"].tolist() == pytest.approx([0.49, 0.9])
    assert found["accuracy"].tolist() == pytest.approx([0, 2 / 3])


def test_every_extractor_has_a_smallest_size():
    """torchvision's have theirs beside their weights; resnet10 and timm's have none."""
    assert chapter_2b.smallest_size("resnet10") == (1, 1)
    assert chapter_2b.smallest_size("tf_efficientnet_lite0") == (1, 1)
    assert list(chapter_2b.smallest_size("inception_v3")) == [75, 75]


def test_weights_are_missing_until_their_file_is_in_the_cache(monkeypatch, tmp_path):
    """Only torchvision's are files there; lite0's come with a package."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert chapter_2b.is_missing("vgg16")
    assert not chapter_2b.is_missing("tf_efficientnet_lite0")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").touch()
    assert not chapter_2b.is_missing("vgg16")


def test_gender_gap_by_hand():
    """Men's classes are 0, 2, 4: 8 of 10 correct; women's 1, 3, 5: 3 of 6."""
    confusion = np.zeros((6, 6), int)
    confusion[0, 0], confusion[0, 1], confusion[4, 4] = 5, 2, 3
    confusion[1, 1], confusion[3, 2] = 3, 3
    found = chapter_2.gender_gap(confusion.tolist())
    assert (found["men"], found["women"]) == ([8, 10], [3, 6])
    assert found["difference_ci95"] == chapter_2.newcombe_interval((8, 10), (3, 6))
    confusion[1], confusion[3] = 0, 0
    found = chapter_2.gender_gap(confusion)
    assert (found["women"], found["difference_ci95"]) == ([0, 0], None)


# --- baselines ------------------------------------------------------------------------


@pytest.fixture
def data() -> images.ImageSet:
    """Sixty images whose class is their brightness, and a little noise; most are 0."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(54) % 6, np.zeros(6, int)])
    pixels = 45 * labels[:, None, None, None] + rng.integers(0, 10, (60, 16, 16, 3))
    return images.ImageSet(pixels.astype(np.uint8), np.arange(60), labels)


def test_colour_histogram_by_hand():
    """Two pixels of eight are (255, 64, 0), colour 3 * 16 + 1 * 4; six are black."""
    pixels = np.zeros((1, 2, 4, 3), np.uint8)
    pixels[0, 0, :2] = (255, 64, 0)
    (found,) = chapter_2b.colours(pixels)
    assert found[[0, 52]].tolist() == [0.75, 0.25]
    assert found.sum() == 1


def test_silhouette_by_hand():
    """16x16 cells of 2x2 pixels: one is inside, one half; near-white is outside."""
    pixels = np.full((1, 32, 32, 3), 245, np.uint8)
    pixels[0, :2, :2] = 0
    pixels[0, 30, 30:, 2] = 239  # the darkest channel decides
    (found,) = chapter_2b.outline(pixels).reshape(1, 16, 16)
    assert (found[0, 0], found[15, 15], found.sum()) == (1, 0.5, 1.5)


def test_majority_is_the_largest_class_of_the_training_set(data):
    logits = evaluation.majority(data, data._replace(labels=data.labels[:7]))
    assert logits.argmax(1).tolist() == [0] * 7
    assert logits[0].exp()[0].item() == pytest.approx(15 / 60)


def test_colours_tell_brightness_apart(data):
    """Six levels fall into four ranges of colour, so four classes of six are told."""
    logits, seconds = chapter_2b.describe_and_fit(chapter_2b.colours, data, data)
    correct = logits.argmax(1) == torch.from_numpy(data.labels)
    assert 0.5 < evaluation.accuracy(correct).value < 0.9
    assert seconds > 0


def test_images_are_described_some_at_a_time_in_their_order(data):
    many = data._replace(
        rows=np.tile(data.rows, 40), labels=np.tile(data.labels, 40)
    )  # 2,400 images
    sizes = []

    def brightness(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return np.eye(6, dtype=np.float32)[pixels[:, 0, 0, 0] // 45]

    logits, _ = chapter_2b.describe_and_fit(brightness, many, many)
    assert (logits.argmax(1).numpy() == many.labels).all()
    assert (max(sizes) <= 1024, sum(sizes)) == (True, 2 * 2400)


# --- tables ---------------------------------------------------------------------------

HOSTILE = '<script>alert(1)</script> & "$x_1$" *b* `c` [d](e)\n# f \\(y\\) |'


def test_escaped_text_is_the_same_text_in_html():
    shown = BeautifulSoup(f"<p>{evaluation.escape(HOSTILE)}</p>", "html.parser")
    assert shown.p.text == " ".join(HOSTILE.split())
    assert [tag.name for tag in shown.find_all()] == ["p"] + ["span"] * 4


def test_escaped_text_is_the_same_text_in_markdown():
    from markdown_it import MarkdownIt

    text = f"A {evaluation.escape(HOSTILE)} product"
    html = MarkdownIt("commonmark").enable("table").render(text)
    shown = BeautifulSoup(html, "html.parser")
    assert shown.text.strip() == f"A {' '.join(HOSTILE.split())} product"
    assert {tag.name for tag in shown.find_all()} == {"p", "span"}


def test_a_table_by_hand():
    rows = {
        "<b>ours": {"images": 6069, "accuracy %": Estimate(95.35, [94.79, 95.85])},
        "theirs": {"images": np.int64(1200), "a & b": HOSTILE, "seconds": 1234.567},
        "none": {"images": None, "a & b": "x"},
    }
    shown = BeautifulSoup(evaluation.table(rows, precision=2).to_html(), "html.parser")
    lines = [[cell.text for cell in row.find_all(["th", "td"])] for row in shown("tr")]
    text = " ".join(HOSTILE.split())
    assert lines == [
        ["\xa0", "images", "accuracy %", "a & b", "seconds"],
        ["<b>ours", "6,069", "95.35 (94.79 to 95.85)", "", ""],
        ["theirs", "1,200", "", text, "1,234.57"],
        ["none", "", "", "x", ""],
    ]


def test_names_that_look_alike_have_a_row_each():
    """As the kinds of a catalogue may: only spaces or an invisible letter differ."""
    rows = {"Flip Flops": {"a": 1}, "Flip  Flops": {"a ": 2}, "Flip\x7f Flops": {}}
    shown = BeautifulSoup(evaluation.table(rows).to_html(), "html.parser")
    lines = [[cell.text for cell in row.find_all(["th", "td"])] for row in shown("tr")]
    assert lines[0][1:] == ["a", "a"]
    assert [line[0] for line in lines[1:]] == ["Flip Flops"] * 3
    assert [line[1:] for line in lines[1:]] == [["1", ""], ["", "2"], ["", ""]]


def test_numbers_stand_on_the_right_and_text_on_the_left():
    style = evaluation.table({"a": {"number": 1, "text": "b"}}).to_html()
    left, right = style.index("text-align: left"), style.index("text-align: right")
    assert "_col1" in style[:left].rpartition("{")[0].rpartition("}")[2]
    assert "_col0" in style[:right].rpartition("{")[0].rpartition("}")[2]


def test_a_row_of_a_result():
    result = evaluation.evaluate(*random_answers(50, seed=2))
    row = evaluation.accuracy_row(result)
    assert row["images"] == row["accuracy %"].count == 50
    assert row["accuracy %"].value == 100 * result["accuracy"]
    assert "50" in evaluation.table({"network": row}).to_html()


def test_the_import_is_light(tmp_path):
    """scikit-learn, SciPy, torchmetrics and pandas are loaded where they are used."""
    import ast
    from pathlib import Path

    for module in ("evaluation", "claims"):
        tree = ast.parse(Path(evaluation.__file__).with_stem(module).read_text())
        found = {
            alias.name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not found & {"sklearn", "scipy", "torchmetrics", "pandas", "IPython"}


# --- chapter 2's quiz -----------------------------------------------------------------


def test_a_quiz_keeps_its_answers_until_one_is_chosen(browser):
    """In a browser, by the keyboard; who is correct counts in the page itself."""
    asked, page = (
        [("Men", "Men"), ("Women", "Men"), ("Men", "Women")],
        browser.new_page(),
    )
    html = chapter_2.QUIZ_STYLE
    for i, (label, answer) in enumerate(asked):
        html += chapter_2.quiz_item(i, np.zeros((4, 4, 3), np.uint8), label, answer)
    page.set_content(f'<div class="quiz">{html}<p></p></div>')
    told = page.locator(".quiz span")
    assert [each.is_visible() for each in told.all()] == [False] * 3
    found = []
    for product in range(3):  # the reader says "Men" three times
        first = page.locator(".quiz div").nth(product).get_by_label("Men", exact=True)
        first.focus()
        page.keyboard.press("Space")
        assert told.nth(product).is_visible()
        found.append(first.evaluate("x => getComputedStyle(x).counterIncrement"))
    page.close()
    counted = [re.findall(r"(reader|network) (\d)", each) for each in found]
    assert counted == [
        [("reader", "1"), ("network", "1")],
        [("reader", "0"), ("network", "0")],
        [("reader", "1"), ("network", "0")],
    ]
