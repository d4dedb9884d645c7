"""How good are generated images: distances, precision and recall, diversity.

    def embed(pixels):  # features of the course's own classifier
        return models.extract_features(model, images.from_array(pixels), size=64)[0]

    gan_metrics.scores(embed, real, {"generated": generated, "floor": other_real_ones})

Images are uint8 arrays (N, H, W, 3), features float32 tensors (N, D). A distance means
something only beside its floor (real against real) and a trivial baseline, and only at
equal numbers of images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fashionlib.runtime import InputError

Embed = Callable[[np.ndarray], Tensor]  # images uint8 (N, H, W, 3) to features (N, D)


def scores(embed: Embed, reference: np.ndarray, sides: dict[str, np.ndarray]) -> dict:
    """How far each of `sides` is from the real images in `reference`.

    Images uint8 (N, H, W, 3), as many of each side as in the reference; embed gives
    their features (N, D). Returns for each side frechet, kernel, precision and recall,
    which compare features, and diversity, of pixels (1: as much as the real ones).
    Raises InputError for unequal numbers of images, for fewer than four, and where the
    reference images are all the same.
    Taught in: chapter 5
    """
    count, real_diversity = len(reference), diversity(reference)
    if not real_diversity:
        raise InputError(f"the {count} real images are all the same: take others.")
    real, found = embed(reference), {}
    for name, pixels in sides.items():
        if len(pixels) != count:
            raise InputError(f"{name}: expected {count} images, found {len(pixels)}.")
        generated = embed(pixels)
        precision, recall = precision_and_recall(real, generated)
        found[name] = {
            "frechet": frechet_distance(real, generated),
            "kernel": kernel_distance(real, generated),
            "precision": precision,
            "recall": recall,
            "diversity": diversity(pixels) / real_diversity,
        }
    return found


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to features (N, D), in float64.

    With centred features A and B, divided by sqrt(N - 1), the covariances are A'A and
    B'B, and the trace of the root of their product is the sum of the singular values of
    AB': an N x N matrix instead of the eigenvalues of a D x D one without full rank.
    Equal to torchmetrics and SciPy, and 100 times as fast for 100 images and 512
    features. It shrinks as N grows, even between images of the same kind: compare only
    at equal N. Raises InputError for fewer than two features of either.
    Heusel et al. 2017, https://arxiv.org/abs/1706.08500
    Taught in: chapter 5
    """
    _check(2, real, generated)
    real, generated = real.double(), generated.double()
    gap = (real.mean(0) - generated.mean(0)).square().sum()
    a = (real - real.mean(0)) / (len(real) - 1) ** 0.5
    b = (generated - generated.mean(0)) / (len(generated) - 1) ** 0.5
    root = torch.linalg.svdvals(a @ b.T).sum()
    # rounding may leave a little less than 0
    return max(0.0, float(gap + a.square().sum() + b.square().sum() - 2 * root))


def kernel_distance(real: Tensor, generated: Tensor) -> float:
    """Unbiased squared MMD between as many features each, (N, D), in float64.

    The kernel is (a'b / D + 1)^3. All images at once instead of random subsets, so that
    nothing in it is random; it can fall a little below 0. Raises InputError below two.
    Binkowski et al. 2018, https://arxiv.org/abs/1801.01401
    Taught in: chapter 5
    """
    _check(2, real, generated)
    count, dimensions = real.shape
    features = torch.cat([real, generated]).double()
    kernel = (features @ features.T / dimensions + 1) ** 3  # (2N, 2N)
    across = kernel[:count, count:].mean()
    kernel.fill_diagonal_(0)  # no image with itself
    within = kernel[:count, :count].sum() + kernel[count:, count:].sum()
    return float(within / (count * (count - 1)) - 2 * across)


def diversity(images: np.ndarray) -> float:
    """Mean root mean square difference, in gray levels, over all pairs of images.

    images: uint8 (N, H, W, 3). Raises InputError for fewer than two.
    Taught in: chapter 5
    """
    _check(2, images)
    count = len(images)
    flat = torch.from_numpy(images).flatten(1).float()
    flat -= flat.mean(0)  # many are compared by products, which would not be 0
    differences = torch.cdist(flat, flat).fill_diagonal_(0)
    return float(differences.sum() / (count * (count - 1)) / flat.shape[1] ** 0.5)


def precision_and_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> tuple:
    """Fraction of generated features among the real ones, and of real among generated.

    "Among": nearer to one of the others than that one's own third neighbour is.
    Precision is quality, recall diversity; both shrink with the number of images.
    Features (N, D) and (M, D). Raises InputError below neighbours + 1 of either.
    Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991
    Taught in: chapter 5
    """
    _check(neighbours + 1, real, generated)
    fractions = []
    for points, others in ((generated, real), (real, generated)):
        distances = torch.cdist(others, others)  # the nearest of each is itself
        reach = distances.kthvalue(neighbours + 1, dim=1).values
        among = (torch.cdist(points, others) <= reach).any(1)
        fractions.append(among.float().mean().item())
    return tuple(fractions)


def _check(least: int, *sides: Tensor | np.ndarray) -> None:
    """Refuse fewer than `least` images or features, and features that are NaN."""
    count = min(map(len, sides))
    if count < least:
        raise InputError(f"expected {least} images or more a side; found {count}.")
    if not all(torch.as_tensor(side).isfinite().all() for side in sides):
        raise InputError("features are not finite: train the network that has them.")
