"""The page: runs and tables in, HTML out; nothing in it is fetched, and it reads without its script (no torch)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glora.genotype import ROLES
from glora.registry import optional_import
from glora.report.examples import ByExample
from glora.report.page import charts, winner, words
from glora.report.page.classes import classified
from glora.report.page.record import RunRecord
from glora.report.sheet import Sheet
from glora.settings import flat
from glora.version import __version__

__all__ = ["render"]

HERE = Path(__file__).parent


def render(runs: Sequence[RunRecord], *, sheets: Sequence[Sheet] = (), images: bool = True, refresh: int = 0) -> str:
    """One self-contained page.

    Args:
        runs: What to show, in this order.
        sheets: Tables that compare them, shown first.
        images: Whether the images that are most wrong are in it.
        refresh: Seconds after which a browser asks for the page again; 0: never.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja = optional_import("jinja2", extra="plot", purpose="A report")
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(HERE), autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    shown = [_shown(run, f"run{place}", images=images) for place, run in enumerate(runs, start=1)]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    html: str = environment.get_template("page.html").render(
        title=title,
        runs=shown,
        sheets=sheets,
        refresh=refresh,
        version=__version__,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    return html


def _shown(run: RunRecord, name: str, *, images: bool) -> dict[str, Any]:
    """What the template needs of one run; `name` is unique on the page."""
    found = classified(run.examples)
    titles, rows = words.measured(run)
    result, outcome = run.result, run.outcome
    return {
        "id": name,
        "name": run.name,
        "state": run.state,
        "asked": words.asked(run),
        "verdict": words.verdict(run),
        "details": [] if outcome is None else list(outcome.verdict),
        "measured": {"titles": titles, "rows": rows},
        "learning": charts.learning_charts(run, name),
        "search": charts.search_chart(run, f"{name}-search"),
        "panels": [] if outcome is None else winner.panels(outcome),
        "legend": "" if outcome is None else winner.legend(outcome),
        "parameters": None if outcome is None else outcome.parameters,
        "row": "site" if outcome is None else outcome.row,
        "numbers": None
        if outcome is None
        else charts.numbers_chart(winner.numbers_by_type(outcome), outcome.columns or ROLES, f"{name}-numbers"),
        "classes": found,
        "confusion": None if found is None else charts.confusion_chart(found, f"{name}-confusion"),
        "calibration": None if found is None else charts.calibration_chart(found, f"{name}-calibration"),
        "wrong": _wrong(run, images=images),
        "unit": run.unit,
        "cost": words.cost(run),
        "notes": () if result is None else result.notes,
        "settings": list(flat(run.settings).items()),
        "versions": [] if result is None else _versions(run),
        "loading": words.loading(run),
    }


def _versions(run: RunRecord) -> list[tuple[str, str]]:
    result = run.result
    if result is None:
        return []
    return [*result.versions.items(), *([("commit", result.commit)] if result.commit else []), ("made", result.time)]


def _wrong(run: RunRecord, *, images: bool) -> list[dict[str, Any]]:
    """The examples that are most wrong: name, what it is and what it is taken for, and picture or text if there is."""
    examples = run.examples
    if examples is None:
        return []
    found = []
    for place in examples.most_wrong():
        text = run.texts.get(place, {}) if images else {}
        found.append(
            {
                "name": examples.names[place] if place < len(examples.names) else f"example {place}",
                "image": _data(run.thumbnails.get(place)) if images else "",
                "text": text.get("text", ""),
                **_mistake(examples, place, text.get("choices", ())),
            }
        )
    return found


def _mistake(examples: ByExample, place: int, choices: Sequence[str]) -> dict[str, str]:
    """What an example is, what it is taken for, and how surely; or its loss, where there are no classes."""
    told = examples.told
    if not {"target", "prediction", "probability"} <= told.keys():
        loss = examples.values["loss"][place]
        return {"target": "", "loss": "not finite" if loss is None else f"{loss:.4g}"}
    target, prediction = (int(told[name][place] or 0) for name in ("target", "prediction"))
    names = choices or examples.classes
    called = [names[k] if k < len(names) else f"choice {k + 1}" for k in (target, prediction)]
    sure = f"{100 * (told['probability'][place] or 0):.1f} %"
    return {"target": called[0], "prediction": called[1], "probability": sure}


def _data(png: bytes | None) -> str:
    """The image within the page itself."""
    return "" if png is None else "data:image/png;base64," + base64.b64encode(png).decode()
