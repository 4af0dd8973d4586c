"""One of two processes that train together: run by `test_train` with torch's variables for the process group."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from conftest import TinyViT
from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.adapt.supernet import Sampling
from glora.genotype import Genotype
from test_train import adapted, first_gradients, make_trainer, toy_images


def main(folder: Path, sampling: Sampling, pace: str = "off") -> None:
    model = TinyViT()
    model.load_state_dict(read_tensors(folder / "base.safetensors")[0])
    tuned = adapted(model, sampling=sampling)
    trainer = make_trainer(tuned, toy_images(17), epochs=2, pace=pace)
    assert trainer.accelerator.num_processes == 2
    genotypes, before = [], tuned.before_step

    def watch(*args):
        before(*args)
        active = tuned.adapted.active
        genotypes.extend(each.to_json() for each in ([active] if isinstance(active, Genotype) else active))

    tuned.before_step = watch
    gradients, ends = first_gradients(trainer), list(trainer.run())
    meta = {
        "genotypes": genotypes,
        "losses": [progress.loss for progress in ends],
        "judged": trainer.losses,
        "accuracies": [progress.accuracy for progress in ends],
        "moments": sorted(trainer.optimizer.state_dict()["state"]),
    }
    numbers = {str(name): parameter for name, parameter in enumerate(trainer.parameters)}
    file = folder / f"{trainer.accelerator.process_index}.safetensors"
    save_tensors(file, {**numbers, **gradients}, meta)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
