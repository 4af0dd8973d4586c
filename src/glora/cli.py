"""The command line. Results go to stdout, everything said on the way to stderr; exit code 2 is a user's error."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator, Mapping
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
Option = typer.Option

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `glora fit` or `train` made.")]
Config = Annotated[Path | None, Option("--config", metavar="FILE", help="An experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Any of `glora ls settings`, such as space.ranks=[4].")
]
Data = Annotated[str | None, Option(metavar="FOLDER", help="Labelled images, or: digits, textile, fashion_mnist.")]
Model = Annotated[str | None, Option(metavar="NAME", help="dinov2_vits14 (packaged) or any timm model.")]
Out = Annotated[Path, Option(metavar="RUN", help="The run folder; an unfinished run in it is continued.")]
Budget = Annotated[str | None, Option(metavar="NUMBER", help="Most trainable numbers: 300000 or 0.3M.")]
MinBudget = Annotated[str | None, Option(metavar="NUMBER", help="Fewest trainable numbers.")]
Generations = Annotated[int | None, Option(metavar="N", help="Generations after the first.")]
Population = Annotated[int | None, Option(metavar="N", help="Genotypes per generation.")]
Targets = Annotated[
    list[str] | None,
    Option(metavar="NAME", help="Layers to adapt: linear, a regular expression, names (repeat it)."),
]
Skip = Annotated[list[str] | None, Option(metavar="NAME", help="Layers to leave out (repeat it).")]
Epochs = Annotated[int | None, Option(metavar="N", help="Passes over the training images.")]
BatchSize = Annotated[int | None, Option(metavar="N", help="Images per step.")]
Lr = Annotated[float | None, Option(metavar="RATE", help="Learning rate at its top.")]
Precision = Annotated[str | None, Option(metavar="no|bf16|fp16", help="Mixed precision.")]
ImageSize = Annotated[int | None, Option(metavar="PIXELS", help="Side of the square input.")]
Checkpoint = Annotated[Path | None, Option(metavar="FILE", help="Weights: a local .safetensors file.")]
Pretrained = Annotated[bool | None, Option("--pretrained/--no-pretrained", help="Load pretrained weights.")]
TrainSize = Annotated[int | None, Option(metavar="N", help="Training images of the seeded split.")]
ValSize = Annotated[int | None, Option(metavar="N", help="Validation images of the seeded split.")]
OnBadImage = Annotated[str | None, Option(metavar="error|skip", help="What to do with unreadable images.")]
Preset = Annotated[str | None, Option(metavar="NAME", help="paper: the method as published.")]
Seed = Annotated[int | None, Option(metavar="N", help="Of everything random.")]
AsJson = Annotated[bool, Option("--json", help="Print the result as JSON.")]

SETTINGS = {  # option -> setting
    "data": "data.source",
    "train_size": "data.train",
    "val_size": "data.val",
    "on_bad_image": "data.on_bad_image",
    "model": "model.name",
    "image_size": "model.image_size",
    "checkpoint": "model.checkpoint",
    "pretrained": "model.pretrained",
    "targets": "model.targets",
    "skip": "model.skip",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "precision": "train.precision",
    "budget": "search.budget",
    "min_budget": "search.min_budget",
    "generations": "search.generations",
    "population": "search.population",
    "preset": "preset",
    "seed": "seed",
}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given as options, by dotted name."""
    given = {SETTINGS[name]: value for name, value in options.items() if name in SETTINGS and value not in (None, [])}
    if len(given.get("model.targets", ())) == 1:  # a word or a regular expression
        given["model.targets"] = given["model.targets"][0]
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def _run(options: Mapping[str, Any], reporter: Any) -> Any:
    """The run that the options ask for; with none but --out the one in that folder."""
    from glora.config import load_experiment
    from glora.experiment import Run

    config, overrides, given = options["config"], options["overrides"] or (), _given(options)
    if not (config or overrides or given) and (options["out"] / "config.yaml").is_file():
        return Run.open(options["out"], reporter)
    experiment = load_experiment(config, overrides, given)
    return Run(experiment, options["out"], reporter)


@contextmanager
def _reporting() -> Iterator[Any]:
    logging.getLogger("glora").addHandler(logging.NullHandler())
    from glora.progress import ConsoleReporter

    with ConsoleReporter() as reporter:
        yield reporter


def _print_results(*results: Any, as_json: bool) -> None:
    from rich.console import Console

    from glora.tables import rich_table

    if as_json:
        plain = [result.to_json() for result in results]
        typer.echo(json.dumps(plain if len(plain) > 1 else plain[0]))
    else:
        Console().print(rich_table(results))


@app.command()
def fit(
    data: Data = None,
    model: Model = None,
    out: Out = Path("run"),
    budget: Budget = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
    generations: Generations = None,
    population: Population = None,
    image_size: ImageSize = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = None,
    targets: Targets = None,
    skip: Skip = None,
    train_size: TrainSize = None,
    val_size: ValSize = None,
    on_bad_image: OnBadImage = None,
    preset: Preset = None,
    seed: Seed = None,
    config: Config = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the supernet, search it on val, test once, save adapter, result and pictures.

    Example: glora fit --model dinov2_vits14 --data digits --out run --epochs 1 --generations 0
    """
    with _reporting() as reporter:
        result = _run(locals(), reporter).fit()
    _print_results(result, as_json=as_json)
    typer.echo(f"{out}: adapter.safetensors, result.json, plots/. Next: glora merge {out}", err=True)


@app.command()
def train(
    data: Data = None,
    model: Model = None,
    out: Out = Path("run"),
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
    image_size: ImageSize = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = None,
    targets: Targets = None,
    skip: Skip = None,
    train_size: TrainSize = None,
    val_size: ValSize = None,
    on_bad_image: OnBadImage = None,
    preset: Preset = None,
    seed: Seed = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Train the supernet only.

    Example: glora train --model dinov2_vits14 --data digits --out run --epochs 1
    """
    with _reporting() as reporter:
        run = _run(locals(), reporter)
        run.train()
    typer.echo(f"{out}: supernet.safetensors. Next: glora {'search' if run.searches else 'eval'} {out}", err=True)


@app.command()
def search(
    run: RunFolder,
    budget: Budget = None,
    min_budget: MinBudget = None,
    generations: Generations = None,
    population: Population = None,
) -> None:
    """Search a trained supernet on val and save the winner's adapter; an interrupted search goes on.

    The options change the run's own settings, as long as it was not searched yet.

    Example: glora search run --budget 0.3M
    """
    changes = {key.removeprefix("search."): value for key, value in _given(locals()).items()}
    with _reporting() as reporter:
        from glora.experiment import Run

        found = Run.open(run, reporter, search=changes).search()
    typer.echo(f"{run}: adapter.safetensors, {found.best.parameters:,} numbers. Next: glora eval {run}", err=True)


@app.command("eval")
def evaluate(
    run: RunFolder,
    data: Annotated[Path | None, Option(metavar="FOLDER", help="Other images of the same classes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test the winner, merged, once; later calls print that result. With --data: its accuracy on other images.

    Example: glora eval run
    """
    with _reporting() as reporter:
        from glora.runfolder import RunFolder

        if data is None and RunFolder(run).result.is_file():
            from glora.results import Result

            reporter.say("The test images were read once already; this is the result of then.")
            result: Any = Result.read(RunFolder(run).result)
        else:
            from glora.experiment import Run

            opened = Run.open(run, reporter)
            result = opened.evaluate() if data is None else opened.evaluate_on(data)
    if data is None:
        _print_results(result, as_json=as_json)
    else:
        _print_evaluation(result, data, as_json=as_json)


def _print_evaluation(found: Any, data: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.metrics("other")))
        return
    error = 100 * found.accuracy_standard_error
    typer.echo(f"accuracy {100 * found.accuracy:.1f} ± {error:.1f} % on the {len(found.losses):,} images of {data}")


@app.command()
def merge(
    run: RunFolder,
    out: Annotated[Path, Option(metavar="FILE", help="The file to write.")] = Path("merged.safetensors"),
) -> None:
    """Write the winner's plain model as safetensors: the backbone's own state-dict keys, no extra cost.

    Example: glora merge run --out merged.safetensors
    """
    with _reporting() as reporter:
        from glora.checkpoint import save_merged
        from glora.experiment import Run

        save_merged(Run.open(run, reporter).merged(), out)
    typer.echo(out)


@app.command()
def ls(
    what: Annotated[str, typer.Argument(metavar="models|methods|data|layers|searchers|settings")],
    model: Annotated[str | None, typer.Argument(metavar="[NAME]", help="For `layers`: whose.")] = None,
    image_size: ImageSize = None,
) -> None:
    """List what there is.

    Example: glora ls layers dinov2_vits14
    """
    from glora.listing import listing

    for line in listing(what, model, image_size=image_size):
        typer.echo(line)


@app.command()
def check(experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")]) -> None:
    """Tell every error of an experiment file at once; no image is read and nothing trained.

    Example: glora check experiments/digits.yaml
    """
    from glora.config import load_experiment
    from glora.listing import check_names

    check_names(load_experiment(experiment), source=str(experiment))
    typer.echo(f"{experiment}: ok", err=True)


@app.command()
def demo(
    out: Out = Path("demo"),
    quick: Annotated[bool, Option("--quick", help="A few steps only, to see that all works.")] = False,
    seed: Annotated[int, Option(metavar="N", help="Of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The main job on packaged weights and images, without a network: linear probe, LoRA, searched GLoRA.

    Example: glora demo --quick --out demo-quick
    """
    with _reporting() as reporter:
        from glora.demo import run_demo

        results = run_demo(out, reporter, quick=quick, seed=seed)
    _print_results(*results, as_json=as_json)
    typer.echo(f"Pictures: {out / 'glora' / 'plots'}", err=True)


class _Interrupted(BaseException):
    """Ctrl-C. Its own class: what typer makes of a KeyboardInterrupt depends on its version."""


def _interrupt(*_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
    raise _Interrupted


def main() -> None:
    """The entry point: a GloraError becomes one message with a TIP and exit code 2, Ctrl-C one line and 130."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except GloraError as error:
        message = " ".join(part for part in (error.cause, error.allowed) if part)
        _fail(message, error.remedy, 2)
    except OSError as error:  # a full disk, a folder that may not be written
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.", "", 1)
    except _Interrupted:
        goes_on = sys.argv[1:2] and sys.argv[1] in ("fit", "train", "search", "demo")
        typer.echo("Interrupted." + (" The same command continues the run." if goes_on else ""), err=True)
        sys.exit(130)


def _fail(message: str, tip: str, code: int) -> None:
    typer.echo(f"Error: {message}", err=True)
    if tip:
        typer.echo(f"TIP: {tip}", err=True)
    sys.exit(code)
