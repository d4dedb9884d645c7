"""A training of seconds, to be killed or launched in two processes.

    python tests/training_job.py FOLDER [NETWORK]

NETWORK: `batch_norm` (with dropout), `frozen` (up to BatchNorm), or `plain` (none).
Every process writes the weights that it ends with, the first one the records.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_training import RECIPE, brightness, tiny
from torch import nn

from fashionlib import runtime, training


def main() -> None:
    folder, network = Path(sys.argv[1]), (sys.argv[2:] or ["batch_norm"])[0]
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    training.CHECKPOINT_STEPS = 7
    killed = any(folder.glob("job-*.pt"))  # goes on from the file, so from any weights
    model = tiny(dropout=0.1 if network == "batch_norm" else 0, seed=int(killed))
    recipe = replace(RECIPE, epochs=40)
    if network == "plain":
        model[1] = nn.Identity()
    if network == "frozen":
        recipe = replace(recipe, frozen_until="1")
    rank, world_size = runtime.rank_and_world_size()
    if network != "batch_norm" or world_size > 1:
        recipe = replace(recipe, epochs=4, learning_rate=1e-3, micro_batch=8)
    # The last step's images make no even shares: 5, or 17 in passes of 8 and of 9
    count = 401 if network == "plain" else 405
    history = training.fit(
        model,
        brightness(count),
        brightness(33),
        recipe=recipe,
        device="cpu",
        precision="float32",
        checkpoint=folder / "job",
    )
    torch.save(model.state_dict(), folder / f"weights-{rank}.pt")
    if rank == 0:
        (folder / "history.json").write_text(json.dumps(history))


if __name__ == "__main__":
    main()
