"""`glora report` and `glora ls runs`: what is on the page, and the page in a real browser."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml

from chromium import BROWSER, tab
from glora.cli.reporting import page, report
from glora.cli.watching import server
from glora.errors import ConfigError, RunError
from glora.report.examples import ByExample
from glora.report.page import read_run, render
from glora.report.page.classes import classified
from glora.report.page.svg import Axis, short
from glora.report.page.winner import numbers_by_type
from glora.report.runs_table import filtered, run_rows, sorted_runs
from html5 import Page

DEMO = Path(__file__).parents[1] / "results" / "demo"
TINY: dict[str, Any] = {
    "model": {"name": "test_vit", "pretrained": False, "image_size": 32},
    "data": {"source": "digits"},
    "train": {"epochs": 2},
}
SEARCHED = {"population": 6, "generations": 2, "parents": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny searched run and one of LoRA, both tested."""
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    from glora.config import build_experiment
    from glora.runs.reporter import Silent
    from glora.runs.run import Run

    root = tmp_path_factory.mktemp("runs")
    search = {"searcher": {"name": "evolution", **SEARCHED}, "budget": 6000}
    Run(build_experiment({"method": {"name": "glora"}, "search": search, **TINY}), root / "searched", Silent()).fit()
    Run(build_experiment({"method": {"name": "lora"}, **TINY}), root / "group" / "alone", Silent()).fit()
    return root / "searched", root / "group" / "alone"


def kept(**changes: Any) -> ByExample:
    told = {"target": (0.0, 0.0, 1.0, 1.0), "prediction": (0.0, 1.0, 1.0, 0.0), "probability": (0.9, 0.6, 0.8, 0.7)}
    given: dict[str, Any] = {"winner": "", "data": "d", "values": {"loss": (0.1, 0.9, 0.2, 1.2)}, "told": told}
    return ByExample(**{**given, "classes": ("cat", "dog"), **changes})


# -- numbers


def test_classes_are_counted_and_the_worst_errors_come_first() -> None:
    found = classified(kept())
    assert found is not None
    assert found.confusion == ((1, 1), (1, 1))
    assert [row.accuracy for row in found.rows] == [0.5, 0.5]
    assert found.rows[0].taken_for == "dog (1)"
    assert kept().most_wrong() == [3, 1]
    assert kept().most_wrong(1) == [3]


def test_without_classes_the_worst_are_those_with_the_largest_losses() -> None:
    assert kept(told={}, classes=()).most_wrong(3) == [3, 1, 2]
    assert kept(told={}, classes=(), values={"loss": (0.1, None, 0.2, 1.2)}).most_wrong(2) == [1, 3]
    assert kept(told={}, classes=(), values={}).most_wrong() == []


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    found = classified(kept())
    assert found is not None and sum(each.examples for each in found.bins) == 4
    assert found.calibration_error == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4)


def test_a_model_without_classes_has_no_classes() -> None:
    assert classified(None) is None
    assert classified(kept(told={}, classes=())) is None


def test_what_is_kept_of_examples_is_read_again_and_older_records_too(tmp_path: Path) -> None:
    from glora.report.records import checked

    kept().write(tmp_path / "file.json")
    data = json.loads((tmp_path / "file.json").read_text())
    assert checked(ByExample, data, "record") == kept()
    older = {name: data[name] for name in ("winner", "data", "values", "weights")}
    assert checked(ByExample, older, "record").told == {}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.3, 2.4), (0.0, 123456.0), (-5.0, -1.0)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = Axis("x", low, high).ticks()
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-6 * abs(low) <= tick <= high * (1 + 1e-6) or tick <= high for tick in ticks)
    assert len({short(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("last", [1.0, 2.0, 3.0, 12.0, 30.0])
def test_epochs_are_counted_in_whole_numbers(last: float) -> None:
    ticks = Axis.over("epochs", [1.0, last], counted=True).ticks()
    assert 1 <= len(ticks) <= 6 and all(tick == round(tick) for tick in ticks)


# -- the page


def test_the_page_of_a_searched_run_has_every_part(runs: tuple[Path, Path]) -> None:
    html = page([runs[0]])
    for title in ("Verdict", "What was asked", "What was measured", "Learning", "The search", "The winner by layers",
                  "Class by class, on test", "Confusion matrix", "Calibration", "Most wrong on test", "Cost",
                  "How to use it", "How it was made"):  # fmt: skip
        assert title in html
    found = Page(html)
    assert found.unclosed == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.references) <= set(found.ids)
    assert all(picture.startswith("data:") for picture in found.pictures) and found.pictures
    assert found.without_text == 0
    assert "http://" not in html and "https://" not in html


def test_the_verdict_is_two_sentences(runs: tuple[Path, Path]) -> None:
    from glora.report.page.words import verdict

    first, second = verdict(read_run(runs[0]))
    assert first.startswith("Your model: accuracy") and "test images" in first
    assert second.startswith("The winner") and "best of 6 random genotypes" in second
    alone = verdict(read_run(runs[1]))
    assert len(alone) == 2 and "Nothing was searched" in alone[1]


def test_the_numbers_of_a_layer_type_are_told_by_support_tensor(runs: tuple[Path, Path]) -> None:
    outcome = read_run(runs[0]).outcome
    assert outcome is not None
    types = numbers_by_type(outcome)
    assert sum(each.total for each in types.values()) == outcome.parameters > 0
    assert all(sum(each.by_column.values()) == each.total for each in types.values())
    assert all(list(each.by_column) == list("ABCDE") for each in types.values())
    html = page([runs[0]])
    for kind, each in types.items():
        row = "".join(f"<td>{number:,}</td>" for number in (each.sites, *each.by_column.values(), each.total))
        assert f'<th scope="row">{kind}</th>{row}' in html
    shown = [f"{column}: {each.by_column[column]:,}</title>" for each in types.values() for column in each.by_column]
    assert all((text in html) is not text.endswith(" 0</title>") for text in shown)


def test_a_record_of_before_that_does_not_tell_them_has_one_bar_a_type(runs: tuple[Path, Path]) -> None:
    run = read_run(runs[0])
    assert run.outcome is not None
    older = replace(run.outcome, numbers={})
    html = render([replace(run, outcome=older)])
    assert Page(html).unclosed == []
    for kind, each in numbers_by_type(older).items():
        assert each.by_column == {} and f'<th scope="row">{kind}</th><td>{each.sites}</td>' in html


TEXTS = {  # objective -> its kind of model, and of rows
    "classify": "bert",
    "choose": "llama",
    "language": "llama",
}


@pytest.mark.parametrize("objective", TEXTS)
def test_a_run_on_texts_shows_what_is_most_wrong_and_counts_its_tokens(objective: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from glora.runs.run import Run
    from suites.toy import Recorder
    from test_language_runs import base_of, experiment, rows_of, written

    kind = TEXTS[objective]
    data = written(tmp_path / "rows.jsonl", rows_of("bert" if kind == "bert" else objective))
    settings = experiment(base_of(tmp_path / "base", kind), data, method={"name": "lora"}, search={},
                          objective={"name": objective})  # fmt: skip
    run = Run(settings, tmp_path / "run", Recorder())
    result = run.fit()
    assert result is not None
    lengths = run.session.data.train.lengths  # type: ignore[attr-defined]
    assert result.tokens == {"train": sum(lengths)}
    record, html = read_run(tmp_path / "run"), page([tmp_path / "run"])
    assert f"<dt>Tokens, training</dt><dd>{sum(lengths):,}</dd>" in html
    assert record.examples is not None and run.task.test is not None
    wrong = record.examples.most_wrong()
    assert wrong and set(record.texts) == set(wrong)
    for place in wrong:
        row = run.task.test.rows[place]  # type: ignore[attr-defined]
        said = record.texts[place]["text"]
        first = row.messages[0].text if objective == "language" else row.prompt if objective == "choose" else row.text
        assert first in said and escape(said) in html
    if objective == "choose":
        assert record.texts[wrong[0]]["choices"] == list(run.task.test.rows[wrong[0]].choices)  # type: ignore[attr-defined]
    assert ("sure</span>" in html) is (objective != "language")
    assert escape(record.texts[wrong[0]]["text"]) not in page([tmp_path / "run"], images=False)


def test_the_images_are_left_out_on_request(runs: tuple[Path, Path]) -> None:
    html = page([runs[0]], images=False)
    assert Page(html).pictures == []
    assert "Most wrong on test" in html


def test_thumbnails_are_of_the_examples_that_are_most_wrong(runs: tuple[Path, Path]) -> None:
    run = read_run(runs[0])
    assert run.examples is not None
    assert set(run.thumbnails) == set(run.examples.most_wrong())
    right = [a == b for a, b in zip(run.examples.told["target"], run.examples.told["prediction"], strict=True)]
    assert [float(each) for each in right] == list(run.examples.values["accuracy"])


def test_several_runs_are_compared_in_pairs(runs: tuple[Path, Path]) -> None:
    html = page(runs)
    assert "Comparison" in html and "GLoRA minus it, accuracy" in html and "95% interval" in html
    assert Page(html).unclosed == []


def test_names_are_text_and_no_html(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = read_run(runs[0])
    assert run.examples is not None
    evil = "<script>alert(1)</script>"
    classes = (evil, *run.examples.classes[1:])
    names = tuple(evil for _ in run.examples.told["target"])
    html = render([replace(run, name=evil, examples=replace(run.examples, classes=classes, names=names))])
    assert evil not in html and "&lt;script&gt;" in html


def test_an_unfinished_run_has_a_page_of_what_there_is(runs: tuple[Path, Path], tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(runs[0] / "config.yaml", begun)
    assert read_run(begun).state == "begun" and "It has begun." in page([begun])
    shutil.copy(runs[0] / "metrics.jsonl", begun)
    assert read_run(begun).state == "training" and "Training loss" in page([begun])
    shutil.copy(runs[0] / "search.jsonl", begun)
    searching = read_run(begun)
    assert searching.state == "searching" and "The search" in page([begun])
    finished = read_run(runs[0])
    assert sorted(t.parameters for t in searching.trials) == sorted(t.parameters for t in finished.trials)
    assert {t.parameters for t in searching.front} == {t.parameters for t in finished.front}


def test_result_files_have_a_page(tmp_path: Path) -> None:
    report(sorted(DEMO.glob("*.json")), tmp_path / "new" / "demo.html", images=True)
    html = (tmp_path / "new" / "demo.html").read_text()
    assert "Comparison" in html and Page(html).unclosed == []


def test_what_is_no_run_and_no_page_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        page([tmp_path])
    with pytest.raises(RunError, match=r"holds no run.*Check the path"):
        page([tmp_path / "nowhere"])
    with pytest.raises(RunError, match=r"is no run, but a folder of runs.*Name its runs: .*searched"):
        page([runs[0].parent])
    shutil.copytree(runs[1], tmp_path / "damaged")
    (tmp_path / "damaged" / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result.json cannot be read.*Bring the file back"):
        page([tmp_path / "damaged"])
    with pytest.raises(ConfigError, match="is no page"):
        report([tmp_path], tmp_path / "report.pdf", images=True)


# -- in a browser

browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


@browser
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_a_browser_shows_it_at_any_width_without_a_request_or_an_error(
    runs: tuple[Path, Path], tmp_path: Path, width: int
) -> None:
    report(runs, tmp_path / "report.html", images=True)
    with tab(tmp_path / "profile") as shown:
        for dark in (False, True):
            shown.look(width, dark=dark)
            shown.open((tmp_path / "report.html").as_uri())
            assert shown.script("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            assert shown.script(OVERLAPS) == []
        asked = [each["request"]["url"] for each in shown.named("Network.requestWillBeSent")]
        assert {address.partition(":")[0] for address in asked} <= {"file", "data"}
        assert not shown.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        shown.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


@browser
def test_its_letters_have_contrast_in_light_and_dark(runs: tuple[Path, Path], tmp_path: Path) -> None:
    report([runs[0]], tmp_path / "report.html", images=True)
    with tab(tmp_path / "profile") as shown:
        for dark in (False, True):
            shown.look(800, dark=dark)
            shown.open((tmp_path / "report.html").as_uri())
            assert shown.script(FAINT) == []


@browser
def test_the_keyboard_reaches_the_zoom_and_the_chart_grows(runs: tuple[Path, Path], tmp_path: Path) -> None:
    report([runs[0]], tmp_path / "report.html", images=True)
    box = "document.querySelector('[data-zoom] svg.chart').getAttribute('viewBox').split(' ').map(Number)[2]"
    with tab(tmp_path / "profile") as shown:
        shown.look(800)
        shown.open((tmp_path / "report.html").as_uri())
        before = shown.script(box)
        for _ in range(60):
            shown.press("Tab")
            if shown.script("document.activeElement.getAttribute('aria-label')") == "Zoom in":
                break
        else:
            pytest.fail("Tab does not reach the button")
        assert shown.script("getComputedStyle(document.activeElement).outlineStyle") != "none"
        shown.press("Enter")
        assert shown.script(box) == before / 2


@browser
def test_on_paper_nothing_is_cut_off(runs: tuple[Path, Path], tmp_path: Path) -> None:
    report([runs[0]], tmp_path / "report.html", images=True)
    with tab(tmp_path / "profile") as shown:
        shown.look(720, media="print")
        shown.open((tmp_path / "report.html").as_uri())
        assert shown.script("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert shown.script("getComputedStyle(document.querySelector('.zoom')).display") == "none"


OVERLAPS = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(each => [each.textContent, each.getBoundingClientRect()]);
  return texts.flatMap(([a, p], k) => texts.slice(k + 1).filter(([_, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3).map(([b]) => a + ' | ' + b));
})"""
FAINT = """(() => {
  const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = node => { for (; node; node = node.parentElement) {
    const c = numbers(getComputedStyle(node).backgroundColor); if (c.length === 3 || c[3] === 1) return c.slice(0, 3); }
    return [255, 255, 255]; };
  return [...document.querySelectorAll('p, td, th, dt, dd, li, summary, h1, h2, h3, a, code, button, caption')]
    .filter(node => node.innerText && node.getClientRects().length).map(node => {
      const [a, b] = [light(numbers(getComputedStyle(node).color).slice(0, 3)), light(ground(node))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.className + ' ' + node.innerText.slice(0, 30)];
    }).filter(([ratio]) => ratio < 4.5);
})()"""


# -- live


def test_it_is_served_to_this_machine_alone_and_read_only(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    with server([tmp_path / "run"], port=0, refresh=7) as served:
        host, port = served.server_address[:2]
        assert host == "127.0.0.1"
        threading.Thread(target=served.serve_forever, daemon=True).start()
        try:
            assert 'http-equiv="refresh" content="7"' in asked(port)[1]
            assert "searched, and not tested" in asked(port)[1] or "Your model" in asked(port)[1]
            assert asked(port, path="/../result.json")[0] == 404
            assert asked(port, method="POST")[0] == 501
            assert asked(port, host="evil.example")[0] == 403
            shutil.copy(runs[0] / "result.json", tmp_path / "run")
            code, html = asked(port, host="localhost")
            assert code == 200 and "http-equiv" in html and 'http-equiv="refresh"' not in html
            (tmp_path / "run" / "result.json").write_text("{")
            assert asked(port)[0] == 503
        finally:
            served.shutdown()
    assert all(file.stat().st_mtime_ns == when for file, when in before.items() if file.is_file())


def asked(port: int, *, path: str = "/", method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers={"Host": f"{host}:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_server_is_refused_where_there_is_no_run_or_no_port(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        server([tmp_path], port=0, refresh=5)
    with server([runs[0]], port=0, refresh=5) as first, pytest.raises(RunError, match="cannot be used"):
        server([runs[0]], port=first.server_address[1], refresh=5)


# -- the table of runs


def test_runs_are_found_sorted_and_filtered(runs: tuple[Path, Path]) -> None:
    rows = run_rows(runs[0].parent)
    assert [row["name"] for row in rows] == ["group/alone", "searched"]
    assert all(row["state"] == "tested" and row["split"] == "test" and row["metric"] == "accuracy" for row in rows)
    assert [row["method"] for row in filtered(rows, ["method=GLORA", "train.epochs=2"])] == ["glora"]
    by_size = [row["parameters"] for row in sorted_runs(rows, "-parameters")]
    assert by_size == sorted(by_size, reverse=True)
    with pytest.raises(ConfigError, match="No run has 'metod'") as error:
        filtered(rows, ["metod=lora"])
    assert "method" in error.value.remedy
    with pytest.raises(ConfigError, match="is no filter"):
        filtered(rows, ["lora"])


def test_a_damaged_run_is_listed_as_such(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[1], tmp_path / "bad")
    (tmp_path / "bad" / "result.json").write_text("{")
    row = run_rows(tmp_path)[0]
    assert row["state"] == "damaged" and "no JSON" in row["problem"]
    with pytest.raises(RunError, match="There is no run"):
        run_rows(tmp_path / "bad" / "test_images")


def test_the_command_prints_a_table_and_json(runs: tuple[Path, Path]) -> None:
    from typer.testing import CliRunner

    from glora.cli.app import app

    shown = CliRunner().invoke(app, ["ls", "runs", str(runs[0].parent), "--sort", "-value"])
    assert shown.exit_code == 0 and "searched" in shown.output and "tested" in shown.output
    plain = CliRunner().invoke(app, ["ls", "runs", str(runs[0]), "--json"])
    row = json.loads(plain.output)[0]
    assert row["settings"]["train.epochs"] == yaml.safe_load((runs[0] / "config.yaml").read_text())["train"]["epochs"]
    assert CliRunner().invoke(app, ["ls", "models", "--sort", "name"]).exit_code == 2
