"""The two networks of a DCGAN, and what to do with a generator once it is trained.

    generator = Generator(latent=100, features=64)
    pictures = sample(generator, noise(16, seed=1))                  # uint8 (16, 64, 64, 3)
    walk = sample(generator, interpolate(*noise(2), steps=10))

Pictures are float32 (B, 3, 64, 64) in [-1, 1] in the networks. They are trained in `fashionlib.dcgan`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from fashionlib.runtime import InputError


class Generator(nn.Sequential):
    """Noise (B, latent) to pictures (B, 3, 64, 64) in [-1, 1]; of `classes`, labels (B,) say which one is drawn.

    features: maps in the last hidden layer; 64 gives 3,576,704 parameters. Radford et al. 2016. Taught in: chapter 5.
    """

    def __init__(self, latent: int = 100, features: int = 64, classes: int = 0):
        super().__init__(
            *_up(
                latent + classes, 8 * features, stride=1, padding=0
            ),  # (B, 8 features, 4, 4)
            *_up(8 * features, 4 * features),  # (B, 4 features, 8, 8)
            *_up(4 * features, 2 * features),  # (B, 2 features, 16, 16)
            *_up(2 * features, features),  # (B, features, 32, 32)
            nn.ConvTranspose2d(
                features, 3, 4, stride=2, padding=1, bias=False
            ),  # (B, 3, 64, 64)
            nn.Tanh(),
        )
        self.classes = classes
        _initialise(self)

    def forward(
        self, noise: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.classes:
            noise = torch.cat([noise, F.one_hot(labels, self.classes).to(noise)], dim=1)
        return super().forward(noise[:, :, None, None])


class OfClass(nn.Module):
    """One class of a conditional generator, used like a generator of its own: noise (B, latent) to pictures.

    index: which of the classes that it was trained on, in their order. Taught in: chapter 5.
    """

    def __init__(self, generator: Generator, index: int):
        super().__init__()
        self.generator, self.index = generator, index

    def forward(
        self, noise: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.generator(
            noise, torch.full((len(noise),), self.index, device=noise.device)
        )


class Discriminator(nn.Sequential):
    """Pictures (B, 3, 64, 64) in [-1, 1] to one logit each (B,): above 0 means "real", of the class labels (B,) say.

    features: maps in the first layer; 64 gives 2,765,568 parameters. spectral: divide every layer by its largest
    singular value, in place of BatchNorm. Radford et al. 2016. Taught in: chapter 5.
    """

    def __init__(self, features: int = 64, classes: int = 0, *, spectral: bool = False):
        super().__init__(
            nn.Conv2d(
                3, features, 4, stride=2, padding=1, bias=False
            ),  # (B, features, 32, 32)
            nn.LeakyReLU(0.2),
            *_down(features, 2 * features, spectral),  # (B, 2 features, 16, 16)
            *_down(2 * features, 4 * features, spectral),  # (B, 4 features, 8, 8)
            *_down(4 * features, 8 * features, spectral),  # (B, 8 features, 4, 4)
            nn.Conv2d(
                8 * features, max(1, classes), 4, bias=False
            ),  # (B, 1 or classes, 1, 1)
            nn.Flatten(1),  # (B, 1 or classes)
        )
        self.classes = classes
        _initialise(self)
        for module in self if spectral else ():
            if isinstance(module, nn.Conv2d):
                spectral_norm(module)

    def forward(
        self, pixels: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = super().forward(pixels)
        return logits.gather(1, labels[:, None])[:, 0] if self.classes else logits[:, 0]


def _up(
    inputs: int, outputs: int, stride: int = 2, padding: int = 1
) -> list[nn.Module]:
    """Twice the side (stride 2); BatchNorm has a bias of its own, so the convolution needs none."""
    convolution = nn.ConvTranspose2d(
        inputs, outputs, 4, stride=stride, padding=padding, bias=False
    )
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _down(inputs: int, outputs: int, spectral: bool) -> list[nn.Module]:
    """Half the side."""
    convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=spectral)
    return [
        convolution,
        *([] if spectral else [nn.BatchNorm2d(outputs)]),
        nn.LeakyReLU(0.2),
    ]


def _initialise(network: nn.Module) -> None:
    """Convolutions from N(0, 0.02), BatchNorm scales from N(1, 0.02); scales around 0 would switch the maps off."""
    for module in network:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


# --- use --------------------------------------------------------------------------------------------------------------


def noise(count: int, latent: int = 100, *, seed: int = 0) -> torch.Tensor:
    """Standard normal points (count, latent) of the latent space, the same on every device. Taught in: chapter 5."""
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def sample(
    generator: nn.Module,
    points: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """Pictures uint8 (N, 64, 64, 3) from points (N, latent) of the latent space, in float32 and `eval()`.

    labels: int64 (N,), which of the classes that a conditional generator was trained on, in their order.

    BatchNorm's running statistics make each picture depend on its own point only; the mode is put back afterwards.
    Taught in: chapter 5.
    """
    device, training = next(generator.parameters()).device, generator.training
    generator.eval()
    labels = torch.zeros(len(points), dtype=torch.int64) if labels is None else labels
    parts = []
    try:
        for part, of in zip(
            points.split(batch_size), labels.split(batch_size), strict=True
        ):
            parts.append(
                generator(part.to(device), of.to(device))
                .add(1)
                .mul(127.5)
                .round()
                .byte()
                .cpu()
            )
    finally:
        generator.train(training)
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy()


def interpolate(start: torch.Tensor, end: torch.Tensor, steps: int) -> torch.Tensor:
    """Points (steps, latent) from `start` to `end` (latent,) at equal angles: normal points lie near a sphere.

    Raises InputError for points of equal or opposite directions, and for zero, which has none. White 2016.
    Taught in: chapter 5.
    """
    cosine = F.cosine_similarity(start, end, dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if not torch.sin(angle) > 1e-3 or not start.any() or not end.any():
        raise InputError(
            f"interpolation needs two points of different directions; their cosine is {cosine:.3f}."
        )
    share = torch.linspace(0, 1, steps)[:, None]
    return (
        torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end
    ) / torch.sin(angle)
