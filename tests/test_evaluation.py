"""What a result consists of: metrics worked out by hand, or by scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from fashionlib import evaluation
from fashionlib.runtime import InputError


def test_evaluate_by_hand():
    """Five pictures: two right, one wrong in gender only (0 for 1), one in category only (2 for 0), one in both."""
    labels = torch.tensor([0, 5, 1, 0, 3])
    predicted = torch.tensor([0, 5, 0, 2, 4])
    result = evaluation.evaluate(
        10 * torch.nn.functional.one_hot(predicted, 6).float(), labels
    )
    assert result["accuracy"] == 0.4
    assert (
        result["gender_errors"],
        result["category_errors"],
        result["both_errors"],
    ) == (1, 1, 1)
    assert result["recall"] == [0.5, 0, 0, 0, 0, 1]
    assert result["confusion"][0] == [1, 0, 1, 0, 0, 0]
    assert result["true_distribution"] == [0.4, 0.2, 0, 0.2, 0, 0.2]
    confidence = math.exp(10) / (math.exp(10) + 5)
    assert result["expected_calibration_error"] == pytest.approx(
        confidence - 0.4, abs=1e-5
    )


def test_evaluate_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(500, 6, generator=generator),
        torch.randint(0, 6, (500,), generator=generator),
    )
    result = evaluation.evaluate(logits, labels)
    predicted = logits.argmax(1)
    assert result["accuracy"] == pytest.approx(
        sklearn_metrics.accuracy_score(labels, predicted)
    )
    assert result["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels, predicted, average="macro")
    )
    wrong = result["gender_errors"] + result["category_errors"] + result["both_errors"]
    assert wrong == int((predicted != labels).sum())


def test_wilson_interval_of_eight_in_ten():
    """Worked by hand from Wilson's formula with z = 1.959964."""
    assert evaluation.accuracy_interval(0, 0) == [0, 1]
    low, high = evaluation.accuracy_interval(8, 10)
    z, p, n = 1.959963985, 0.8, 10
    centre, reach = (
        p + z**2 / (2 * n),
        z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    assert low == pytest.approx((centre - reach) / (1 + z**2 / n))
    assert high == pytest.approx((centre + reach) / (1 + z**2 / n))
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_difference_interval_of_newcombe():
    """Newcombe 1998, table II, method 10, example (a): 56/70 against 48/80 gives 0.0524 to 0.3339."""
    low, high = evaluation.difference_interval((56, 70), (48, 80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_recall_equality_is_the_chi_square_test_by_hand():
    """Two classes of 50, 40 and 30 of them right: 35 right and 15 wrong are expected in each."""
    confusion = np.zeros((6, 6), int)
    confusion[0, 0], confusion[0, 1], confusion[1, 1], confusion[1, 0] = 40, 10, 30, 20
    corrected = 2 * (
        4.5**2 / 35 + 4.5**2 / 15
    )  # scipy corrects two-by-two tables by Yates' half
    assert evaluation.recall_equality(confusion) == pytest.approx(
        math.erfc(math.sqrt(corrected / 2))
    )
    assert evaluation.recall_equality(np.diag([5] * 6)) == 1.0


def test_temperature_undoes_a_scale():
    """Labels drawn from the softmax of logits: three times the logits are three times too sure."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    assert evaluation.temperature(3 * logits, labels) == pytest.approx(3, abs=0.1)
    assert evaluation.temperature(logits / 2, labels) == pytest.approx(0.5, abs=0.02)


def test_reliability_by_hand():
    """Four pictures, sure to 0.9 (three, two of them right) and to 0.5 (one, wrong); two bins."""
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.49])
    others = ((1 - confidence) / 5)[:, None].expand(4, 5)
    logits = torch.cat([confidence[:, None], others], 1).log()
    found = evaluation.reliability(logits, torch.tensor([0, 0, 1, 2]), bins=2)
    assert found["count"] == [1, 3]
    assert found["confidence"] == pytest.approx([0.49, 0.9])
    assert found["accuracy"] == pytest.approx([0, 2 / 3])


def test_reliability_adds_up_to_the_calibration_error():
    generator = torch.Generator().manual_seed(1)
    logits, labels = (
        2 * torch.randn(500, 6, generator=generator),
        torch.randint(0, 6, (500,), generator=generator),
    )
    found = {
        name: np.array(values)
        for name, values in evaluation.reliability(logits, labels).items()
    }
    error = (
        np.abs(found["confidence"] - found["accuracy"]) * found["count"]
    ).sum() / 500
    assert evaluation.evaluate(logits, labels)[
        "expected_calibration_error"
    ] == pytest.approx(error, abs=1e-6)


def test_paired_interval_by_hand():
    """Ten pictures: the first alone is right on three, the second alone on one; (3.5 - 1.5) / 12 is the middle."""
    first = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    second = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    low, high = evaluation.paired_interval(first, second)
    reach = 1.959964 * math.sqrt((5 / 12 - (2 / 12) ** 2) / 12)
    assert (low, high) == (pytest.approx(2 / 12 - reach), pytest.approx(2 / 12 + reach))
    low, high = evaluation.paired_interval(first.repeat(100), first.repeat(100))
    assert low < 0 < high < 0.01


def test_gender_gap_by_hand():
    """Men's classes are 0, 2, 4: 8 of 10 right; women's 1, 3, 5: 3 of 6."""
    confusion = np.zeros((6, 6), int)
    confusion[0, 0], confusion[0, 1], confusion[4, 4] = 5, 2, 3
    confusion[1, 1], confusion[3, 2] = 3, 3
    found = evaluation.gender_gap(confusion)
    assert (found["men"], found["women"]) == ([8, 10], [3, 6])
    assert found["difference_ci95"] == evaluation.difference_interval((8, 10), (3, 6))
    confusion[1], confusion[3] = 0, 0
    with pytest.raises(InputError, match="found 10 and 0"):
        evaluation.gender_gap(confusion)
