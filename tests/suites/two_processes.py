"""Trainings by two processes together. As a program it is one of them, with torch's variables for the process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from conftest import TinyViT
from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.genotype import Genotype
from suites.toy import free_port
from suites.training import MIXED, adapted, first_gradients, make_trainer, toy_images

IMAGES = 17  # in batches of 8: the last batch has one, which leaves nothing to the second process
Ranks = list[tuple[dict[str, Tensor], dict[str, Any]]]


def train_with_two(model: nn.Module, folder: Path, *cases: str) -> dict[str, Ranks]:
    """Case -> what each process has at the end: its numbers and first gradients, and plain data.

    Args:
        model: The base.
        folder: Where the files may be.
        cases: `SAMPLING-PACE` each, such as `"sample-off"`; ending in `-mixed` the images are augmented and mixed.
    """
    save_tensors(folder / "base.safetensors", model.state_dict(), {})
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, __file__, str(folder), *cases]
    ranks = [
        subprocess.Popen(script, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    return {case: [read_tensors(folder / f"{case}-{rank}.safetensors") for rank in range(2)] for case in cases}


def train(folder: Path, case: str) -> None:
    """Trains as this process and writes what came out."""
    sampling, pace, *mixed = case.split("-")
    images = toy_images(IMAGES).augmented(MIXED) if mixed else toy_images(IMAGES)
    model = TinyViT()
    model.load_state_dict(read_tensors(folder / "base.safetensors")[0])
    tuned = adapted(model, sampling=sampling)
    trainer = make_trainer(tuned, images, epochs=2, pace=pace)
    assert trainer.accelerator.num_processes == 2
    genotypes, before = [], tuned.before_step

    def watch(*args: Any) -> None:
        before(*args)
        active = tuned.adapted.active
        genotypes.extend(each.to_json() for each in ([active] if isinstance(active, Genotype) else active))

    tuned.before_step = watch
    gradients, ends = first_gradients(trainer), list(trainer.run())
    meta = {
        "genotypes": genotypes,
        "losses": [progress.loss for progress in ends],
        "judged": trainer.losses,
        "metrics": [progress.metric for progress in ends],
        "moments": sorted(trainer.optimizer.state_dict()["state"]),
    }
    numbers = {str(name): parameter for name, parameter in enumerate(trainer.parameters)}
    file = folder / f"{case}-{trainer.accelerator.process_index}.safetensors"
    save_tensors(file, {**numbers, **gradients}, meta)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        train(Path(sys.argv[1]), each)
    torch.distributed.destroy_process_group()
