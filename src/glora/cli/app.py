"""The command line. Results go to stdout, everything said on the way to stderr; exit code 2 is a user's error.

All heavy imports wait until they are needed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from glora.cli.options import Command, given, takes
from glora.errors import GloraError, RunError

__all__ = ["app", "main", "search_or_pick"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Turn a pretrained model into the best model for a task: train a supernet, search, merge.",
)


def _expanded(path: Path) -> Path:
    """`~/run` as the shell would have it: bash leaves it alone in `--out=~/run`."""
    return path.expanduser()


Out = Annotated[
    Path,
    typer.Option(metavar="RUN", help="The run folder; an unfinished run in it is continued.", callback=_expanded),
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder that `glora fit` or `train` made.", callback=_expanded)
]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="An experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any of `glora ls settings`, such as method.rank=4."),
]
Log = Annotated[
    list[str] | None,
    typer.Option("--log", metavar="NAME", help="Where curves are shown too: tensorboard, trackio, wandb (repeat it)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def _reporting(run: Path | None = None, log: Sequence[str] | None = None) -> Iterator[Any]:
    """A reporter on stderr for the time of a command; with loggers for the run in that folder."""
    from glora.runs.console import ConsoleReporter, telling

    with ConsoleReporter() as reporter:
        if run is None or not log:
            with telling(reporter.say):
                yield reporter
            return
        from glora.runs.logged import logging_to

        with logging_to(log, run, reporter) as logged, telling(logged.say):
            yield logged


def _run(
    out: Path, config: Path | None, overrides: Sequence[str] | None, options: Mapping[str, Any], reporter: Any
) -> Any:
    """The run that the options ask for; with none but --out the one in that folder."""
    from glora.config import load_experiment
    from glora.runs.run import Run

    values = given(options)
    if not (config or overrides or values) and (out / "config.yaml").is_file():
        run = Run.open(out, reporter)
        run.reporter.say(
            f"{out} holds a run: it goes on with its own settings. Another one begins under another --out."
        )
        return run
    return Run(load_experiment(config, overrides or (), values), out, reporter)


@app.command(cls=Command)
@takes()
def fit(
    out: Out = Path("run"),
    config: Config = None,
    overrides: Overrides = None,
    log: Log = None,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train, search on val, test once, and save adapter, result and pictures.

    Example: glora fit --model dinov2_vits14 --data digits --out run --epochs 1 --generations 0
    """
    with _reporting(out, log) as reporter:
        run = _run(out, config, overrides, settings, reporter)
        result = run.fit()
    if result is None:  # not the main process
        return
    _print_results(result, as_json=as_json)
    pictures = ", plots/" if (out / "plots").is_dir() else ""
    after = f"glora predict {out} FILES" if run.tuned.no_merge else f"glora merge {out}"
    typer.echo(f"{out}: adapter.safetensors, result.json{pictures}. Next: {after}", err=True)


@app.command(cls=Command)
@takes(search=False)
def train(
    out: Out = Path("run"),
    config: Config = None,
    overrides: Overrides = None,
    log: Log = None,
    **settings: Any,
) -> None:
    """Train only: the supernet, or the baseline.

    Example: glora train --model dinov2_vits14 --data digits --out run --epochs 1
    """
    with _reporting(out, log) as reporter:
        (run := _run(out, config, overrides, settings, reporter)).train()
    if run.alone:
        file, verb = ("supernet", "search") if run.searches else ("adapter", "eval")
        typer.echo(f"{out}: {file}.safetensors. Next: glora {verb} {out}", err=True)


@app.command(cls=Command)
@takes(search=True)
def search(
    run: RunPath,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of the search, such as search.polish=5."),
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="The generation under way is the last: take the best of what is scored.")
    ] = False,
    show_it: Annotated[
        bool, typer.Option("--show", help="Print the winner site by site; alone it searches nothing.")
    ] = False,
    log: Log = None,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Search a trained supernet on val and save the winner's adapter; an interrupted search goes on.

    The options change the run's own settings as long as it was not searched yet; what comes after the search, such as
    --set search.polish=5, as long as it was not tested. Of a finished search --budget picks
    the best genotype that it has scored, of any size where it was searched with
    search.searcher=nsga2; without it the run's own winner is back.

    Example: glora search run --budget 0.3M
    """
    changes = _search_settings(given(settings), overrides or ())
    if stop:
        from glora.runs.folder import RunFolder
        from glora.settings import merged

        changes = merged(changes, {"searcher": {"generations": RunFolder(run).generations_begun}})
    if changes or not show_it:
        with _reporting(run, log) as reporter:
            found = search_or_pick(run, changes, reporter)
        if found is None:  # not the main process
            return
        typer.echo(f"{run}: adapter.safetensors, {found.parameters:,} numbers. Next: glora eval {run}", err=True)
    if show_it or as_json:
        _show(run, as_json=as_json)


def _search_settings(options: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the search that options and `--set` change, nested as below `search:`.

    Raises:
        ConfigError: An override is none, or of another group.
    """
    from glora.errors import ConfigError
    from glora.settings import parse_value, put

    data: dict[str, Any] = {"search": {}}
    values = dict(options)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.startswith("search."):
            raise ConfigError(
                f"{override!r} is no setting of the search.",
                remedy="Give search.NAME=VALUE; everything else was settled when the run was trained.",
            )
        values[key] = parse_value(text)
    if problems := [problem for key, value in values.items() for problem in put(data, key, value)]:
        raise ConfigError(" ".join(problems))
    found: dict[str, Any] = data["search"]
    return found


def search_or_pick(run: Path, changes: Mapping[str, Any], reporter: Any) -> Any:
    """Searches a run, or picks from a finished search when the budget is another; what comes after is for the picked.

    Args:
        run: The run folder.
        changes: Settings of the search to change, nested as below `search:`.
        reporter: Where to tell what is going on.

    Returns:
        The winner; None on all but the main process.
    """
    from glora.runs.folder import RunFolder
    from glora.runs.run import Run, changed_search

    folder = RunFolder(run)
    experiment = folder.experiment()
    wanted = experiment.with_(search=changed_search(experiment, changes)).search
    own = experiment.search
    another = (wanted.budget, wanted.min_budget) != (own.budget, own.min_budget)
    if folder.done("searched") is None or not another:
        return Run.open(run, reporter, search=changes).search()
    rest = {name: value for name, value in changes.items() if name not in ("budget", "min_budget")}
    opened = Run.open(run, reporter, search=rest)
    return opened.pick(budget=wanted.budget, min_budget=wanted.min_budget) if opened.alone else None


def _show(run: Path, *, as_json: bool) -> None:
    """The winner site by site, what it was compared with, and that in words.

    Raises:
        RunError: The run has no finished search.
    """
    from rich.console import Console

    from glora.report.outcome import Outcome
    from glora.report.tables import winner_table
    from glora.runs.folder import RunFolder

    folder = RunFolder(run)
    folder.experiment()  # tells when there is no run
    folder.need(folder.winner, f"glora search {run}")
    folder.key()  # tells when a stop has left two winners
    outcome = Outcome.read(folder.winner)
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))
        return
    console = Console()
    console.print(winner_table(outcome))
    if outcome.rows:
        _print_comparison(console, outcome)
    else:
        for line in outcome.verdict:
            console.print(line, markup=False, highlight=False)


@app.command("eval")
def evaluate(
    run: RunPath,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Other examples with the same classes, labels or columns.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Tasks of lm-evaluation-harness, or YAML files of such: openllm,mine.yaml"),
    ] = None,
    tasks_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --tasks: your own tasks, and data sets as the hub has them."),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="With --tasks: another run of the same base (repeat it)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --tasks: the first N questions of each.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="With --tasks: requests per forward pass.")] = 8,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --data: a setting of the data, on_bad_row=skip."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test the winner, merged, once; later calls print that result. With --data: how good it is on other examples.

    With --tasks: base, other runs and winner of a language model in lm-evaluation-harness, with the same settings.

    Example: glora eval run
    """
    if tasks is not None:
        _evaluate_tasks(run, tasks, tasks_dir, others or [], limit, batch_size, as_json=as_json)
        return
    if given_with := [
        name for name, value in (("--tasks-dir", tasks_dir), ("--with", others), ("--limit", limit)) if value
    ]:
        raise typer.BadParameter(f"{given_with[0]} is for --tasks")
    if overrides and data is None:
        raise typer.BadParameter("--set is for --data")
    if data is not None:
        _evaluate_on(run, data, overrides or (), as_json=as_json)
    else:
        _evaluate_once(run, as_json=as_json)


def _evaluate_once(run: Path, *, as_json: bool) -> None:
    """The result on test, made now or before."""
    with _reporting() as reporter:
        from glora.runs.folder import RunFolder
        from glora.runs.run import Run
        from glora.training.device import new_accelerator

        folder = RunFolder(run)
        result: Any = folder.current_result()
        if result is None:
            result = Run.open(run, reporter).evaluate()
        elif new_accelerator(folder.precision).is_main_process:
            reporter.say("The test examples were read once already; this is the result of then.")
        else:
            result = None
    if result is not None:
        _print_results(result, as_json=as_json)


def _evaluate_tasks(
    run: Path, tasks: str, folder: Path | None, others: list[Path], limit: int | None, size: int, *, as_json: bool
) -> None:
    """What lm-evaluation-harness measures, as a table or as JSON."""
    with _reporting() as reporter:
        from glora.cli.paper import print_table
        from glora.runs.lm_eval import Asked, evaluate_run

        names = tuple(filter(None, map(str.strip, tasks.split(","))))
        if not names:
            raise typer.BadParameter("--tasks names no task")
        others = [other.expanduser() for other in others]
        found = evaluate_run(run, Asked(names, folder, limit, size), reporter, others=others)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        print_table("language", [str(run)], "text")


def _evaluate_on(run: Path, data: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    with _reporting() as reporter:
        from glora.cli.samples import settings_of
        from glora.report.metrics import MetricInfo
        from glora.runs.loaded import load_run

        found, notes = load_run(run).evaluate_on(data, settings_of(overrides))
        for note in notes:
            reporter.say(note)
    if as_json:
        typer.echo(json.dumps(found.metrics("other")))
        return
    name = found.objective.metrics[0].name
    metric = MetricInfo(**found.objective.metrics[0].to_json())
    shown = metric.quantity(found.value(name), found.standard_error(name))
    typer.echo(f"{name} {shown} on the {len(found):,} examples of {data}")


@app.command()
def predict(
    run: RunPath,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES", help="Images, or folders of them. Of a model of texts: texts, or files of such."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with all probabilities.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a header and a line per image, for a table.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Examples per forward pass; the run's if not given.")
    ] = None,
    on_bad_image: Annotated[
        str,
        typer.Option("--on-bad-image", "--on-bad-row", metavar="error|skip", help="What to do with unreadable ones."),
    ] = "error",
    max_tokens: Annotated[
        int, typer.Option(metavar="N", min=0, help="Most tokens of a language model's answer; 0: none.")
    ] = 128,
) -> None:
    """Print what the winner predicts for new images or texts: classes with probabilities, labels, values, or answers.

    Example: glora predict run photos/ new.jpg --json
    """
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    with _reporting() as reporter:
        from glora.cli import predictions, text_predictions
        from glora.runs.loaded import load_run

        loaded = load_run(run)
        read = text_predictions.read_for(loaded, max_tokens) if loaded.reads_texts else predictions.named
        given = read(files, on_bad_image)
        for note in given.notes:
            reporter.say(note)
        records = loaded.predict(given.items, batch_size=batch_size, max_tokens=max_tokens)
    if as_json or as_csv:
        typer.echo((predictions.as_json if as_json else predictions.as_csv)(given.called, records, given.what))
        return
    lines = text_predictions.as_lines if loaded.reads_texts else predictions.as_lines
    for line in lines(given.called, records):
        typer.echo(line)


@app.command()
def merge(
    run: RunPath,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The file to write, merged.safetensors if not given; of a model of transformers a folder, merged.",
        ),
    ] = None,
) -> None:
    """Write the winner's plain model: the backbone's own state-dict keys, no extra cost.

    Of a model of transformers it is a folder with configuration, weights and tokenizer, which from_pretrained
    loads; a name that ends in .safetensors is a file with the weights alone.

    Example: glora merge run --out merged.safetensors
    """
    with _reporting() as reporter:
        from glora.runs.loaded import load_run

        loaded = load_run(run)
        path = _expanded(out or Path("merged" if loaded.saves_folder else "merged.safetensors"))
        for line in loaded.save(path).splitlines():
            reporter.say(line)
    typer.echo(path)


@app.command()
def soup(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs of one base and one task.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="What to write: soup.safetensors, or soup, a folder, if not given."),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="merged|adapter", help="The plain model, as `merge` writes it, or an adapter file.")
    ] = "merged",
    best: Annotated[
        int | None, typer.Option(metavar="K", min=2, help="Of one run: the K best genotypes of its search, on val.")
    ] = None,
) -> None:
    """Write one plain model of several: the base and the mean of what they change, heads averaged too.

    Example: glora soup seed0 seed1 seed2 --out soup.safetensors
    """
    if to not in ("merged", "adapter"):
        raise typer.BadParameter(f"--to {to}: choose merged or adapter")
    with _reporting() as reporter:
        from glora.runs.soup import soup as cook

        made = cook([_expanded(run) for run in runs], reporter, best=best)
        folder = made.loaded.saves_folder and to == "merged"
        path = _expanded(out or Path("soup" if folder else "soup.safetensors"))
        for line in (made.save_adapter(path) if to == "adapter" else made.save(path)).splitlines():
            reporter.say(line)
    typer.echo(path)


@app.command()
def chat(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run, a folder that `glora merge` wrote, or any base.")
    ],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this alone; without it, what is typed, line by line.")
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system message: what comes before all.")] = "",
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[
        float, typer.Option(metavar="X", min=0, help="0: the likeliest tokens; more: drawn, the more freely.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn.")] = 0,
) -> None:
    """Talk with the merged language model: it answers as it was trained, by its chat template or Alpaca's prompt.

    Ctrl-C stops an answer, /reset forgets what was said, /exit or Ctrl-D leaves.

    Example: glora chat run --prompt "What is water?"
    """
    with _reporting():
        from glora.cli.chat import one_answer, talk
        from glora.runs.chat import Reply
        from glora.runs.open_chat import open_chat

        reply = Reply(max_tokens, temperature, seed)
        found = open_chat(run, system=system, reply=reply)
    if prompt is None:
        talk(found)
    else:
        one_answer(found, prompt)


@app.command()
def export(
    run: RunPath,
    to: Annotated[str, typer.Option(metavar="NAME", help="The format: `glora ls exports`.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write.", callback=_expanded)],
    rank: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="For peft and vllm: the largest rank of a layer.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="For peft and vllm: what may be lost of a layer's change."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of the format.")
    ] = None,
) -> None:
    """Write the winner in the format of another library, as a folder with a model card.

    Example: glora export run --to huggingface --out digits-model
    """
    from glora.cli.exporting import export_run

    with _reporting() as reporter:
        export_run(run, to, out, {"rank": rank, "max_error": max_error}, overrides or (), reporter)
    typer.echo(out)


@app.command()
def ls(
    what: Annotated[
        str, typer.Argument(metavar="models|methods|objectives|data|layers|searchers|exports|loggers|settings|runs")
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="For `layers` and `settings`: whose; for `runs`: the folder that they are in, this one if not given; "
            "for the others: a part of the name.",
        ),
    ] = None,
    image_size: Annotated[int | None, typer.Option(metavar="PIXELS", help="For `layers`: the input's side.")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="KEY", help="For `runs`: by a column or setting; -KEY from the largest down.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="KEY=VALUE", help="For `runs`: a column or setting (repeat it)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For `runs`: print JSON, with all settings.")] = False,
) -> None:
    """List what there is; or the runs in a folder: how far they are and how good.

    Example: glora ls layers dinov2_vits14
    """
    if what == "runs":
        from glora.cli.reporting import list_runs

        list_runs(Path(name or ".").expanduser(), sort, filters or (), as_json=as_json)
        return
    if sort or filters or as_json:
        raise typer.BadParameter("--sort, --filter and --json are for `glora ls runs`")
    from glora.cli.listing import listing

    for line in listing(what, name, image_size=image_size):
        typer.echo(line)


@app.command()
def data(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Packaged data sets, folders, tables, files of texts.")
    ],
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help="What is learned: `glora ls objectives`; the data's usual one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of texts: count the tokens of this model, and mark the learned.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the data: on_bad_row=skip.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw some training images of each: .png, .svg or .pdf.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="Pictures of each, 8; or rows of texts, 1.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the split, and of which examples are shown.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tell what is in data: examples by split and class, and some of them: a picture; texts, the learned part marked.

    Example: glora data digits dsprites_ori --picture samples.png
    """
    from glora.cli import samples, texts

    tasks = [samples.task_of(source, objective, overrides or (), model=model, seed=seed) for source in sources]
    if picture is not None:
        from glora.report.plots import samples_plot

        samples_plot([samples.samples(task, number or 8, seed=seed) for task in tasks], picture)
    if as_json:
        typer.echo(json.dumps([texts.with_lengths(samples.counts(task), task) for task in tasks]))
        return
    for task in tasks:
        for line in (*samples.lines(task), *texts.lines(task)):
            typer.echo(line)
        for line in texts.rows(task, number or 1, seed=seed, mark=_learned):
            typer.echo(line)


def _learned(text: str) -> str:
    """Text that is learned: green in a terminal, else in brackets."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return f"[[{text}]]"
    return "\n".join(typer.style(line, fg="green", bold=True) for line in text.split("\n"))


@app.command()
def check(experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")]) -> None:
    """Tell every error of an experiment's or a benchmark's file at once; no image is read and nothing trained.

    Example: glora check experiments/digits.yaml
    """
    from glora.cli import listing

    typer.echo(f"{experiment}: {listing.check(experiment)}", err=True)


@app.command()
def table(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME] RUN...",
            help="Run folders, result files, or folders of either; before them vtab, fewshot, generalization or "
            "inference for the paper's table with its printed rows, or tasks for a table of each task with differences "
            "in pairs, or language for what eval --tasks has measured. Or params, and vit_b or swin_b.",
        ),
    ],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV; of the paper's tables only.")] = False,
    as_latex: Annotated[
        bool, typer.Option("--latex", help="Print LaTeX for booktabs; of the paper's tables only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs in one table, from their results alone.

    Example: glora table vtab results/ --markdown
    """
    form = _one_of(markdown=as_markdown, csv=as_csv, latex=as_latex, json=as_json)
    from glora.cli.paper import check_word, is_table, print_table

    check_word(words[0])
    if is_table(words[0]):
        print_table(words[0], words[1:], form)
        return
    if form in ("csv", "latex"):
        raise typer.BadParameter(f"--{form} is for the paper's tables, such as: glora table vtab RUNS --{form}")
    from glora.report.folders import read_results
    from glora.report.tables import markdown

    found = read_results(words)
    if as_markdown:
        typer.echo(markdown(found))
    else:
        _print_results(*found, as_json=as_json)


def _one_of(**forms: bool) -> str:
    """The name of the form that was asked for; `text` for none.

    Raises:
        BadParameter: Several were.
    """
    asked = [name for name, wanted in forms.items() if wanted]
    if len(asked) > 1:
        raise typer.BadParameter(f"choose one of {' and '.join(f'--{name}' for name in asked)}")
    return asked[0] if asked else "text"


@app.command()
def plot(
    name: Annotated[str, typer.Argument(metavar="fewshot|layers|parameters|search|features")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Run folders; for fewshot also result files, or folders of either."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The figure: .svg, .png or .pdf; its numbers are beside it as JSON.")
    ] = Path("figure.svg"),
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="For features: most test images of a run.")] = 500,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn at random.")] = 0,
) -> None:
    """Draw one of the paper's figures of finished runs.

    fewshot is Figure 2, parameters Figure 3, layers Figure 4, features Figure 5 (t-SNE of what comes into the head);
    search shows every genotype of a search, or the fronts of several.

    Example: glora plot layers run --out layers.svg
    """
    from glora.cli.figures import draw

    draw(name, runs or [], out.expanduser(), limit=limit, seed=seed)
    typer.echo(out)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, finished or not; also result files.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page, one .html file.", callback=_expanded)] = Path(
        "report.html"
    ),
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Pictures or texts of the test examples that are most wrong.")
    ] = True,
) -> None:
    """Write one page of what runs asked, found and cost, which reads offline, on paper and on a phone.

    It is made from the run folders alone. Of several runs the first table compares them, with differences in pairs.

    Example: glora report run --out report.html
    """
    from glora.cli import reporting

    reporting.report([run.expanduser() for run in runs], out, images=images)
    typer.echo(out)


@app.command()
def log(
    run: RunPath,
    to: Annotated[list[str], typer.Option("--to", metavar="NAME", help="tensorboard, trackio or wandb (repeat it).")],
) -> None:
    """Hand the curves of a run, finished or not, to a logger; `--log NAME` of other commands does it as they work.

    Example: glora log run --to tensorboard
    """
    from glora.report.loggers import Feed
    from glora.report.page import read_run

    read_run(run)  # tells when there is none
    feed = Feed(run, to)
    for line in feed.close():
        raise RunError(line)
    typer.echo(f"{run}: logged to {', '.join(to)}", err=True)


@app.command()
def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, training or not.")],
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 for any that is free.")] = 8642,
    refresh: Annotated[int, typer.Option(metavar="SECONDS", min=1, help="How often a browser asks again.")] = 10,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Pictures or texts of the test examples that are most wrong.")
    ] = True,
) -> None:
    """Show the page of `glora report` live while runs train, to this machine alone, until Ctrl-C.

    Example: glora watch run
    """
    from glora.cli.watching import server

    with server([run.expanduser() for run in runs], port=port, refresh=refresh, images=images) as served:
        typer.echo(f"http://127.0.0.1:{served.server_address[1]}/")
        served.serve_forever()


@app.command()
def bench(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="A benchmark's file.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The benchmark's folder; results/NAME if not given."),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes that do cells, a thread each; 0: this one.")
    ] = 0,
    cluster: Annotated[
        str | None, typer.Option(metavar="ray", help="Where the workers are; not given: on this machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run methods x tasks x seeds, each cell one run and one Result; what is finished is never run again.

    An interrupted benchmark goes on with the same command, and cells that failed are tried again. The exit code is 1
    when a cell has failed. Started by torchrun, the processes share the cells.

    Example: glora bench experiments/offline.yaml --workers 2
    """
    from glora.runs.benchmark.bench import run_benchmark
    from glora.runs.benchmark.view import BenchmarkView
    from glora.runs.benchmark.work import Work
    from glora.runs.console import telling
    from glora.runs.together import apart
    from glora.searchers.ranks import serve

    with apart() as link:
        if link.rank:
            serve(link, Work().build)
            return
        with BenchmarkView() as view, telling(view.tell):
            found = run_benchmark(experiment, out, workers=workers, cluster=cluster, view=view, link=link)
    if as_json:
        from glora.report.result import Result

        typer.echo(json.dumps([result.to_json() for result in Result.read_all(found.results)]))
    if found.results:
        folder = found.results[0].parents[1]
        typer.echo(f"{len(found.results)} cells are finished. Next: glora table {folder}", err=True)
    if found.failed:
        typer.echo(f"{len(found.failed)} cells have failed; the same command tries them again.", err=True)
        raise typer.Exit(1)


@app.command()
def demo(
    what: Annotated[str, typer.Argument(metavar="[images|language]", help="Which demo.")] = "images",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="The demo's folder, demo or demo-language if not given; an unfinished one is continued."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only, to see that all works.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The main job on packaged weights and data, without a network: images, or a language model.

    images compares a linear probe, LoRA and the searched GLoRA; language the model as it is, LoRA and the searched
    GLoRA on what words mean, and shows three answers before and after.

    Example: glora demo --quick --out demo-quick
    """
    from glora.cli.demos import DEMOS
    from glora.registry import lookup

    show = lookup(DEMOS, what, kind="demo")
    folder = (out or Path("demo" if what == "images" else f"demo-{what}")).expanduser()
    with _reporting() as reporter:
        results, told, shown = show(folder, reporter, quick=quick, seed=seed)
    _print_results(*results, as_json=as_json)
    if shown is not None and not as_json:
        from rich.console import Console

        Console().print(shown)
    for line in told:
        typer.echo(line, err=True)


def _print_results(*results: Any, as_json: bool) -> None:
    """One table of the results, or JSON; of a single search also what its winner was compared with."""
    from rich.console import Console

    from glora.report.tables import rich_table

    if as_json:
        plain = [result.to_json() for result in results]
        typer.echo(json.dumps(plain if len(plain) > 1 else plain[0]))
        return
    console = Console()
    console.print(rich_table(results))
    if len(results) == 1 and results[0].controls:
        _print_comparison(console, results[0])


def _print_comparison(console: Any, found: Any) -> None:
    """The winner and its controls, of a result or an outcome, as a table and in words."""
    from glora.report.tables import comparison_table

    console.print()
    console.print(comparison_table(found.rows, found.metrics_info))
    for line in found.verdict:
        console.print(line, markup=False, highlight=False)


class _Interrupted(BaseException):
    """Ctrl-C, or SIGTERM. Its own class: what typer makes of a KeyboardInterrupt depends on its version."""

    came = 0  # the signal that did
    process = 0  # whose command it is: what that has forked ends at once


def _interrupt(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    if os.getpid() != _Interrupted.process:
        os.kill(os.getpid(), number)
        return
    _Interrupted.came = number
    raise _Interrupted


def _never_dropped(lost: Any) -> None:
    """The signal comes again when it came where Python drops what is raised: in a weakref's callback, in `__del__`."""
    if lost.exc_type is not _Interrupted:
        sys.__unraisablehook__(lost)
        return
    signal.signal(_Interrupted.came, _interrupt)
    threading.Timer(0.05, os.kill, (os.getpid(), _Interrupted.came)).start()


_GOES_ON = {
    **dict.fromkeys(("fit", "train", "search", "demo"), " The same command continues the run."),
    "bench": " What is finished stays; the same command goes on.",
}


def main() -> None:
    """The entry point: a GloraError becomes one message with a TIP and exit code 2, a signal one line.

    Ctrl-C ends with 130, SIGTERM with 143.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: usual for number, usual in defaults.items() if signal.getsignal(number) == usual}
    hook, _Interrupted.came, _Interrupted.process = sys.unraisablehook, 0, os.getpid()
    for number in before:  # not those that a shell has ignored
        signal.signal(number, _interrupt)
        sys.unraisablehook = _never_dropped
    _any_console()
    try:
        app()
    except BaseException as error:
        if _Interrupted.came:  # whatever it became on its way: an import cut short can raise anything
            said = "Interrupted." if _Interrupted.came == signal.SIGINT else "Terminated."
            typer.echo(f"{said}{_GOES_ON.get(''.join(sys.argv[1:2]), '')}", err=True)
            sys.exit(128 + _Interrupted.came)
        if isinstance(error, GloraError):
            _fail(" ".join(part for part in (error.cause, error.allowed) if part), error.remedy, 2)
        if isinstance(error, OSError):  # a full disk, a folder that may not be written
            _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.", "", 1)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _any_console() -> None:
    """A console of another code page shows ? for a character that it has not."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _fail(message: str, tip: str, code: int) -> NoReturn:
    typer.echo(f"Error: {message}" + (f"\nTIP: {tip}" if tip else ""), err=True)
    sys.exit(code)
