"""What one step of Adam on each choice changes: the layer's output, relative to its size.

    python benchmarks/conditioning.py            # run the models and scalings that results/conditioning lacks
    python benchmarks/conditioning.py --table    # docs/background/conditioning.md from results/conditioning

From a fresh injection, every layer plays one choice alone. The first step of Adam moves every parameter by the
learning rate, here 1e-3, against the sign of its gradient. Each figure is the root mean square of what this adds to
the layer's output, over that of the plain output, both at the inputs that the plain model gives the layer. It is in
thousandths: the median over the layers, with the tenth and ninetieth percentile in brackets. The gradient is that of
the loss on 64 images or 16 texts. "Right" is one such step of LoRA's right factors alone, after ten steps of its left
ones, which start at zero. Only the images and the ViT's weights are real; all else is drawn at random, as torch or
transformers initialises it. Why this matters: [Training the supernet](supernet.md#what-one-step-means).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glora import Adapted, Genotype, LayerConfig, SearchSpace, inject
from glora.backbones import load_backbone
from glora.report.result import Result
from glora.tasks.task import load_task

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "conditioning"
PAGE = ROOT / "docs" / "background" / "conditioning.md"
LR = 1e-3
RANK = 8
LEFT_STEPS = 10
CHOICES = [(t, k) for t in "AB" for k in (f"lora:{RANK}", "vector", "scalar")]
CHOICES += [("C", f"lora:{RANK}"), ("C", "vector"), *((t, k) for t in "DE" for k in ("vector", "scalar"))]
SCALINGS = ("none", "fan_in")
PRODUCTS = ("elementwise", "matrix")


class Subject(NamedTuple):
    """A model, its head, and its loss on some examples."""

    model: nn.Module
    head: tuple[str, ...]
    targets: tuple[str, ...]
    loss: Callable[[nn.Module], Tensor]


def digits(name: str, size: int, *targets: str, pretrained: bool = True) -> Subject:
    """A backbone with a head drawn at random, on 64 digits of `size` pixels."""
    task = load_task("digits", train=64, val=10)
    backbone = load_backbone(name, num_classes=task.objective.outputs, image_size=size, pretrained=pretrained)
    x, y, _ = task.prepared(backbone.preprocess).train.batch(range(64))
    return Subject(backbone.model, tuple(backbone.head), targets, lambda model: F.cross_entropy(model(x), y))


def vit_s14() -> Subject:
    """The packaged DINOv2 ViT-S/14 on digits of 56 pixels; its head is drawn at random."""
    return digits("dinov2_vits14", 56, "linear")


def convnext_t() -> Subject:
    """timm's ConvNeXt-T on digits of 64 pixels: its linear layers and its convolutions."""
    return digits("convnext_tiny", 64, "linear", "conv", pretrained=False)


def smollm2_135m() -> Subject:
    """A Llama of SmolLM2-135M's shape, 16 sequences of 16 random tokens."""
    from step import smollm2_135m as shape

    model = shape().model
    tokens = torch.randint(49_152, (16, 16), generator=torch.Generator().manual_seed(0))
    return Subject(model, (), ("linear",), lambda model: model(tokens, labels=tokens).loss)


MODELS = {"vit_s14": vit_s14, "convnext_t": convnext_t, "smollm2_135m": smollm2_135m}


@contextmanager
def watched(adapted: Adapted) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Site -> input and output of its layer in the next forward pass."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda layer, args, out: seen.update({name: (args[0].detach(), out.detach())})

    hooks = [adapted.model.get_submodule(name).register_forward_hook(keep(name)) for name in adapted.sites]
    yield seen
    for hook in hooks:
        hook.remove()


def alone(adapted: Adapted, tensor: str, kind: str) -> Genotype:
    """Every site that has the choice plays it and nothing else."""
    configs = {}
    for name, options in adapted.space.options.items():
        choice = next((each for each in options["ABCDE".index(tensor)] if str(each) == kind), None)
        configs[name] = LayerConfig(**{tensor: choice} if choice else {})
    return Genotype(configs)


def stepped(
    subject: Subject, adapted: Adapted, seen: dict[str, tuple[Tensor, Tensor]], genotype: Genotype, *, right: bool
) -> Any:
    """The relative change of each layer's output that one step of the genotype makes, or of its right factors."""
    adapted.activate(genotype)
    start = [(p, p.detach().clone()) for p in adapted.parameters()]
    step(subject, adapted.parameters(), times=LEFT_STEPS if right else 1)
    layers = {name: adapted.model.get_submodule(name) for name in seen if set(map(str, genotype[name])) != {"none"}}
    with torch.no_grad():
        outs = {name: layer(seen[name][0]) if right else seen[name][1] for name, layer in layers.items()}
    if right:
        step(subject, [p for support in adapted.supports.values() for p in support.up.parameters()])
    changes = []
    with torch.no_grad():
        for name, layer in layers.items():
            x, plain = seen[name]
            changes.append(((layer(x) - outs[name]).square().mean() / plain.square().mean()).sqrt().item())
        for parameter, before in start:
            parameter.copy_(before)
    return np.array(changes)


def step(subject: Subject, parameters: Iterable[nn.Parameter], *, times: int = 1) -> None:
    """So many times Adam's first step of these parameters, all with the gradient of now."""
    subject.loss(subject.model).backward()
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_(times * LR * parameter.grad.sign())
    subject.model.zero_grad()


def measure(model: str, product: str, scaling: str) -> Result:
    """All choices of one model."""
    torch.manual_seed(0)
    subject = MODELS[model]()
    space = SearchSpace(ranks=(RANK,), product=product, variant="paper", scaling=scaling)
    adapted = inject(subject.model.eval(), space, targets=subject.targets, head=subject.head, seed=0)
    with watched(adapted) as seen, torch.no_grad():
        subject.loss(subject.model)
    metrics: dict[str, float | None] = {}
    for tensor, kind in CHOICES:
        genotype = alone(adapted, tensor, kind)
        if genotype == adapted.space.smallest:  # no layer has the choice
            continue
        for right in (False, True) if kind.startswith("lora") else (False,):
            changes, key = stepped(subject, adapted, seen, genotype, right=right), key_of(tensor, kind, right)
            if len(changes):
                metrics |= {f"{key}_p{q}": float(np.percentile(changes, q)) for q in (10, 50, 90)}
                metrics[f"{key}_layers"] = float(len(changes))
    config = {"product": product, "scaling": scaling, "rank": RANK, "lr": LR, "targets": subject.targets}
    return Result.stamped(
        method="glora", task="conditioning", model=model, seed=0, config=config, parameters=0, metrics=metrics
    )


def page(results: list[Result]) -> str:
    """The Markdown page of the committed results."""
    lines = ["# What one optimizer step changes", ""]
    lines += ["This page is made by `python benchmarks/conditioning.py --table`; do not edit it.", ""]
    lines += [*(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    for model, build in MODELS.items():
        mine = [each for each in results if each.model == model]
        heads = [f"{each.config['product']}, {each.config['scaling']}" for each in mine]
        lines += [f"## {model}", "", f"{(build.__doc__ or '').strip()}", ""]
        lines += [f"| choice | {' | '.join(heads)} |", f"|---|{'---:|' * len(mine)}"]
        for tensor, kind in CHOICES:
            for right in (False, True):
                key = key_of(tensor, kind, right)
                if any(f"{key}_p50" in each.metrics for each in mine):
                    name = f"{tensor} {kind}{', right' if right else ''}"
                    lines.append(f"| {name} | {' | '.join(cell(each, key) for each in mine)} |")
        lines.append("")
    return "\n".join(lines)


def key_of(tensor: str, kind: str, right: bool) -> str:
    """What a choice is called in the metrics."""
    return f"{tensor}.{kind.partition(':')[0]}" + (".right" if right else "")


def cell(result: Result, key: str) -> str:
    """The median with its spread, in thousandths."""
    if f"{key}_p50" not in result.metrics:
        return ""
    middle, low, high = (1e3 * (result.metrics[f"{key}_p{q}"] or 0) for q in (50, 10, 90))
    return f"{middle:.3g} ({low:.2g} to {high:.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/background/conditioning.md and stop")
    if parser.parse_args().table:
        PAGE.write_text(page(Result.read_all(sorted(FOLDER.glob("*.json")))), encoding="utf-8")
        return
    for model in MODELS:
        for product in PRODUCTS:
            for scaling in SCALINGS:
                path = FOLDER / f"{model}-{product}-{scaling}.json"
                if not path.is_file():
                    measure(model, product, scaling).write(path)


if __name__ == "__main__":
    main()
