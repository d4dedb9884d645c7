"""The DCGAN's step side by side: python benchmarks/gan.py (2 minutes on 2 cores).

Ours against the loop of PyTorch's own DCGAN example and tutorial: ImageFolder and
DataLoader over JPEGs, float32, the memory format of torch's defaults; and against the
same loop with its batches ready in memory. Same networks (the paper's), batch 128, same
images. Each candidate runs in a process of its own; they take turns.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import measuring
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from fashionlib import dcgan

BATCH, IMAGES, ROUNDS, SIDE = 128, 512, 5, dcgan.SIZE


# --- candidates: what each makes trains for one epoch ---------------------------------


def ours(folder: Path):
    data = measuring.read_pictures(folder, IMAGES)
    recipe = dcgan.Recipe(epochs=1, batch_size=BATCH)
    return lambda: dcgan.fit(data, recipe=recipe)


def example(folder: Path, *, in_memory: bool):
    """The example's own step: a backward pass for each loss, labels are filled in."""
    steps = [
        transforms.Resize(SIDE),
        transforms.CenterCrop(SIDE),
        transforms.ToTensor(),
    ]
    steps.append(transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    dataset = datasets.ImageFolder(folder / "jpeg", transforms.Compose(steps))
    loader = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        num_workers=0 if in_memory else 2,
        persistent_workers=not in_memory,
    )
    batches = list(loader) if in_memory else loader
    generator, discriminator = dcgan.Generator(), dcgan.Discriminator()
    criterion = nn.BCEWithLogitsLoss()
    g_optimizer = torch.optim.Adam(generator.parameters(), 2e-4, (0.5, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999))

    def epoch() -> None:
        for real, _ in batches:
            discriminator.zero_grad()
            label = torch.full((len(real),), 1.0)
            criterion(discriminator(real), label).backward()
            fake = generator(torch.randn(len(real), 100))
            label.fill_(0.0)
            criterion(discriminator(fake.detach()), label).backward()
            d_optimizer.step()
            generator.zero_grad()
            label.fill_(1.0)
            criterion(discriminator(fake), label).backward()
            g_optimizer.step()

    return epoch


CANDIDATES = {
    "ours": ours,
    "PyTorch's example": lambda folder: example(folder, in_memory=False),
    "PyTorch's example, batches in memory": lambda folder: example(
        folder, in_memory=True
    ),
}


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        torch.manual_seed(0)
        measuring.serve(CANDIDATES[sys.argv[3]](Path(sys.argv[2])))
        return
    with tempfile.TemporaryDirectory() as folder:
        measuring.write_pictures(
            Path(folder), measuring.photographs(40)[1], SIDE, IMAGES
        )
        commands = {
            name: [sys.executable, __file__, "--serve", folder, name]
            for name in CANDIDATES
        }
        answers = measuring.in_processes(commands, ROUNDS)
    rates = {
        name: [IMAGES / answer["seconds"] for answer in each]
        for name, each in answers.items()
    }
    rows = [
        measuring.row(f"the paper's networks, batch {BATCH}: {name}", values)
        for name, values in rates.items()
    ]
    ratios = {
        "gan_vs_example": measuring.ratio(rates, "ours", "PyTorch's example"),
        "gan_vs_example_in_memory": measuring.ratio(
            rates, "ours", "PyTorch's example, batches in memory"
        ),
    }
    measuring.save("gan", rows, ratios)


if __name__ == "__main__":
    main()
