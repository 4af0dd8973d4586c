"""The command line. Results go to stdout, everything said on the way to stderr; exit code 2 is a user's error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from glora.errors import GloraError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Turn a pretrained model into the best model for a task: train a supernet, search, merge.",
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `glora fit` or `train` made.")]
Config = Annotated[Path | None, typer.Option("--config", help="An experiment's YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: train.lr=1e-3.")]
Model = Annotated[str | None, typer.Option(help="dinov2_vits14 (packaged) or any timm model.")]
Data = Annotated[str | None, typer.Option(help="A folder of images, or: digits, textile, fashion_mnist.")]
Out = Annotated[Path, typer.Option(help="The run folder; an unfinished one is continued.")]
Budget = Annotated[str | None, typer.Option(help="Most trainable numbers: 300000 or 0.3M.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _settings(config: Path | None, overrides: list[str] | None, flags: dict[str, Any]) -> Any:
    from glora.config import load_experiment

    given = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
    return load_experiment(config, overrides or (), {key: v for key, v in given.items() if v is not None})


@contextmanager
def _reporting(fitness: str = "loss") -> Iterator[Any]:
    from glora.progress import ConsoleReporter

    logging.getLogger("glora").addHandler(logging.NullHandler())
    with ConsoleReporter(fitness=fitness) as reporter:
        yield reporter


def _print_result(result: Any, *, as_json: bool) -> None:
    from rich.console import Console

    from glora.tables import rich_table

    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        Console().print(rich_table([result]))


@app.command()
def fit(
    data: Data = None,
    model: Model = None,
    out: Out = Path("run"),
    budget: Budget = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square input in pixels.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A local .safetensors file of weights.")] = None,
    pretrained: Annotated[bool | None, typer.Option(help="Load pretrained weights.")] = None,
    on_bad_image: Annotated[str | None, typer.Option(metavar="error|skip", help="What to do with them.")] = None,
    preset: Annotated[str | None, typer.Option(help="'paper' is the published method.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the supernet, search it on val, test once, save adapter, result and pictures.

    Example: glora fit --model dinov2_vits14 --data digits --out run --epochs 1 --set search.generations=0
    """
    from glora.experiment import Run

    flags = {
        "data.source": data,
        "model.name": model,
        "search.budget": budget,
        "train.epochs": epochs,
        "model.image_size": image_size,
        "model.checkpoint": checkpoint,
        "model.pretrained": pretrained,
        "data.on_bad_image": on_bad_image,
        "preset": preset,
        "seed": seed,
    }
    experiment = _settings(config, overrides, flags)
    with _reporting(experiment.search.fitness) as reporter:
        result = Run(experiment, out, reporter).fit()
    _print_result(result, as_json=as_json)
    typer.echo(f"{out}: adapter.safetensors, result.json, plots/", err=True)


@app.command()
def train(
    data: Data = None,
    model: Model = None,
    out: Out = Path("run"),
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Train the supernet only.

    Example: glora train --model dinov2_vits14 --data digits --out run --set train.epochs=1
    """
    from glora.experiment import Run

    experiment = _settings(config, overrides, {"data.source": data, "model.name": model})
    with _reporting() as reporter:
        Run(experiment, out, reporter).train()
    typer.echo(f"{out}: supernet.safetensors. Next: glora search {out}", err=True)


@app.command()
def search(run: RunFolder) -> None:
    """Search a trained supernet on val and save the winner's adapter; an interrupted search goes on.

    Example: glora search run
    """
    from glora.experiment import Run

    with _reporting() as reporter:
        opened = Run.open(run, reporter)
        opened.train()
        found = opened.search()
    typer.echo(f"{run}: adapter.safetensors, {found.best.parameters:,} numbers. Next: glora eval {run}", err=True)


@app.command("eval")
def evaluate(run: RunFolder, as_json: AsJson = False) -> None:
    """Test the winner, merged, once; later calls print that result.

    Example: glora eval run
    """
    from glora.experiment import Run

    with _reporting() as reporter:
        result = Run.open(run, reporter).evaluate()
    _print_result(result, as_json=as_json)


@app.command()
def merge(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The safetensors file of the plain model.")] = Path("merged.safetensors"),
) -> None:
    """Write the winner's plain model: the backbone's own state-dict keys, no extra cost.

    Example: glora merge run --out merged.safetensors
    """
    from glora.checkpoint import save_merged
    from glora.experiment import Run

    with _reporting() as reporter:
        save_merged(Run.open(run, reporter).merged(), out)
    typer.echo(out)


@app.command()
def ls(
    what: Annotated[str, typer.Argument(metavar="models|methods|data|layers|searchers")],
    model: Annotated[str | None, typer.Argument(help="For `layers`: whose.")] = None,
) -> None:
    """List what there is.

    Example: glora ls layers dinov2_vits14
    """
    from glora.listing import listing

    for line in listing(what, model):
        typer.echo(line)


@app.command()
def check(experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")]) -> None:
    """Tell every error of an experiment file at once.

    Example: glora check experiments/digits.yaml
    """
    from glora.config import load_experiment

    load_experiment(experiment)
    typer.echo(f"{experiment}: ok", err=True)


@app.command()
def demo(
    out: Out = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only, to see that all works.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The main job on packaged weights and images, without a network: linear probe, LoRA, searched GLoRA.

    Example: glora demo --quick --out demo-quick
    """
    from rich.console import Console

    from glora.demo import run_demo
    from glora.tables import rich_table

    with _reporting() as reporter:
        results = run_demo(out, reporter, quick=quick, seed=seed)
    if as_json:
        typer.echo(json.dumps([result.to_json() for result in results]))
    else:
        Console().print(rich_table(results))
    typer.echo(f"Pictures: {out / 'glora' / 'plots'}", err=True)


def main() -> None:
    """The entry point: GloraError becomes one message with a TIP and exit code 2."""
    try:
        app()
    except GloraError as error:
        message = " ".join(part for part in (error.cause, error.allowed) if part)
        typer.echo(f"Error: {message}", err=True)
        if error.remedy:
            typer.echo(f"TIP: {error.remedy}", err=True)
        sys.exit(2)
