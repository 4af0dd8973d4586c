"""Files that strangers or accidents have made are refused whole; files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import glora
from fuzz.fuzz_files import FROZEN, Small, base, fuzz, good_run, images
from glora.adapt.adapter_file import read_tensors, save_tensors
from glora.errors import AdapterFileError, RunError, StateError, WriteError
from glora.files import append_jsonl, atomic, atomic_folder, read_jsonl, write_json, write_text
from glora.methods.files import load_adapter
from glora.plain import parse_json
from glora.report.outcome import Outcome
from glora.report.result import Result
from glora.runs.folder import RunFolder
from glora.searchers.journal import Journal
from glora.settings import flat
from glora.tasks.calibration import Calibration

OUTPUTS: dict[str, Any] = json.loads((FROZEN / "outputs.json").read_text())


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Of a safetensors file the header as data, and the tensors' bytes."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def with_own(change: Callable[[dict[str, Any]], object], name: str = "adapter_2") -> bytes:
    """A good file of before there was a checksum, its own header changed."""
    header, rest = header_of((FROZEN / f"{name}.safetensors").read_bytes())
    own = json.loads(header["__metadata__"]["glora"])
    change(own)
    header["__metadata__"]["glora"] = json.dumps(own)
    return with_header(header, rest)


def with_tensors(change: Callable[[dict[str, Tensor]], object], name: str = "adapter_2") -> bytes:
    """A good file without a checksum, its tensors changed."""
    file = FROZEN / f"{name}.safetensors"
    tensors = load_file(file)
    change(tensors)
    target = Path(os.environ["PYTEST_TMP"]) / "changed.safetensors"
    save_file(tensors, target, metadata=header_of(file.read_bytes())[0]["__metadata__"])
    return target.read_bytes()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(path: Path, content: bytes, model: nn.Module | None = None) -> AdapterFileError:
    """The file is refused with one error that names it; the model is as before, little memory is spent."""
    path.write_bytes(content)
    model = base() if model is None else model
    before, trained = state_of(model), [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        outputs = model(images())
    tracemalloc.start()
    try:
        with pytest.raises(AdapterFileError) as caught:
            load_adapter(model, path)
        spent = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert spent < 100_000_000
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 3000
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [p.requires_grad for p in model.parameters()] == trained
    with torch.no_grad():
        assert torch.equal(model(images()), outputs)
    return caught.value


def deep(levels: int) -> Any:
    found: Any = 0
    for _ in range(levels):
        found = [found]
    return found


def a_site(own: dict[str, Any]) -> str:
    return next(iter(own["sites"]))


def a_scale(value: Any, key: str = "B.lora") -> Callable[[dict[str, Any]], object]:
    return lambda own: own["scales"][a_site(own)].update({key: value})


OWN: dict[str, Callable[[dict[str, Any]], object]] = {  # what is done to the header
    "version unknown": lambda own: own.update(version=99),
    "version true": lambda own: own.update(version=True),
    "version a list": lambda own: own.update(version=[2]),
    "another format": lambda own: own.update(format="x"),
    "no space": lambda own: own.pop("space"),
    "space a list": lambda own: own.update(space=[]),
    "ranks": lambda own: own["space"].update(ranks=list(range(1, 100_001))),
    "ranks huge": lambda own: own["space"].update(ranks=[10**39]),
    "ranks negative": lambda own: own["space"].update(ranks=[-4]),
    "product": lambda own: own["space"].update(product="x"),
    "unknown setting": lambda own: own["space"].update(more=1),
    "genotype outside": lambda own: own["genotype"][a_site(own)].update(B="lora:3"),
    "genotype huge rank": lambda own: own["genotype"][a_site(own)].update(B="lora:" + "9" * 5000),
    "genotype of another site": lambda own: own["genotype"].update({"../x": own["genotype"][a_site(own)]}),
    "genotype a text": lambda own: own.update(genotype="x"),
    "genotype lost": lambda own: own["genotype"].pop(a_site(own)),
    "site unknown": lambda own: own["sites"].update({"/etc/passwd": own["sites"][a_site(own)]}),
    "site sizes": lambda own: own["sites"][a_site(own)].update(out_features=10**30),
    "site text": lambda own: own["sites"][a_site(own)].update(in_features="x"),
    "site new_bias": lambda own: own["sites"][a_site(own)].update(new_bias=[1]),
    "site new_bias beside a bias": lambda own: own["sites"][a_site(own)].update(new_bias=True),
    "no sites": lambda own: own.update(sites={}, genotype={}, scales={}),
    "scale 0": a_scale(0),
    "scale negative": a_scale(-1.0),
    "scale text": a_scale("nan"),
    "scale NaN": a_scale(float("nan")),
    "scale infinite": a_scale(float("inf")),
    "scale huge": a_scale(1e38),
    "scale true": a_scale(True),
    "scale of 401 digits": a_scale(10**400),
    "scale of nothing": a_scale(1.0, "X.lora"),
    "scales a list": lambda own: own.update(scales=[]),
    "head unknown": lambda own: own.update(head=["..", "head"]),
    "head twice": lambda own: own.update(head=["head", "head"]),
    "head a text": lambda own: own.update(head="head"),
    "head a number": lambda own: own.update(head=[1]),
    "statistics unknown": lambda own: own.update(statistics=["a"]),
    "marks a number": lambda own: own.update(marks=5),
    "info a text": lambda own: own.update(info="x"),
    "info deep": lambda own: own.update(info={"a": deep(200)}),
    "base a number": lambda own: own.update(base=1),
    "another base": lambda own: own.update(base="0" * 64),
    "shared": lambda own: own.update(shared={"a": ["b"]}),
    "wrong checksum": lambda own: own.update(sha256="0" * 64),
    "checksum a list": lambda own: own.update(sha256=[]),
}
NUMBERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no method": lambda own: own.pop("method"),
    "method a text": lambda own: own.update(method="x"),
    "method unknown": lambda own: own["method"].update(name="x"),
    "method a list": lambda own: own["method"].update(name=[]),
    "method with more": lambda own: own["method"].update(more=1),
    "another method": lambda own: own.update(method={"name": "bitfit"}),
    "support tensors": lambda own: own.update(method={"name": "lora"}),
    "tensors a list": lambda own: own.update(tensors=[]),
    "another shape": lambda own: own["tensors"].update({"body.weight": [1]}),
    "shape of texts": lambda own: own["tensors"].update({"body.weight": ["1"]}),
    "head unknown": lambda own: own.update(head=["/"]),
    "another base": lambda own: own.update(base="0"),
    "wrong checksum": lambda own: own.update(sha256="0" * 64),
}


@pytest.mark.parametrize("name", OWN)
def test_a_header_that_is_not_of_the_format_is_refused(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.safetensors", with_own(OWN[name]))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_header_of_named_numbers_is_checked_too(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.safetensors", with_own(NUMBERS[name], "numbers_3"))


HEAD_BIAS = "head/head.bias"
TENSORS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a head's bias without a dimension": lambda found: found.update({HEAD_BIAS: torch.tensor(1.0)}),
    "a head's bias of two": lambda found: found.update({HEAD_BIAS: torch.ones(3, 1)}),
    "an empty bias": lambda found: found.update({HEAD_BIAS: torch.ones(0)}),
    "bias and weight of other widths": lambda found: found.update({HEAD_BIAS: torch.ones(5)}),
    "whole numbers in the head": lambda found: found.update({HEAD_BIAS: torch.ones(3, dtype=torch.int64)}),
    "truth values in the head": lambda found: found.update({HEAD_BIAS: torch.ones(3, dtype=torch.bool)}),
    "complex numbers in the head": lambda found: found.update({HEAD_BIAS: torch.ones(3, dtype=torch.complex64)}),
    "NaN in the head": lambda found: found[HEAD_BIAS].fill_(float("nan")),
    "a head that is not there": lambda found: found.pop(HEAD_BIAS),
    "one more in the head": lambda found: found.update({"head/../x": torch.ones(1)}),
    "an absolute name": lambda found: found.update({"/etc/passwd": torch.ones(1)}),
    "infinity": lambda found: found[support_of(found)].reshape(-1)[:1].fill_(float("inf")),
    "another shape": lambda found: found.update({support_of(found): torch.ones(1, 2, 3)}),
    "another dtype": lambda found: found.update({support_of(found): found[support_of(found)].double()}),
    "a tensor lost": lambda found: found.pop(support_of(found)),
}


def support_of(found: dict[str, Tensor]) -> str:
    return next(name for name in sorted(found) if not name.startswith("head/"))


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_other_names_shapes_dtypes_or_without_a_value_are_refused(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.safetensors", with_tensors(TENSORS[name]))


def layouts() -> dict[str, Callable[[], bytes]]:
    """What is done to the bytes of a good file."""
    good = (FROZEN / "adapter_2.safetensors").read_bytes()
    header, rest = header_of(good)
    text = json.dumps(header).encode()
    names = [name for name in header if name != "__metadata__"]

    def entry(**changes: Any) -> bytes:
        return with_header(header | {names[0]: header[names[0]] | changes}, rest)

    def many(count: int) -> bytes:
        places = {f"{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(count)}
        return with_header({"__metadata__": header["__metadata__"], **places}, b"")

    def own(text: str) -> bytes:
        return with_header({"__metadata__": {"glora": text}}, b"")

    first, last = (header[name]["data_offsets"] for name in (names[0], names[-1]))
    return {
        "empty": lambda: b"",
        "seven bytes": lambda: good[:7],
        "cut in the header": lambda: good[:200],
        "cut in the tensors": lambda: good[:-1],
        "longer": lambda: good + b"\0",
        "length huge": lambda: (2**63).to_bytes(8, "little") + good[8:],
        "length negative": lambda: (2**64 - 1).to_bytes(8, "little") + good[8:],
        "length of the file": lambda: (len(good)).to_bytes(8, "little") + good[8:],
        "no JSON": lambda: with_header(b"x" * 100, rest),
        "a list": lambda: with_header([], rest),
        "no UTF-8": lambda: with_header(text.replace(b"dtype", b"\xff\xfe", 1), rest),
        "key twice": lambda: with_header(text[:-1] + b", " + text[1:], rest),
        "own key twice": lambda: own('{"format": "glora-adapter", "version": 1, "version": 2}'),
        "overlap": lambda: entry(data_offsets=[first[0], first[1] - 4], shape=[1]),
        "out of range": lambda: entry(data_offsets=[last[1] + 10, last[1] + 10 + first[1] - first[0]]),
        "offsets negative": lambda: entry(data_offsets=[-4, first[1]]),
        "offsets reversed": lambda: entry(data_offsets=first[::-1]),
        "offsets text": lambda: entry(data_offsets=["0", "4"]),
        "shape negative": lambda: entry(shape=[-1, -4]),
        "shape huge": lambda: entry(shape=[2**62, 2**62]),
        "shape true": lambda: entry(shape=[True]),
        "dtype unknown": lambda: entry(dtype="F99"),
        "dtype a list": lambda: entry(dtype=[]),
        "metadata a list": lambda: with_header(header | {"__metadata__": []}, rest),
        "metadata numbers": lambda: with_header(header | {"__metadata__": {"glora": 1}}, rest),
        "20,000 tensors": lambda: many(20_000),
        "a million tensors": lambda: many(1_000_000),
        "nested": lambda: with_header(b'{"a":' + b"[" * 100_000, b""),
        "nested and closed": lambda: own('{"info":' + "[" * 2000 + "]" * 2000 + "}"),
        "own nested": lambda: own("[" * 100_000),
        "lists": lambda: own("[" + "[]," * 4_000_000 + "[]]"),
        "mappings": lambda: own("[" + '{"":0},' * 1_500_000 + "0]"),
        "hidden mappings": lambda: with_header(
            b'{"__metadata__":{"glora":"[' + b"\\u007b\\u0022\\u0022\\u003a1}," * 400_000 + b'0]"}}', b""
        ),
        "numbers": lambda: own("[" + "1," * 5_000_000 + "1]"),
        "digits": lambda: own("9" * 4_000_000),
        "an infinite number": lambda: with_header(text.replace(b'"shape": [', b'"shape": [1e999, ', 1), rest),
    }  # fmt: skip


@pytest.mark.parametrize("name", layouts())
def test_a_file_whose_layout_is_wrong_or_a_bomb_is_refused(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.safetensors", layouts()[name]())


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    model = base()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    for name in ("pipe", "link", "loop", "none"):
        with pytest.raises(AdapterFileError, match=name):
            load_adapter(model, tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("name", ["adapter_2_checked", "supernet_2_checked", "numbers_3_checked"])
def test_one_flipped_bit_is_found_wherever_it_is(name: str, tmp_path: Path) -> None:
    """Of a bit in the field's own name nothing else tells; the file is then one of before there was a checksum."""
    good = (FROZEN / f"{name}.safetensors").read_bytes()
    rng, file, model = random.Random(3), tmp_path / "a.safetensors", base()
    before, taken = state_of(model), 0
    for _ in range(300):
        place = rng.randrange(len(good))
        flipped = bytearray(good)
        flipped[place] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        if b'sha256\\"' in flipped:
            with pytest.raises(AdapterFileError, match=r"a\.safetensors"):
                load_adapter(model, file)
            taken += 1
    assert taken > 280
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", OUTPUTS)
def test_files_of_earlier_versions_play_what_they_played(name: str) -> None:
    """A frozen file is never written anew: a new format gets files beside these."""
    with torch.no_grad():
        found = load_adapter(base(), FROZEN / f"{name}.safetensors").model.eval()(images())
    assert torch.allclose(found, torch.tensor(OUTPUTS[name]), atol=1e-6)


def frozen_run(folder: Path) -> dict[str, Callable[[], Any]]:
    """The frozen files of a run folder of format 2, in the folder; file name -> its reader."""
    readers = good_run(folder)
    kept = sorted((FROZEN / "run_2").iterdir())
    assert {file.name for file in kept} == readers.keys()
    for file in kept:
        shutil.copy(file, folder / file.name)
    return readers


def test_run_folders_of_earlier_versions_are_read_as_they_were(tmp_path: Path) -> None:
    """As above: these files are never written anew."""
    readers, folder = frozen_run(tmp_path / "run"), RunFolder(tmp_path / "run")
    settings = flat(yaml.safe_load(folder.config.read_text()))
    assert {name: flat(folder.experiment().to_json())[name] for name in settings} == settings
    assert folder.done("trained") == {"file": "supernet.safetensors", "seconds": 1.5, "example_steps": 100}
    assert (folder.seconds()["train"], folder.example_steps(), folder.warnings()) == (1.5, 100, ["It began anew."])
    folder.check_data("ab")
    folder.check_base("cd")
    outcome = Outcome.read(folder.winner)
    assert (outcome.genome, outcome.score, outcome.parameters, outcome.key) == (
        (1, 0, 2),
        -0.25,
        90,
        "f261d43de2fb9e1e",
    )
    assert outcome.rows["winner"]["val_accuracy"] == 0.5
    result = Result.read(folder.result)
    assert (result.metrics, result.winner, result.parameters) == ({"test_accuracy": 0.5}, outcome.key, 9)
    tested = readers["test_examples.json"]()
    assert tested.values == {"accuracy": (1.0, None, 0.0)}
    assert Calibration.read(folder.calibration) == Calibration(0.8, 1.25)
    journal = Journal(folder.journal, {"searcher": "random", "seed": 0, "racing": None})
    assert journal.recall("ask", 0) == {"event": "ask", "number": 0, "genome": [0, 1]}
    assert (journal.recall("score", 0) or {})["score"] == 0.5
    journal.close()
    assert readers["examples.jsonl"]()((0, 1))["val"].value("accuracy") == 0.5
    assert readers["harness.json"]() == []
    tensors, meta = readers["training.safetensors"]()
    assert torch.equal(tensors["0.value"], torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    assert meta == {"epoch": 1, "losses": [0.5]}


def test_results_of_format_1_are_read_under_todays_names() -> None:
    found = Result.read(FROZEN / "result_1.json")
    assert found.metrics["test_accuracy"] == 0.25
    assert (found.metrics["val_examples"], found.metrics["test_examples"]) == (20, 40)
    assert found.controls["largest"]["test_loss"] == 2.0
    assert found.example_steps == {"train": 7}
    assert [metric.name for metric in found.metrics_info] == ["accuracy", "loss"]
    assert found.verdict == ("A winner.",)


def test_every_frozen_file_has_its_outputs() -> None:
    assert {file.stem for file in FROZEN.glob("*.safetensors")} == {*OUTPUTS, "base"}


def test_the_checksum_is_of_header_and_tensors_and_the_same_again(tmp_path: Path) -> None:
    adapted = glora.inject(base(), glora.SearchSpace(ranks=(2,)), head=["head"])
    glora.save_adapter(adapted, tmp_path / "a.safetensors", info={"a": 1})
    glora.save_adapter(adapted, tmp_path / "b.safetensors", info={"a": 1})
    glora.save_adapter(adapted, tmp_path / "c.safetensors", info={"a": 2})
    sums = [glora.read_header(tmp_path / f"{name}.safetensors")["sha256"] for name in "abc"] if hasattr(
        glora, "read_header"
    ) else [json.loads(header_of((tmp_path / f"{n}.safetensors").read_bytes())[0]["__metadata__"]["glora"])["sha256"]
            for n in "abc"]  # fmt: skip
    assert sums[0] == sums[1] != sums[2]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    adapted = glora.inject(base(), glora.SearchSpace(ranks=(2,)), head=["head"])
    file = tmp_path / "a.safetensors"
    glora.save_adapter(adapted, file)
    good = file.read_bytes()
    with torch.no_grad():
        adapted.model.head.bias.fill_(float("nan"))
    with pytest.raises(StateError, match=r"head/head\.bias has numbers that are not finite"):
        glora.save_adapter(adapted, file)
    assert file.read_bytes() == good


def test_a_training_state_has_a_checksum_and_older_ones_are_read(tmp_path: Path) -> None:
    file, tensors = tmp_path / "training.safetensors", {"a": torch.arange(64.0)}
    save_tensors(file, tensors, {"epoch": 1})
    found, meta = read_tensors(file)
    assert torch.equal(found["a"], tensors["a"])
    assert meta == {"epoch": 1}
    good = file.read_bytes()
    for place in range(-200, -1, 7):
        flipped = bytearray(good)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        with pytest.raises(AdapterFileError, match=r"training\.safetensors.*Delete it"):
            read_tensors(file)
    save_file(tensors, file, metadata={"glora": '{"epoch": 1}'})  # of before
    assert read_tensors(file)[1] == {"epoch": 1}


# JSON.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 1}', "'a' is there twice"),
        ("[" * 100_000, "nested"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("1" * 41, "41 digits"),
        ("1e999", "no finite number"),
        ("NaN", "no JSON"),
        ("[" + "[]," * 3_000_000 + "0]", "bytes of memory"),
        (b"\xff", "utf-8"),
    ],
)
def test_odd_json_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(plain)
def test_plain_data_comes_back(data: Any) -> None:
    assert parse_json(json.dumps(data)) == data == parse_json(json.dumps(data, ensure_ascii=False).encode())


# Run folders.


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"[" * 100_000, b"[1, 2]", b'"x"', b"\xff\xfe", b'{"a": 1, "a": 2}']
)
def test_damaged_files_of_a_run_folder_are_told_with_file_and_remedy(content: bytes, tmp_path: Path) -> None:
    readers = good_run(tmp_path / "run")
    for name, read in readers.items():
        file = tmp_path / "run" / name
        good = file.read_bytes()
        read()
        file.write_bytes(content + b"\n" if name.endswith(".jsonl") and content else content)
        if name == "examples.jsonl" or (not content and name.endswith(".jsonl")):
            file.write_bytes(good)
            continue
        with pytest.raises((RunError, AdapterFileError)) as caught:
            read()
        assert str(file) in str(caught.value)
        assert caught.value.remedy
        file.write_bytes(good)


def test_the_line_is_told(tmp_path: Path) -> None:
    readers = good_run(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([lines[0], '{"stage": "train"}', *lines[2:]]) + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2, is damaged: epoch"):
        readers["metrics.jsonl"]()
    (tmp_path / "run" / "result.json").write_text('{\n "format": 2,\n oops\n}')
    with pytest.raises(RunError, match=r"result\.json cannot be read: it is no JSON in line 3"):
        readers["result.json"]()


def test_wrong_settings_of_a_run_are_told_with_their_lines(tmp_path: Path) -> None:
    good_run(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    lines = folder.config.read_text().splitlines()
    place = next(number for number, line in enumerate(lines, 1) if line.strip().startswith("epochs: "))
    lines[place - 1] = "  epochs: many"
    folder.config.write_text("\n".join([*lines, "more: 1"]))
    with pytest.raises(RunError) as caught:
        folder.experiment()
    assert f"2 errors in {folder.config}" in caught.value.cause
    assert f"line {place}: train.epochs: " in caught.value.cause
    assert f"line {len(lines) + 1}: more: no such setting" in caught.value.cause
    assert "Mend the file there" in caught.value.remedy


def test_what_is_measured_is_a_cache_and_measured_again_when_it_is_damaged(tmp_path: Path) -> None:
    readers = good_run(tmp_path / "run")
    file = tmp_path / "run" / "examples.jsonl"
    first = file.read_text().splitlines()[0]
    assert (0, 1) in readers["examples.jsonl"]()  # type: ignore[operator]
    for damaged in ("[" * 5000, '{"genome": 5}', '{"genome": [0], "splits": {"val": {"loss": "x"}}}', "{"):
        file.write_text(f"{first}\n{damaged}\n")
        assert (0, 1) not in readers["examples.jsonl"]()  # type: ignore[operator]


def test_a_name_in_a_file_leads_nowhere_else(tmp_path: Path) -> None:
    good_run(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    write_json(folder.stages, {"trained": {"file": "../../x", "seconds": 1, "example_steps": 1}})
    with pytest.raises(RunError, match=r"state\.json"):
        folder.trained_file()
    data = Result.read(folder.result).to_json()
    write_json(folder.result, data | {"winner": "../../x"})
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        folder.archive_result()
    assert folder.result.is_file()


def test_aliases_that_stand_for_many_values_are_refused(tmp_path: Path) -> None:
    good_run(tmp_path / "run")
    lines = ["a0: &a0 [1,2,3,4,5,6,7,8,9,10]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "run" / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"config\.yaml.*values"):
        RunFolder(tmp_path / "run").experiment()


# Writing.


def limited(code: str, folder: Path, limit: int) -> subprocess.CompletedProcess[str]:
    """Runs the code in a process in which no file may grow beyond the limit in bytes."""
    start = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    start += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    return subprocess.run([sys.executable, "-c", start + code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "write",
    [
        "from glora.files import write_text; write_text('good', 'x' * 100_000)",
        "from glora.files import append_jsonl; append_jsonl('good', {'a': 'x' * 100_000})",
        "import torch; from glora.adapt.adapter_file import save_tensors\n"
        "save_tensors('good', {'a': torch.zeros(100_000)}, {})",
        "import torch; from torch import nn; from glora.adapt.adapter_file import save_merged\n"
        "save_merged(nn.Linear(300, 300), 'good')",
        "import torch, glora; from torch import nn\n"
        "glora.save_adapter(glora.inject(nn.Sequential(nn.Linear(300, 300)), glora.SearchSpace(ranks=(64,))), 'good')",
        "from glora.files import atomic_folder, write_text\n"
        "with atomic_folder('folder') as f: write_text(f / 'a', 'x' * 100_000)",
    ],
)
def test_where_no_more_can_be_written_the_file_is_as_it_was_and_named(write: str, tmp_path: Path) -> None:
    good = '{"line":1}\n'
    (tmp_path / "good").write_text(good)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text(good)
    done = limited(write, tmp_path, 20_000)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("glora.errors.WriteError: "), done.stderr
    assert ("folder" if "folder" in write else "good") in last
    assert "tmp cannot" not in last
    assert os.strerror(errno.EFBIG) in last
    assert "choose another folder" in last
    assert (tmp_path / "folder" / "kept").read_text() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "good"]
    if "append" in write:
        assert read_jsonl(tmp_path / "good") == [{"line": 1}]
        append_jsonl(tmp_path / "good", {"line": 2})
        assert read_jsonl(tmp_path / "good") == [{"line": 1}, {"line": 2}]
    else:
        assert (tmp_path / "good").read_text() == good


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    with pytest.raises(WriteError, match=r"full\.jsonl cannot be written: No space left.*Make room") as caught:
        append_jsonl(tmp_path / "full.jsonl", {"a": 1})
    assert caught.value.errno == errno.ENOSPC


def test_a_folder_that_is_a_file_or_goes_away_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "a"):
        with pytest.raises(WriteError, match="cannot be written"):
            write_text(path, "x")
        with pytest.raises(WriteError, match="cannot be written"):
            append_jsonl(path, {})
    (tmp_path / "gone").mkdir()
    with pytest.raises(WriteError, match=r"gone/a cannot be written.*removed under way"):
        with atomic(tmp_path / "gone" / "a") as temporary:
            shutil.rmtree(tmp_path / "gone")
            assert not temporary.exists()
    assert not (tmp_path / "gone").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for the administrator")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(WriteError, match="You may not write there"):
        write_text(tmp_path / "locked" / "a", "x")


def test_file_and_folder_are_synced_before_and_after_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power leaves is what the disk was told to keep."""
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(file: int) -> None:
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "file")  # noqa: PTH112
        sync(file)

    def renamed(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    write_text(tmp_path / "a", "x")
    assert order == ["file", "rename", "folder"]
    order.clear()
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("x")
    assert order == ["file", "folder", "rename", "folder"]
    order.clear()
    append_jsonl(tmp_path / "d", {})
    assert order == ["file", "folder"]


def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    good_run(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    for write in (lambda: folder.mark("searched", winner="a"), lambda: folder.record("train", {"epoch": 1}),
                  lambda: folder.begin("a", 0)):  # fmt: skip
        with pytest.raises(RunError, match=r"run was removed.*Bring the folder back"):
            write()
    assert not (tmp_path / "run").exists()


def test_the_runs_own_files_are_known_by_name_through_links_and_in_its_folders(tmp_path: Path) -> None:
    good_run(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "same.safetensors").symlink_to(tmp_path / "run" / "training.safetensors")
    own = ["run/supernet.safetensors", "link/adapter.safetensors", "same.safetensors", "run/plots/x", "run/config.yaml",
           "run/fold-1/supernet.safetensors", "run/tested/a.json", "run/../run/result.json"]  # fmt: skip
    assert [name for name in own if not folder.owns(tmp_path / name)] == []
    others = ["run/merged.safetensors", "run/merged", "merged", "supernet.safetensors", "run"]
    assert [name for name in others if folder.owns(tmp_path / name)] == []


# Fuzzing, in short.


def test_files_broken_at_random_are_read_as_they_were_or_refused() -> None:
    found, broken = fuzz(600, seed=11)
    assert broken == []
    assert sum(found.values()) == 600


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["space", "sites", "genotype", "scales", "head", "statistics", "info", "base", "shared"]),
       value=plain)  # fmt: skip
def test_any_plain_data_in_any_field_is_refused_or_taken(key: str, value: Any, tmp_path: Path) -> None:
    file, model = tmp_path / "a.safetensors", base()
    file.write_bytes(with_own(lambda own: own.update({key: value})))
    try:
        found = load_adapter(model, file)
    except AdapterFileError:
        assert model.state_dict().keys() == Small().state_dict().keys()
    else:
        assert torch.allclose(found.model(images()), torch.tensor(OUTPUTS["adapter_2"]), atol=1e-6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_no_adapter(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(AdapterFileError, match=r"a\.safetensors"):
        load_adapter(base(), tmp_path / "a.safetensors")
