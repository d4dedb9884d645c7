"""A training of seconds, to be killed or launched in two processes: python tests/training_job.py FOLDER [NETWORK].

NETWORK: `batch_norm` (with dropout, too), `frozen` (BatchNorm frozen), or `plain` (none).
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_training import RECIPE, pictures, tiny
from torch import nn

from fashionlib import runtime, training


def main() -> None:
    folder, network = Path(sys.argv[1]), (sys.argv[2:] or ["batch_norm"])[0]
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    seed = int(
        (folder / "checkpoint.safetensors").exists() and network == "batch_norm"
    )  # a resumed run: other weights
    model = tiny(dropout=0.1 if network == "batch_norm" else 0, seed=seed)
    recipe = replace(RECIPE, epochs=60, average=0.1)
    if network == "plain":
        model[1] = nn.Identity()
    if network != "batch_norm":
        recipe = replace(recipe, epochs=4, frozen_batch_norm=True, learning_rate=1e-3)
    data = pictures(405)  # the last batch has five pictures: no even share
    history = training.fit(
        model,
        data,
        pictures(33),
        recipe=recipe,
        device="cpu",
        precision="float32",
        checkpoint=folder / "checkpoint.safetensors",
        checkpoint_steps=7,
    )
    if runtime.processes()[0] == 0:
        save_file(model.state_dict(), folder / "weights.safetensors")
        (folder / "history.json").write_text(json.dumps(history))


if __name__ == "__main__":
    main()
