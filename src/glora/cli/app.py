"""The command line. Results go to stdout, everything said on the way to stderr; exit code 2 is a user's error."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from glora.cli.options import (
    AsJson,
    BatchSize,
    Budget,
    Checkpoint,
    Config,
    Control,
    Data,
    Epochs,
    Generations,
    ImageSize,
    Lr,
    MinBudget,
    Model,
    OnBadImage,
    Out,
    Overrides,
    Population,
    Precision,
    Preset,
    Pretrained,
    RunFolder,
    Seed,
    Show,
    Skip,
    Targets,
    TrainSize,
    ValSize,
    Workers,
    given,
)
from glora.cli.terminal import print_evaluation, print_results, reporting, search_or_pick, search_settings, show
from glora.errors import GloraError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Turn a pretrained model into the best model for a task: train a supernet, search, merge.",
)


def _run(options: Mapping[str, Any], reporter: Any) -> Any:
    """The run that the options ask for; with none but --out the one in that folder."""
    from glora.config import load_experiment
    from glora.runs.run import Run

    config, overrides, values = options["config"], options["overrides"] or (), given(options)
    if not (config or overrides or values) and (options["out"] / "config.yaml").is_file():
        return Run.open(options["out"], reporter)
    return Run(load_experiment(config, overrides, values), options["out"], reporter)


@app.command()
def fit(
    data: Data = None,
    model: Model = None,
    out: Out = Path("run"),
    budget: Budget = None,
    min_budget: MinBudget = None,
    epochs: Epochs = None,
    lr: Lr = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
    generations: Generations = None,
    population: Population = None,
    workers: Workers = None,
    image_size: ImageSize = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = None,
    targets: Targets = None,
    skip: Skip = None,
    train_size: TrainSize = None,
    val_size: ValSize = None,
    on_bad_image: OnBadImage = None,
    control: Control = None,
    preset: Preset = None,
    seed: Seed = None,
    config: Config = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the supernet, search it on val, test once, save adapter, result and pictures.

    Example: glora fit --model dinov2_vits14 --data digits --out run --epochs 1 --generations 0
    """
    with reporting() as reporter:
        result = _run(locals(), reporter).fit()
    if result is None:  # of several processes the main one tells
        return
    print_results(result, as_json=as_json)
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
    with reporting() as reporter:
        (run := _run(locals(), reporter)).train()
    typer.echo(f"{out}: supernet.safetensors. Next: glora {'search' if run.searches else 'eval'} {out}", err=True)


@app.command()
def search(
    run: RunFolder,
    budget: Budget = None,
    min_budget: MinBudget = None,
    generations: Generations = None,
    population: Population = None,
    workers: Workers = None,
    control: Control = None,
    overrides: Overrides = None,
    show_it: Show = False,
    as_json: AsJson = False,
) -> None:
    """Search a trained supernet on val and save the winner's adapter; an interrupted search goes on.

    The options change the run's own settings, as long as it was not searched yet; what comes after the search, such as
    --set search.polish=5, as long as it was not tested. Of a finished search --budget picks
    the best genotype that it has scored, of any size where it was searched with
    search.searcher=nsga2; without it the run's own winner is back.

    Example: glora search run --budget 0.3M
    """
    changes = search_settings(given(locals()), overrides or ())
    if changes or not show_it:
        with reporting() as reporter:
            found = search_or_pick(run, changes, reporter)
        typer.echo(f"{run}: adapter.safetensors, {found.parameters:,} numbers. Next: glora eval {run}", err=True)
    if show_it or as_json:
        show(run, as_json=as_json)


@app.command("eval")
def evaluate(
    run: RunFolder,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Other images of the same classes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test the winner, merged, once; later calls print that result. With --data: its accuracy on other images.

    Example: glora eval run
    """
    with reporting() as reporter:
        from glora.runs.folder import RunFolder
        from glora.runs.loaded import load_run
        from glora.runs.run import Run

        result: Any = RunFolder(run).current_result() if data is None else None
        if result:
            reporter.say("The test examples were read once already; this is the result of then.")
        elif data is None:
            result = Run.open(run, reporter).evaluate()
        else:
            result, notes = load_run(run).evaluate_on(data)
            for note in notes:
                reporter.say(note)
    if data is None:
        print_results(result, as_json=as_json)
    else:
        print_evaluation(result, data, as_json=as_json)


@app.command()
def merge(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")] = Path("merged.safetensors"),
) -> None:
    """Write the winner's plain model as safetensors: the backbone's own state-dict keys, no extra cost.

    Example: glora merge run --out merged.safetensors
    """
    with reporting() as reporter:
        from glora.runs.loaded import load_run

        reporter.say(load_run(run).save(out))
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
    from glora.cli.listing import listing

    for line in listing(what, model, image_size=image_size):
        typer.echo(line)


@app.command()
def check(experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")]) -> None:
    """Tell every error of an experiment file at once; no image is read and nothing trained.

    Example: glora check experiments/digits.yaml
    """
    from glora.cli import listing

    listing.check(experiment)
    typer.echo(f"{experiment}: ok", err=True)


@app.command()
def table(
    results: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders or result.json files.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs in one table, from their results alone.

    Example: glora table demo/linear demo/lora demo/glora
    """
    from glora.report.result import Result
    from glora.report.tables import markdown

    found = Result.read_all(path / "result.json" if path.is_dir() else path for path in results)
    if as_markdown:
        typer.echo(markdown(found))
    else:
        print_results(*found, as_json=as_json)


@app.command()
def demo(
    out: Out = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only, to see that all works.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The main job on packaged weights and images, without a network: linear probe, LoRA, searched GLoRA.

    Example: glora demo --quick --out demo-quick
    """
    with reporting() as reporter:
        from glora.runs.demo import run_demo, verdict

        results = run_demo(out, reporter, quick=quick, seed=seed)
    print_results(*results, as_json=as_json)
    typer.echo(verdict(results), err=True)
    typer.echo(f"Pictures: {out / 'glora' / 'plots'}", err=True)


class _Interrupted(BaseException):
    """Ctrl-C. Its own class: what typer makes of a KeyboardInterrupt depends on its version."""

    came = False


def _interrupt(*_: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
    _Interrupted.came = True
    raise _Interrupted


def main() -> None:
    """The entry point: a GloraError becomes one message with a TIP and exit code 2, Ctrl-C one line and 130."""
    before, _Interrupted.came = signal.getsignal(signal.SIGINT), False
    if before is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except BaseException as error:
        if _Interrupted.came:  # whatever it became on its way: an import cut short can raise anything
            goes_on = sys.argv[1:2] and sys.argv[1] in ("fit", "train", "search", "demo")
            typer.echo("Interrupted." + (" The same command continues the run." if goes_on else ""), err=True)
            sys.exit(130)
        if isinstance(error, GloraError):
            _fail(" ".join(part for part in (error.cause, error.allowed) if part), error.remedy, 2)
        if isinstance(error, OSError):  # a full disk, a folder that may not be written
            _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.", "", 1)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(message: str, tip: str, code: int) -> NoReturn:
    typer.echo(f"Error: {message}" + (f"\nTIP: {tip}" if tip else ""), err=True)
    sys.exit(code)
