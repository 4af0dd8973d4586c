"""Table 3: what the deployed form of every method costs: trainable numbers, FLOPs, images per second by batch size.

    python benchmarks/inference.py                                # ViT-B/16 at 224 px, random weights
    python benchmarks/inference.py --model dinov2_vits14 --image-size 98 --pretrained
    python benchmarks/inference.py --device cuda --rounds 100 --methods lora vpt-deep glora
    glora table inference results/inference                       # the table, beside the paper's

The deployed form is the merged model where a method can merge, else the model with its own modules. All are in one
process, and every round times each of them once at each batch size, in an order of its own. Images per second are the
batch over the median time, with the quartiles. FLOPs are those of one image in the forward pass, counted operator by
operator. A method that is searched is measured as one random genotype.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glora.backbones import Backbone, load_backbone
from glora.errors import GloraError
from glora.methods import METHODS
from glora.methods.method import get_method
from glora.report.result import Result
from glora.training.device import device_name

FOLDER = Path(__file__).parent.parent / "results" / "inference"
CLASSES = 100
BATCHES = (1, 4, 16)
CELLS: dict[str, tuple[str, dict[str, Any]]] = {  # label -> method and its settings
    "full": ("full", {}),
    "linear": ("linear", {}),
    "bitfit": ("bitfit", {}),
    "vpt-shallow": ("vpt", {"depth": "shallow"}),
    "vpt-deep": ("vpt", {"depth": "deep"}),
    "adapter": ("adapter", {"form": "noah"}),
    "adaptformer": ("adaptformer", {}),
    "lora": ("lora", {}),
    "noah": ("noah", {}),
    "fact": ("fact", {"form": "tk"}),
    "ssf": ("ssf", {}),
    "repadapter": ("repadapter", {}),
    "glora": ("glora", {}),
}


@dataclass
class Deployed:
    """A method's deployed form.

    Attributes:
        label: A key of `CELLS`.
        title: What tables call it.
        model: In eval mode.
        parameters: Trainable numbers without the head.
        head: Those of the head.
        settings: The method's.
    """

    label: str
    title: str
    model: nn.Module
    parameters: int
    head: int
    settings: dict[str, Any]


def deployed(label: str, backbone: Backbone, seed: int) -> Deployed:
    """The deployed form of a method on a copy of the backbone.

    Raises:
        GloraError: The method has no place in this model.
    """
    name, settings = CELLS[label]
    method = get_method(name, settings)
    tuned = method.apply(copy.deepcopy(backbone.model), head=backbone.head, seed=seed)
    if tuned.space is not None:
        tuned.activate(tuned.space.sample(random.Random(seed)))
        tuned = tuned.alone(copy.deepcopy(backbone.model))
    parameters = tuned.count()
    head = sum(p.numel() for each in backbone.head for p in backbone.model.get_submodule(each).parameters())
    model = tuned.merged().eval().requires_grad_(False)
    return Deployed(label, method.title, model, parameters, head, method.model_dump(mode="json"))


def flops(model: nn.Module, image: Tensor) -> int:
    """FLOPs of one image, a multiplication and an addition one each."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # whose products are counted everywhere
        model(image)
    return int(counter.get_total_flops())


@torch.no_grad()
def times(models: Mapping[str, nn.Module], images: Tensor, *, rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds of each round's forward passes, by model; every round has its own order."""

    def timed(model: nn.Module) -> float:
        start = time.perf_counter()
        model(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start

    for model in models.values():
        timed(model), timed(model)
    found: dict[str, list[float]] = {name: [] for name in models}
    rng, order = random.Random(seed), list(models)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            found[name].append(timed(models[name]))
    return found


def speeds(models: Mapping[str, nn.Module], image: Tensor, *, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Images per second by batch size with their quartiles, and the time over the plain network's, by model."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for size in BATCHES:
        measured = times(models, image.expand(size, -1, -1, -1).contiguous(), rounds=rounds, seed=seed + size)
        for name, seconds in measured.items():
            low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
            key = f"images_per_second_{size}"
            found[name] |= {
                key: size / statistics.median(seconds),
                f"{key}_low": size / high,
                f"{key}_high": size / low,
            }
            ratios = [mine / plain for mine, plain in zip(seconds, measured["plain"], strict=True)]
            found[name]["ratio"] = statistics.median(ratios)  # of the largest batch, the last
    return found


def measure(
    backbone: Backbone, labels: Iterable[str], *, rounds: int, seed: int = 0, device: str = "cpu"
) -> list[Result]:
    """One result for each method that this model can have.

    Args:
        backbone: The network, with a head.
        labels: Keys of `CELLS`.
        rounds: Timed passes of each model at each batch size, at least 2.
        seed: Of the images, the order and the genotypes.
        device: Where all of them are.
    """
    forms: list[Deployed] = []
    for label in labels:
        try:
            forms.append(deployed(label, backbone, seed))
        except GloraError as error:
            print(f"{label}: left out. {error}", file=sys.stderr)
    models = {"plain": copy.deepcopy(backbone.model).eval(), **{form.label: form.model for form in forms}}
    for model in models.values():
        model.to(device)
    assert backbone.preprocess is not None
    height, width = backbone.preprocess.size
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(device)
    counted = {name: flops(model, image) for name, model in models.items()}
    speed = speeds(models, image, rounds=rounds, seed=seed)
    config = {"model": {"name": backbone.name, "image_size": height}, "rounds": rounds}
    return [
        Result.stamped(
            method=CELLS[form.label][0],
            title=form.title,
            task="inference",
            model=backbone.name,
            seed=seed,
            config={**config, "method": form.settings},
            parameters=form.parameters,
            head_parameters=form.head,
            latency={"flops": counted[form.label], "backbone_flops": counted["plain"], **speed[form.label]},
            device=device_name(torch.device(device)),
            run=form.label,
        )
        for form in forms
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [label for label, (name, _) in CELLS.items() if name in METHODS]
    parser.add_argument("--model", default="vit_base_patch16_224", help="a name of glora ls models")
    parser.add_argument("--image-size", type=int, help="side in pixels; the model's own if not given")
    parser.add_argument("--pretrained", action="store_true", help="load weights; speed does not depend on them")
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--rounds", type=int, default=30, help="timed passes of each model at each batch size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    chosen = parser.parse_args(words)
    backbone = load_backbone(
        chosen.model, num_classes=CLASSES, image_size=chosen.image_size, pretrained=chosen.pretrained
    )
    for result in measure(backbone, chosen.methods, rounds=chosen.rounds, device=chosen.device):
        result.write(chosen.out / f"{result.run}.json")


if __name__ == "__main__":
    main()
