"""DCGAN: a generator and a discriminator for 64x64 pictures, trained against each other, and how to judge the result.

    train = dcgan.of_class(prepared, 1)                              # Women/Accessories
    result = dcgan.fit(train, epochs=13, ema=0.99, checkpoint=path)  # result.generator, .history, .snapshots
    pictures = dcgan.sample(result.generator, dcgan.noise(16, seed=1))

Pictures are uint8 (N, 64, 64, 3) NumPy arrays outside, float32 (N, 3, 64, 64) in [-1, 1] inside. A distance between
real and generated pictures is taken between features of the course's own classifier (`embed`), and means something
only beside its floor (real against real) and a trivial baseline (`mean_and_noise`).
Measured on 2 CPU cores, bfloat16: 111 real pictures a second with the paper's 64 feature maps and batch 128
(`benchmarks/results/small-cpu.json`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fashionlib import artifacts, images, runtime
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.images import ImageSet, Prepared
from fashionlib.runtime import InputError

VERSION = 1  # of the training: raise it when the same settings would give other weights
SIZE = 64  # side of the pictures: four doublings of a 4x4 map
SNAPSHOTS = 6  # pictures of the progress
RECORD = ("discriminator_loss", "generator_loss", "real_score", "fake_score")  # what is kept of every step


# --- networks --------------------------------------------------------------------------------------------------------


class Generator(nn.Sequential):
    """Noise (B, latent) or (B, latent, 1, 1) to pictures (B, 3, 64, 64) in [-1, 1].

    features: maps in the last hidden layer; 64 gives 3,576,704 parameters. Radford et al. 2016. Taught in: chapter 5.
    """

    def __init__(self, latent: int = 100, features: int = 64):
        super().__init__(
            *_up(latent, 8 * features, stride=1, padding=0),  # (B, 8 features, 4, 4)
            *_up(8 * features, 4 * features),  # (B, 4 features, 8, 8)
            *_up(4 * features, 2 * features),  # (B, 2 features, 16, 16)
            *_up(2 * features, features),  # (B, features, 32, 32)
            nn.ConvTranspose2d(features, 3, 4, stride=2, padding=1, bias=False),  # (B, 3, 64, 64)
            nn.Tanh(),
        )
        self.latent = latent
        _initialise(self)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return super().forward(noise.reshape(len(noise), self.latent, 1, 1))


class Discriminator(nn.Sequential):
    """Pictures (B, 3, 64, 64) in [-1, 1] to one logit each (B,): above 0 means "real".

    features: maps in the first layer; 64 gives 2,765,568 parameters. Radford et al. 2016. Taught in: chapter 5.
    """

    def __init__(self, features: int = 64):
        super().__init__(
            nn.Conv2d(3, features, 4, stride=2, padding=1, bias=False),  # (B, features, 32, 32)
            nn.LeakyReLU(0.2),
            *_down(features, 2 * features),  # (B, 2 features, 16, 16)
            *_down(2 * features, 4 * features),  # (B, 4 features, 8, 8)
            *_down(4 * features, 8 * features),  # (B, 8 features, 4, 4)
            nn.Conv2d(8 * features, 1, 4, bias=False),  # (B, 1, 1, 1)
            nn.Flatten(0),  # (B,)
        )
        _initialise(self)


def _up(inputs: int, outputs: int, stride: int = 2, padding: int = 1) -> list[nn.Module]:
    """Twice the side (stride 2); BatchNorm has a bias of its own, so the convolution needs none."""
    convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=stride, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    """Half the side."""
    convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]


def _initialise(network: nn.Module) -> None:
    """Convolutions from N(0, 0.02), BatchNorm scales from N(1, 0.02); scales around 0 would switch the maps off."""
    for module in network:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """-log D(x) - log(1 - D(G(z))), the mean over the batch (Goodfellow et al. 2014). Taught in: chapter 5."""
    return _cross_entropy(real_logits, 1.0) + _cross_entropy(fake_logits, 0.0)


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)), the non-saturating loss (Goodfellow et al. 2014). Taught in: chapter 5."""
    return _cross_entropy(fake_logits, 1.0)


def _cross_entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


# --- fit -------------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """generator: the average of its weights where `ema` is not 0, in `eval()`. history: one dictionary a step.

    snapshots: {epoch: uint8 (16, 64, 64, 3)}, always from the same noise. seconds: of the training alone.
    Taught in: chapter 5.
    """

    generator: Generator
    discriminator: Discriminator
    history: list[dict]
    snapshots: dict[int, np.ndarray]
    seconds: float
    images_per_second: float


def of_class(prepared: Prepared, label: int, split: str = "train") -> ImageSet:
    """The 64x64 pictures of one class. Raises InputError for a class that does not exist. Taught in: chapter 5."""
    if label not in range(len(CLASS_NAMES)):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(CLASS_NAMES))
        raise InputError(f"class {label!r} does not exist; the classes are {known}.")
    return prepared.subset(split, SIZE, [label])


def fit(
    train: ImageSet,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 2e-4,
    beta1: float = 0.5,
    latent: int = 100,
    features: int = 64,
    flip: bool = True,
    ema: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "auto",
    precision: str = "auto",
    checkpoint: Path | None = None,
    settings: dict | None = None,
) -> Result:
    """Train a generator on the pictures of `train` (64x64) against a discriminator; both by Adam (Radford et al. 2016).

    ema: decay of the running average of the generator's weights, 0 for none (Yazici et al. 2019).
    An epoch leaves out the pictures that do not fill a batch; which ones differs from epoch to epoch.
    checkpoint: a file that is written after every epoch; a run that was stopped goes on from it and ends with the same
    numbers, a finished one returns at once. settings: what names the data there (`Prepared.checksum`, the class).
    Raises InputError for fewer pictures than a batch, another size, or losses that are no longer finite.
    Taught in: chapter 5.
    """
    _check(train, batch_size)
    device = runtime.device(device) if isinstance(device, str) else device
    networks, updates = _players(latent, features, learning_rate, beta1, ema, seed, device)
    recipe = {
        **{
            "version": VERSION,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "beta1": beta1,
            "ema": ema,
        },
        **{"latent": latent, "features": features, "flip": flip, "seed": seed, "images": len(train.rows)},
        **{"precision": runtime.resolve_precision(device, precision), **(settings or {})},
    }
    log = _resume(checkpoint, recipe, networks, updates)
    final = networks["average"].module if ema else networks["generator"]
    pictures = torch.from_numpy(train.images[train.rows]).to(device)  # (N, 64, 64, 3) uint8: 12 KB a picture
    shown = {math.ceil(epochs * (i / SNAPSHOTS) ** 1.5) for i in range(1, SNAPSHOTS + 1)}  # most changes are early
    for epoch in runtime.progress(range(len(log["records"]) + 1, epochs + 1), "DCGAN", unit="epoch"):
        started = time.perf_counter()
        batches = _batches(pictures, batch_size, epoch, seed, flip)
        record = _epoch(networks, updates, batches, latent, precision)
        log["seconds"].append(time.perf_counter() - started)
        log["records"].append(record)
        if not record.isfinite().all():
            raise InputError(f"the losses of epoch {epoch} are not finite: lower learning_rate = {learning_rate}.")
        if epoch in shown:
            log["snapshots"][epoch] = torch.from_numpy(sample(final, noise(16, latent, seed=seed)))
        if checkpoint is not None:
            moments = {name: update.state_dict() for name, update in updates.items()}
            state = {"networks": dict(networks.state_dict()), "updates": moments, **log}
            artifacts.save_checkpoint(checkpoint, state, settings=recipe)
    return _result(final, networks["discriminator"], log, batch_size)


def _check(train: ImageSet, batch_size: int) -> None:
    if train.images.shape[1:] != (SIZE, SIZE, 3):
        raise InputError(f"DCGAN draws {SIZE}x{SIZE} pictures; found {train.images.shape[1:]}. Take size {SIZE}.")
    if not 2 <= batch_size <= len(train.rows):
        raise InputError(
            f"an epoch needs at least one full batch of two or more: found {len(train.rows)} pictures and "
            f"batch_size = {batch_size}. Choose a smaller batch_size or a class with more pictures."
        )


def _players(
    latent: int, features: int, learning_rate: float, beta1: float, ema: float, seed: int, device: torch.device
) -> tuple[nn.ModuleDict, dict[str, torch.optim.Optimizer]]:
    """Both networks as the seed draws them (on the CPU: the same on every device), the average, the optimizers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = nn.ModuleDict({"generator": Generator(latent, features), "discriminator": Discriminator(features)})
    networks.to(device, memory_format=torch.channels_last)
    updates = {
        name: torch.optim.Adam(network.parameters(), learning_rate, (beta1, 0.999))
        for name, network in networks.items()
    }
    if ema:
        moving = get_ema_multi_avg_fn(ema)
        networks["average"] = AveragedModel(networks["generator"], multi_avg_fn=moving, use_buffers=True)
    return networks, updates


def _resume(checkpoint: Path | None, recipe: dict, networks: nn.ModuleDict, updates: dict) -> dict:
    """Bring networks and optimizers to where the checkpoint stopped; returns the log of what was done so far."""
    state = artifacts.load_checkpoint(checkpoint, settings=recipe) if checkpoint is not None else None
    if state is None:
        return {"records": [], "snapshots": {}, "seconds": []}  # records: a tensor (steps, 4) an epoch
    networks.load_state_dict(state["networks"])
    for name, update in updates.items():
        artifacts.restore_optimizer(update, state["updates"][name])
    return {name: state[name] for name in ("records", "snapshots", "seconds")}


def _batches(
    pictures: torch.Tensor, batch_size: int, epoch: int, seed: int, flip: bool
) -> Iterator[tuple[torch.Tensor, torch.Generator]]:
    """Yield (B, 3, 64, 64) in [-1, 1], and the epoch's source of chance: all of it depends on (seed, epoch) only."""
    chance = torch.Generator().manual_seed(images.epoch_seed(seed, epoch))
    order = torch.randperm(len(pictures), generator=chance)
    mirrored = torch.rand(len(pictures), generator=chance) < (0.5 if flip else 0)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size].to(pictures.device)
        batch, turned = pictures[chosen], mirrored[chosen.cpu()].to(pictures.device)
        batch = torch.where(turned[:, None, None, None], batch.flip(2), batch)
        yield batch.permute(0, 3, 1, 2).float().div_(127.5).sub_(1), chance


def _epoch(networks: nn.ModuleDict, updates: dict, batches: Iterator, latent: int, precision: str) -> torch.Tensor:
    """One pass over the pictures; what `RECORD` names, of every step: (steps, 4) on the CPU."""
    networks.train()
    records = []
    for real, chance in batches:
        drawn = torch.randn(len(real), latent, generator=chance).to(real.device)
        records.append(step(networks, updates, real, drawn, precision))
        if "average" in networks:
            networks["average"].update_parameters(networks["generator"])
    return torch.stack(records).cpu()  # the only synchronisation with the device


def step(
    networks: nn.ModuleDict, updates: dict, real: torch.Tensor, drawn: torch.Tensor, precision: str
) -> torch.Tensor:
    """The discriminator's move, then the generator's, on the same fakes; the four values of `RECORD`.

    real: (B, 3, 64, 64) in [-1, 1]; drawn: noise (B, latent). Goodfellow et al. 2014, algorithm 1.
    Taught in: chapter 5.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    with runtime.autocast(real.device, precision):
        fake = generator(drawn)
        real_logits, fake_logits = discriminator(real), discriminator(fake.detach())
    judged = discriminator_loss(real_logits, fake_logits)
    updates["discriminator"].zero_grad(set_to_none=True)
    judged.backward()
    updates["discriminator"].step()

    with runtime.autocast(real.device, precision):
        made = generator_loss(discriminator(fake))  # through the discriminator as it is now
    updates["generator"].zero_grad(set_to_none=True)
    made.backward()
    updates["generator"].step()
    scores = [logits.detach().float().sigmoid().mean() for logits in (real_logits, fake_logits)]
    return torch.stack([judged.detach(), made.detach(), *scores])


def _result(generator: Generator, discriminator: Discriminator, log: dict, batch_size: int) -> Result:
    steps = [
        {"epoch": epoch, **dict(zip(RECORD, values, strict=True))}
        for epoch, record in enumerate(log["records"], start=1)
        for values in record.tolist()
    ]
    snapshots = {epoch: pictures.numpy() for epoch, pictures in log["snapshots"].items()}
    seconds = sum(log["seconds"])
    return Result(generator.eval(), discriminator.eval(), steps, snapshots, seconds, len(steps) * batch_size / seconds)


# --- sample ----------------------------------------------------------------------------------------------------------


def noise(count: int, latent: int = 100, *, seed: int = 0) -> torch.Tensor:
    """Standard normal points (count, latent) of the latent space, the same on every device. Taught in: chapter 5."""
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def sample(generator: nn.Module, points: torch.Tensor, *, batch_size: int = 256) -> np.ndarray:
    """Pictures uint8 (N, 64, 64, 3) from points (N, latent) of the latent space, in float32 and `eval()`.

    BatchNorm's running statistics make each picture depend on its own point only; the mode is put back afterwards.
    Taught in: chapter 5.
    """
    device, training = next(generator.parameters()).device, generator.training
    generator.eval()
    try:
        parts = [generator(part.to(device)).add(1).mul(127.5).round().byte().cpu() for part in points.split(batch_size)]
    finally:
        generator.train(training)
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy()


def interpolate(start: torch.Tensor, end: torch.Tensor, steps: int) -> torch.Tensor:
    """Points (steps, latent) from `start` to `end` (latent,) at equal angles: normal points lie near a sphere.

    Raises InputError for opposite or zero points, between which no arc is shortest. White 2016.
    Taught in: chapter 5.
    """
    cosine = F.cosine_similarity(start, end, dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if not torch.sin(angle) > 1e-3:
        raise InputError(f"interpolation needs two points of different directions; their cosine is {cosine:.3f}.")
    share = torch.linspace(0, 1, steps)[:, None]
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


def load(path: Path, device: torch.device | str = "auto") -> tuple[Generator, dict]:
    """A run's generator (in `eval()`) and its settings, from `dcgan_<class>.safetensors`. Taught in: chapter 5."""
    device = runtime.device(device) if isinstance(device, str) else device
    _, settings = artifacts.read_checkpoint(path)
    generator = Generator(settings["latent"], settings["features"])
    artifacts.load_weights(path, generator)
    return generator.to(device, memory_format=torch.channels_last).eval(), settings


# --- distances -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def embed(
    model: nn.Module, pixels: np.ndarray, *, size: images.Size = SIZE, batch_size: int = 256, precision: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D), the input of the classifier's last linear layer, and logits (N, 6): float32 on the CPU.

    pixels: uint8 (N, H, W, 3), real or generated alike; resized on the device to the classifier's `size`.
    Taught in: chapter 5.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    device, training = next(model.parameters()).device, model.training
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen, logits = [], []
    hook = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float().cpu()))
    model.eval()
    try:
        for start in range(0, len(pixels), batch_size):
            batch = images.normalise(torch.from_numpy(pixels[start : start + batch_size]).to(device))
            if batch.shape[2:] != size:
                batch = F.interpolate(batch, size, mode="bilinear", antialias=True)
            with runtime.autocast(device, precision):
                logits.append(model(batch).float().cpu())
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(seen), torch.cat(logits)


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
    return float(gap + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum())


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
    drawn = real.mean(0) + real.std(0) * chance.standard_normal((count, *real.shape[1:]))
    return drawn.round().clip(0, 255).astype(np.uint8)


def nearest_neighbours(queries: np.ndarray, real: np.ndarray, *, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """For each query the nearest of `real`: indices (Q,) and distances (Q,), the root mean square difference.

    Pictures uint8 (N, H, W, 3), where the distance is in grey levels, or features (N, D). Taught in: chapter 5.
    """
    wanted = torch.from_numpy(queries.reshape(len(queries), -1)).float()
    best, index = torch.full((len(queries),), torch.inf), torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(real), chunk):  # a chunk of 64x64 pictures is 50 MB as float32
        part = torch.from_numpy(real[start : start + chunk].reshape(-1, wanted.shape[1])).float()
        distance, place = torch.cdist(wanted, part).min(1)
        index = torch.where(distance < best, place + start, index)
        best = torch.minimum(distance, best)
    found = torch.from_numpy(real[index.numpy()].reshape(wanted.shape)).float()
    return index.numpy(), (wanted - found).square().mean(1).sqrt().numpy()  # exact, where cdist rounds
