"""How good a classifier is: accuracy, recall, kinds of error.

    result = evaluation.evaluate(*training.predict(model, prepared.subset("test", 224)))
    evaluation.table({"ResNet152": evaluation.accuracy_row(result)})

Every figure is taken from all logits at once, never as a mean of batch means: the last
batch is shorter. A number with its 95 % interval is an `Estimate`; in an f-string with
the format `.2f` it is `0.21 (0.15 to 0.27)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch

from fashionlib.runtime import InputError

# --- numbers with their intervals -----------------------------------------------------


class Estimate(NamedTuple):
    """A number, its 95 % interval [low, high], and how many values it comes from.

    A format applies to all three numbers, `+` and `%` included. Where there are too few
    values all three are NaN (`no_estimate`): a figure leaves them out, a table and a
    sentence say why, and metrics.json has null with the reason.
    Taught in: chapter 2
    """

    value: float
    ci95: Sequence[float]
    count: int = 0

    @property
    def reason(self) -> str:
        """Why there is no number; empty where there is one."""
        known = all(map(math.isfinite, self.ci95))
        return "" if known else f"too few values for an interval: {self.count}"

    def __format__(self, spec: str) -> str:
        if self.reason:
            return f"no number ({self.reason})"
        return f"{self.value:{spec}} ({self.ci95[0]:{spec}} to {self.ci95[1]:{spec}})"

    def in_percent(self) -> Estimate:
        """The same in per cent; a difference becomes percentage points.

        Taught in: chapter 2
        """
        return Estimate(100 * self.value, [100 * x for x in self.ci95], self.count)


def no_estimate(count: int) -> Estimate:
    """What stands for a number that `count` values are too few to tell.

    Taught in: chapter 3
    """
    return Estimate(math.nan, [math.nan, math.nan], count)


def mean_interval(values: torch.Tensor | np.ndarray) -> Estimate:
    """Mean of values (N,) with its interval by Student's t (1908); NaN is left out.

    Fewer than two values are `no_estimate`.
    Taught in: chapter 3
    """
    from scipy import special, stats

    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return no_estimate(len(values))
    mean = float(values.mean())
    reach = float(special.stdtrit(len(values) - 1, 0.975) * stats.sem(values))
    return Estimate(mean, [mean - reach, mean + reach], len(values))


def wilson_interval(correct: int, count: int) -> list[float]:
    """95 % interval of the fraction `correct` of `count` images (Wilson 1927).

    Taught in: chapter 2
    """
    from scipy.stats import binomtest

    interval = binomtest(int(correct), int(count)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def accuracy(correct: torch.Tensor | np.ndarray | Sequence[int]) -> Estimate:
    """Fraction that is correct, with Wilson's interval; of none `no_estimate`.

    correct: bool (M,), one for each image, or the two numbers (correct, images).
    Taught in: chapter 2
    """
    mask = hasattr(correct, "dtype")
    found, count = (int(correct.sum()), len(correct)) if mask else correct
    if not count:
        return no_estimate(count)
    return Estimate(found / count, wilson_interval(found, count), count)


def agresti_min_interval(
    first: torch.Tensor, second: torch.Tensor, *, comparisons: int = 1
) -> list[float]:
    """95 % interval of the difference of two accuracies on the same images.

    first, second: bool (M,), correct or not; the difference is first minus second. Only
    images on which the two disagree count: Wald's interval with half an image added to
    each of the four cells (Agresti and Min 2005). comparisons: so many intervals hold
    all their differences with 95 % (Bonferroni).
    Taught in: chapter 2b
    """
    count = len(first) + 2
    only_first = (first & ~second).sum().item() + 0.5
    only_second = (second & ~first).sum().item() + 0.5
    gap = (only_first - only_second) / count
    z = NormalDist().inv_cdf(1 - 0.025 / comparisons)
    reach = z * math.sqrt(((only_first + only_second) / count - gap**2) / count)
    return [gap - reach, gap + reach]


# --- one result -----------------------------------------------------------------------


def evaluate(logits: torch.Tensor, labels: torch.Tensor) -> dict:
    """Everything that a result consists of, from logits (M, 6) and labels (M,).

    Keys: count, accuracy, accuracy_ci95, macro_f1, precision[6], recall[6],
    confusion[6][6] (rows are true classes), recall_equality_p, marginal_homogeneity_p,
    true_distribution[6], predicted_distribution[6], gender_errors, category_errors,
    both_errors. None: the recall of a class without images, and the precision of one
    that is never predicted. Macro-F1 is the mean over the classes that occur. Raises
    InputError for no images and for logits that are not finite.
    Taught in: chapter 2
    """
    if not len(labels) or not logits.isfinite().all():
        raise InputError("there are no images to evaluate, or logits are not finite.")
    predicted = logits.argmax(1)
    confusion = (6 * labels + predicted).bincount(minlength=36).view(6, 6).numpy()
    found, count, answers = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = _fractions(2 * found, count + answers)
    gender = predicted % 2 != labels % 2  # class = 2 * category + gender
    category = predicted // 2 != labels // 2
    return {
        "count": len(labels),
        "accuracy": float(found.sum() / len(labels)),
        "accuracy_ci95": wilson_interval(found.sum(), len(labels)),
        "macro_f1": float(np.mean([f for f in f1 if f is not None])),
        "precision": _fractions(found, answers),
        "recall": _fractions(found, count),
        "confusion": confusion.tolist(),
        "recall_equality_p": recall_equality(confusion),
        "marginal_homogeneity_p": marginal_homogeneity(confusion),
        "true_distribution": (count / len(labels)).tolist(),
        "predicted_distribution": (answers / len(labels)).tolist(),
        "gender_errors": int((gender & ~category).sum()),
        "category_errors": int((~gender & category).sum()),
        "both_errors": int((gender & category).sum()),
    }


def _fractions(found: np.ndarray, counts: np.ndarray) -> list[float | None]:
    """The fraction of each class, None where there is nothing to count."""
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return [part / count if count else None for part, count in pairs]


def recalls(result: dict) -> dict[str, Estimate]:
    """The recall of each class that has images, by its name.

    result: what `evaluate` returned, or the entry "classifier" of metrics.json.
    Taught in: chapter 2
    """
    from fashionlib.catalogue import CLASS_NAMES

    rows = zip(CLASS_NAMES, enumerate(result["confusion"]), strict=True)
    return {name: accuracy((row[k], sum(row))) for name, (k, row) in rows if any(row)}


def recall_equality(confusion: Sequence[Sequence[int]]) -> float:
    """p-value of Pearson's chi-square test (1900) that every class has the same recall.

    confusion: (6, 6), rows are true classes; classes without an image are left out. A
    small value speaks against "every class is found equally well".
    Taught in: chapter 2
    """
    from scipy.stats import chi2_contingency

    matrix = np.asarray(confusion)
    found, count = matrix.diagonal(), matrix.sum(1)
    table = np.stack([found, count - found])[:, count > 0]
    # Where all images are correct, or none, there is nothing to test.
    return float(chi2_contingency(table).pvalue) if table.sum(1).all() else 1.0


def marginal_homogeneity(confusion: Sequence[Sequence[int]]) -> float:
    """p-value of the test that every class is predicted as often as it occurs.

    confusion: (6, 6), rows are true classes. Stuart's and Maxwell's chi-square test
    (1955, 1970): where it holds, each mistake is as likely the other way round. 1 where
    nothing is confused.
    Taught in: chapter 2
    """
    from scipy.stats import chi2

    matrix = np.asarray(confusion, float)
    shifts = matrix.sum(0) - matrix.sum(1)  # (6,), images: predicted minus true
    both = matrix + matrix.T
    covariance = np.diag(both.sum(1)) - both
    # Singular: the shifts add up to 0, within any group of classes that mix with no
    # others, too. The rank is the number of shifts that are free.
    solution, _, rank, _ = np.linalg.lstsq(covariance, shifts, rcond=1e-9)
    return float(chi2.sf(shifts @ solution, rank)) if rank else 1.0


def largest_shift(confusion: Sequence[Sequence[int]]) -> tuple[int, Estimate]:
    """The class whose fraction is shifted most, and predicted minus true fraction.

    confusion: (6, 6), rows are true classes. The interval is Agresti's and Min's, both
    fractions being of the same images; as the largest of six is picked after looking,
    it is one of six comparisons.
    Taught in: chapter 2
    """
    matrix = np.asarray(confusion)
    pairs = np.indices(matrix.shape).reshape(2, -1)  # (true, predicted) of each cell
    true, predicted = pairs.repeat(matrix.ravel(), axis=1)  # (M,) each
    shifts = (matrix.sum(0) - matrix.sum(1)) / len(true)
    k = int(np.abs(shifts).argmax())
    bounds = agresti_min_interval(predicted == k, true == k, comparisons=len(matrix))
    return k, Estimate(float(shifts[k]), bounds, len(true))


def majority(train, test) -> torch.Tensor:
    """Logits (M, 6) for the test set that always name the training set's largest class.

    The baseline to beat. train, test: `images.ImageSet`s.
    Taught in: chapter 2
    """
    fractions = np.bincount(train.labels, minlength=6) / len(train.labels)
    return torch.from_numpy(fractions).clamp(min=1e-6).log().expand(len(test.labels), 6)


# --- tables ---------------------------------------------------------------------------

# Whatever could begin a tag, an entity, emphasis, code, a link or a formula. Written as
# an entity it is itself in HTML and in Markdown; MathJax, which reads what the browser
# shows, finds no formula across the border of an element.
MARKUP = {symbol: f"&#{ord(symbol)};" for symbol in "&<>\"'`*_~[]#!|{}^%:@"}
MARKUP |= {symbol: f"<span>&#{ord(symbol)};</span>" for symbol in "$\\"}
# Control characters go, and marks that turn the direction of what follows.
CONTROL = [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
MARKUP |= {chr(code): "" for code in CONTROL}


def escape(text: str) -> str:
    """Text of a catalogue or file name, on one line, harmless in HTML and in Markdown.

    Taught in: chapter 1
    """
    line = " ".join(str(text).split()).encode(errors="replace").decode()
    line = line.translate(str.maketrans(MARKUP))
    # At its start, what makes a list or a heading, or what IPython would download.
    return re.sub(r"^([-+=]|\d+[.)]|https?)", r"<span>\1</span>", line)


def accuracy_row(result: dict) -> dict:
    """A row for `table` from what `evaluate` returned: images and accuracy in per cent.

    Taught in: chapter 2
    """
    estimate = Estimate(result["accuracy"], result["accuracy_ci95"], result["count"])
    return {"images": result["count"], "accuracy %": estimate.in_percent()}


def table(rows: dict[str, dict[str, Any]], precision: int = 1) -> Any:
    """A table to display (pandas' Styler), from {row: {column: value}}.

    Values are numbers, Estimates, text or None. Whole numbers get thousands separators,
    others `precision` decimals; None is empty. Text is escaped, names of rows and
    columns too.
    Taught in: chapter 2
    """
    import pandas as pd

    frame = pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)
    style = frame.style.format_index(escape).format_index(escape, axis=1)
    style.format(lambda value: _cell(value, precision), na_rep="")
    return style.map(lambda x: f"text-align: {'left' if type(x) is str else 'right'}")


def _cell(value: Any, precision: int) -> str:
    spec = "," if isinstance(value, int | np.integer) else f",.{precision}f"
    is_text = isinstance(value, str | bool)
    return escape(value) if is_text else format(value, spec)
