"""How good are generated pictures: distances between features, new or copied, as varied as the real ones?

    own = lambda pixels: gan_metrics.embed(model, pixels, size=64)[0]  # features of the course's own classifier
    gan_metrics.scores(own, real, {"generated": generated, "floor": other_real_ones})

Pictures are uint8 (N, H, W, 3) NumPy arrays. A distance means something only beside its floor (real against real) and
a trivial baseline (`mean_and_noise`), and only at equal numbers of pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fashionlib import images, models, runtime, training


@torch.no_grad()
def embed(
    model: nn.Module,
    pixels: np.ndarray,
    *,
    size: images.Size,
    batch_size: int = 256,
    precision: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D), the input of the classifier's last linear layer, and logits (N, 6): float32 on the CPU.

    pixels: uint8 (N, H, W, 3), real or generated alike; resized on the device to the classifier's `size`.
    Taught in: chapter 5.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    device, mode = next(model.parameters()).device, model.training
    seen, logits = [], []
    hook = training.head(model).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].float().cpu())
    )
    model.eval()
    try:
        for start in range(0, len(pixels), batch_size):
            batch = images.normalise(
                torch.from_numpy(pixels[start : start + batch_size]).to(device)
            )
            if batch.shape[2:] != size:
                batch = F.interpolate(batch, size, mode="bilinear", antialias=True)
            with runtime.autocast(device, precision):
                logits.append(model(batch).float().cpu())
    finally:
        hook.remove()
        model.train(mode)
    return torch.cat(seen), torch.cat(logits)


def inception(
    *, batch_size: int = 64, device: torch.device | str = "auto"
) -> Callable[[np.ndarray], torch.Tensor]:
    """The Inception network that published distances are measured with, as `embed` for `scores`.

    It takes pictures uint8 (N, H, W, 3) to features float32 (N, 2048) on the CPU (torchmetrics and torch-fidelity).
    Raises InputError where its weights, 91 MB, are neither in torch's cache nor to be downloaded. Taught in: chapter 5.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchmetrics.image.fid import NoTrainInceptionV3

    models.download(URL_INCEPTION_V3, "Inception's weights")
    device = runtime.device(device) if isinstance(device, str) else device
    network = NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(device)

    def embed(pixels: np.ndarray) -> torch.Tensor:
        batches = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(batch_size)
        return torch.cat(
            [network(batch.to(device)).flatten(1).cpu() for batch in batches]
        )

    return embed


def scores(
    embed: Callable[[np.ndarray], torch.Tensor],
    reference: np.ndarray,
    sides: dict[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """How far each side is from the real pictures in `reference`: a dictionary of measures a side.

    Pictures uint8 (N, H, W, 3), as many on each side as in the reference; embed takes them to features (N, D).
    frechet, kernel, precision and recall compare features, variety pixels (1: as much as real ones).
    Raises InputError for unequal numbers of pictures. Taught in: chapter 5.
    """
    known, found = embed(reference), {}
    for name, pixels in sides.items():
        if len(pixels) != len(reference):
            raise runtime.InputError(
                f"{name}: expected {len(reference)} pictures as in the reference, found {len(pixels)}."
            )
        made = embed(pixels)
        precision, recall = precision_and_recall(known, made)
        found[name] = {
            "frechet": frechet_distance(known, made),
            "kernel": kernel_distance(known, made),
        }
        found[name] |= {
            "precision": precision,
            "recall": recall,
            "variety": variety(pixels) / variety(reference),
        }
    return found


def frechet_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to features (N, D), in float64 (Heusel et al. 2017).

    With centred features A and B, divided by sqrt(N - 1), the covariances are A'A and B'B, and the trace of the root
    of their product is the sum of the singular values of AB': an N x N matrix instead of the eigenvalues of a D x D
    one without full rank. Equal to torchmetrics and SciPy, and 100 times as fast for 100 pictures and 512 features.
    It shrinks as N grows, even between pictures of the same kind: compare only at equal N. Taught in: chapter 5.
    """
    real, generated = real.double(), generated.double()
    gap = (real.mean(0) - generated.mean(0)).square().sum()
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (real, generated))
    return float(
        gap
        + a.square().sum()
        + b.square().sum()
        - 2 * torch.linalg.svdvals(a @ b.T).sum()
    )


def kernel_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Unbiased squared MMD with a cubic kernel between equally many features (N, D) (Binkowski et al. 2018).

    All pictures at once instead of random subsets, so it has no chance in it; it can fall a little below 0.
    Taught in: chapter 5.
    """
    from torchmetrics.image.kid import poly_mmd

    return float(poly_mmd(real.double(), generated.double()))


def mean_and_noise(real: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """The trivial baseline: the mean picture plus noise with each pixel's own deviation, uint8 (count, H, W, 3).

    Taught in: chapter 5.
    """
    chance = np.random.default_rng(seed)
    drawn = real.mean(0) + real.std(0) * chance.standard_normal(
        (count, *real.shape[1:])
    )
    return drawn.round().clip(0, 255).astype(np.uint8)


def nearest_neighbours(
    queries: np.ndarray, real: np.ndarray, *, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the nearest of `real`: indices (Q,) and distances (Q,), the root mean square difference.

    Pictures uint8 (N, H, W, 3), where the distance is in grey levels, or features (N, D). Taught in: chapter 5.
    """
    wanted = torch.from_numpy(queries.reshape(len(queries), -1)).float()
    best, index = (
        torch.full((len(queries),), torch.inf),
        torch.zeros(len(queries), dtype=torch.int64),
    )
    for start in range(
        0, len(real), chunk
    ):  # a chunk of 64x64 pictures is 50 MB as float32
        part = torch.from_numpy(
            real[start : start + chunk].reshape(-1, wanted.shape[1])
        ).float()
        distance, place = torch.cdist(wanted, part).min(1)
        index = torch.where(distance < best, place + start, index)
        best = torch.minimum(distance, best)
    found = torch.from_numpy(real[index.numpy()].reshape(wanted.shape)).float()
    return index.numpy(), (wanted - found).square().mean(
        1
    ).sqrt().numpy()  # exact, where cdist rounds


def variety(pixels: np.ndarray) -> float:
    """Mean root mean square difference (grey levels) over all pairs of pictures uint8 (N, H, W, 3).

    Raises InputError for fewer than two. Taught in: chapter 5.
    """
    if len(pixels) < 2:
        raise runtime.InputError(
            f"variety needs at least two pictures, found {len(pixels)}."
        )
    flat = torch.from_numpy(pixels.reshape(len(pixels), -1)).float()
    apart = torch.cdist(flat, flat).fill_diagonal_(0)
    return float(apart.sum() / (len(flat) * (len(flat) - 1)) / flat.shape[1] ** 0.5)


def precision_and_recall(
    real: torch.Tensor, generated: torch.Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """Shares of generated features (N, D) that lie among real ones (M, D), and of real ones among generated.

    "Among": nearer to one of the others than that one's own third neighbour is (Kynkaanniemi et al. 2019). Precision
    is quality, recall variety; both shrink with the number of pictures. Taught in: chapter 5.
    """
    shares = []
    for points, others in ((generated, real), (real, generated)):
        reach = (
            torch.cdist(others, others).kthvalue(neighbours + 1, dim=1).values
        )  # the nearest is the point itself
        shares.append(
            float((torch.cdist(points, others) <= reach).any(1).float().mean())
        )
    return shares[0], shares[1]
