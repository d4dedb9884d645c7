"""What a result consists of: accuracy with its interval, per class, the kinds of error, calibration.

    metrics = evaluation.evaluate(*models.predict(model, prepared.subset("test", 224)))
    metrics["accuracy"], metrics["accuracy_ci95"], metrics["recall"]

Metrics are taken from all logits at once, never as a mean of batch means: the last batch is shorter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fashionlib.catalogue import CLASS_NAMES
from fashionlib.runtime import InputError


def accuracy_interval(correct: int, count: int) -> list[float]:
    """Wilson's 95 % confidence interval of a proportion (Wilson 1927); of a count of 0 it is 0 to 1.

    Taught in: chapter 2.
    """
    from scipy.stats import binomtest

    if not count:
        return [0.0, 1.0]
    interval = binomtest(int(correct), int(count)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def difference_interval(first: tuple[int, int], second: tuple[int, int]) -> list[float]:
    """95 % interval of the difference of two accuracies, each (correct, count), first minus second (Newcombe 1998).

    Newcombe's hybrid score interval, from the Wilson intervals of the two. Taught in: chapter 2.
    """
    p, q = first[0] / first[1], second[0] / second[1]
    (p_low, p_high), (q_low, q_high) = (
        accuracy_interval(*first),
        accuracy_interval(*second),
    )
    return [
        p - q - math.hypot(p - p_low, q_high - q),
        p - q + math.hypot(p_high - p, q - q_low),
    ]


def paired_interval(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """95 % interval of the difference of two accuracies on the same pictures, first minus second; hits (M,), bool.

    Only the pictures on which the two disagree count (Agresti and Min 2005: Wald's, with half a picture in each cell).
    Taught in: chapter 2b.
    """
    count = len(first) + 2
    only_first, only_second = (
        (a & ~b).sum().item() + 0.5 for a, b in ((first, second), (second, first))
    )
    gap = (only_first - only_second) / count
    reach = 1.959964 * math.sqrt(
        max((only_first + only_second) / count - gap**2, 0) / count
    )
    return [gap - reach, gap + reach]


def recall_equality(confusion: Sequence[Sequence[int]]) -> float:
    """p-value of the chi-square test that every class has the same recall, from a confusion matrix (true x predicted).

    Small values speak against "every class is found equally well". Pearson 1900. Taught in: chapter 2.
    """
    from scipy.stats import chi2_contingency

    matrix = np.asarray(confusion)
    matrix = matrix[matrix.sum(1) > 0]
    right = np.asarray(confusion).diagonal()[np.asarray(confusion).sum(1) > 0]
    table = np.stack([right, matrix.sum(1) - right])
    return float(chi2_contingency(table).pvalue) if (table.sum(1) > 0).all() else 1.0


def evaluate(logits: torch.Tensor, labels: torch.Tensor) -> dict:
    """Everything a result consists of, from logits (M, 6) and labels (M,).

    Keys: count, accuracy, accuracy_ci95, macro_f1, precision[6], recall[6], confusion[6][6] (rows are true classes),
    recall_equality_p (`recall_equality`),
    true_distribution[6], predicted_distribution[6], expected_calibration_error (15 bins; Guo et al. 2017),
    gender_errors, category_errors, both_errors. Taught in: chapter 2.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    from torchmetrics.functional.classification import multiclass_calibration_error

    predicted, classes = logits.argmax(1), range(len(CLASS_NAMES))
    correct = int((predicted == labels).sum())
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0.0
    )
    gender, category = (
        predicted % 2 != labels % 2,
        predicted // 2 != labels // 2,
    )  # class = 2 * category + gender
    return {
        "count": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_ci95": accuracy_interval(correct, len(labels)),
        "macro_f1": float(f1.mean()),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "confusion": (
            matrix := confusion_matrix(labels, predicted, labels=classes)
        ).tolist(),
        "recall_equality_p": recall_equality(matrix),
        "true_distribution": distribution(labels),
        "predicted_distribution": distribution(predicted),
        "expected_calibration_error": float(
            multiclass_calibration_error(
                logits.softmax(1), labels, num_classes=len(classes), n_bins=15
            )
        ),
        "gender_errors": int((gender & ~category).sum()),
        "category_errors": int((~gender & category).sum()),
        "both_errors": int((gender & category).sum()),
    }


def distribution(labels: torch.Tensor | np.ndarray) -> list[float]:
    """Share of each of the six classes.

    Taught in: chapter 2.
    """
    return (
        np.bincount(np.asarray(labels), minlength=len(CLASS_NAMES)) / len(labels)
    ).tolist()


def temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The number by which to divide logits (M, 6) so that their cross-entropy with labels (M,) is least.

    Chosen on the validation part; it changes how sure the answers are, never the answers. Guo et al. 2017.
    Taught in: chapter 2.
    """
    from scipy.optimize import minimize_scalar

    def loss(exponent: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(exponent), labels))

    return math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)


def reliability(
    logits: torch.Tensor, labels: torch.Tensor, bins: int = 15
) -> dict[str, list[float]]:
    """Per bin of confidence that holds pictures: mean `confidence`, `accuracy`, and their number `count`.

    Taught in: chapter 2.
    """
    confidence, predicted = logits.softmax(1).max(1)
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)
    filled = count > 0
    sums = {
        "confidence": confidence.double(),
        "accuracy": (predicted == labels).double(),
    }
    means = {
        name: torch.bincount(place, values, bins)[filled] / count[filled]
        for name, values in sums.items()
    }
    return {name: values.tolist() for name, values in means.items()} | {
        "count": count[filled].tolist()
    }


def gender_gap(confusion: Sequence[Sequence[int]]) -> dict:
    """Accuracy on men's and on women's products (correct, count) and the 95 % interval of men's minus women's.

    From a confusion matrix (true x predicted); classes of men are even. Raises InputError where one has no picture.
    Taught in: chapter 2.
    """
    matrix = np.asarray(confusion)
    men, women = (
        (int(matrix.diagonal()[start::2].sum()), int(matrix[start::2].sum()))
        for start in (0, 1)
    )
    if not men[1] or not women[1]:
        raise InputError(
            f"the gap needs men's and women's test pictures; found {men[1]} and {women[1]}."
        )
    return {
        "men": list(men),
        "women": list(women),
        "difference_ci95": difference_interval(men, women),
    }
