"""Several processes: one that ends, ends the others with a message; what they do together is what one would do."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from glora.errors import RunError
from glora.report.result import Result
from glora.searchers import link as link_module
from glora.searchers import search
from glora.searchers.link import Link
from suites.linked import OPTIONS, start
from suites.ranked import done, ended, launch, started
from suites.searcher_suite import PromptSpace, plain, prompt_score, timeless
from suites.toy import image_folder, tiny
from test_bench import benchmark, numbers, written


def ready(folder: Path, size: int) -> None:
    end = time.monotonic() + 60
    while not all((folder / f"ready-{rank}").exists() for rank in range(size)):
        assert time.monotonic() < end
        time.sleep(0.02)


# -- a process that ends


@pytest.mark.parametrize("dead", [0, 2])
def test_a_process_that_is_killed_ends_the_others_with_a_message(tmp_path: Path, dead: int) -> None:
    """Also those that are not connected with it."""
    processes = start(3, tmp_path, "sleep")
    ready(tmp_path, 3)
    processes[dead].kill()
    for rank, (code, text) in enumerate(ended(processes)):
        assert code == (-9 if rank == dead else 1)
        if rank != dead:
            assert f"Error: Process {dead + 1} of 3 has ended; the others end with it." in text
            assert "goes on from the last saved state" in text


def test_a_process_that_is_stopped_ends_the_others_with_a_message(tmp_path: Path) -> None:
    processes = start(2, tmp_path, "sleep")
    ready(tmp_path, 2)
    processes[1].send_signal(signal.SIGSTOP)
    code, text = ended(processes[:1])[0]
    processes[1].kill()
    processes[1].communicate()
    assert code == 1
    assert "Process 2 of 2 has said nothing for 3 seconds" in text


def test_a_launch_that_is_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    processes = start(2, tmp_path, "done")
    ready(tmp_path, 2)
    for sent in (signal.SIGSTOP, signal.SIGCONT):
        for process in processes:
            process.send_signal(sent)
        time.sleep(1 if sent == signal.SIGCONT else 5)
    assert [code for code, _ in ended(processes)] == [0, 0]


def test_the_error_of_a_process_is_told_by_the_others(tmp_path: Path) -> None:
    (first, said), (second, own) = ended(start(2, tmp_path, "error"))
    assert (first, second) == (1, 1)
    assert "Process 2 of 2 has ended: ValueError: something of its own. The others end with it." in said
    assert "ValueError: something of its own" in own
    assert "Process 1" not in own


def test_an_operation_that_fails_because_a_process_is_gone_says_so(tmp_path: Path) -> None:
    processes = start(2, tmp_path, "collective")
    ready(tmp_path, 2)
    processes[1].kill()
    (tmp_path / "gone").touch()
    code, text = ended(processes[:1])[0]
    processes[1].communicate()
    assert code == 1
    assert "RunError: Process 2 of 2 has ended; the others end with it." in text


def test_a_process_that_is_done_ends_nobody(tmp_path: Path) -> None:
    assert ended(start(2, tmp_path, "done")) == [(0, ""), (0, "")]


def test_a_process_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "JOINING", 0.3)
    with pytest.raises(RunError, match=r"Of 2 processes only 1 have come within 0\.3 seconds"):
        Link(0, 2, host="127.0.0.1", share=lambda value: value, ending=print)


def test_a_stranger_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "JOINING", 1.0)
    strangers: list[socket.socket] = []

    def share(value: Any) -> Any:
        for words in (b"x" * 37, b"x"):
            strangers.append(socket.create_connection(("127.0.0.1", value[0])))
            strangers[-1].sendall(words)
            strangers[-1].shutdown(socket.SHUT_WR)
        return value

    with pytest.raises(RunError, match="only 1 have come"):
        Link(0, 2, host="127.0.0.1", share=share, ending=print)
    for stranger in strangers:
        assert stranger.recv(1) == b""
        stranger.close()


# -- whole runs

TWO = ("--num_processes", "2", "--main_process_port", "0")  # 0: one that is free


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the runs, and a run by one process and by two."""
    root = tmp_path_factory.mktemp("runs")
    image_folder(root / "photos")
    done(1, "plain", root, OUT="one")
    done(2, "plain", root, OUT="two")
    return root


def losses(run: Path) -> list[float]:
    """The training loss of every epoch."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line.get("stage") == "train"]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_run_goes_on_with_another_number_of_processes(folder: Path, before: int, after: int) -> None:
    """The batches are the same, in the same order: of the loss nothing differs but rounding."""
    out = f"killed-{before}-{after}"
    codes = [code for code, _ in ended(launch(before, "killed", folder, OUT=out))]
    assert codes == [-9, 1][:before]
    assert (folder / out / "training.safetensors").is_file()
    done(after, "plain", folder, OUT=out)
    assert losses(folder / out) == pytest.approx(losses(folder / "one"), rel=1e-3)
    assert len(losses(folder / out)) == 3
    if before == after:
        for name in ("supernet", "adapter"):
            assert (folder / out / f"{name}.safetensors").read_bytes() == (
                folder / "two" / f"{name}.safetensors"
            ).read_bytes()


@pytest.mark.slow
def test_two_processes_tell_how_many_they_are_and_train_as_one(folder: Path) -> None:
    main, other = (json.loads((folder / f"plain-{rank}.json").read_text()) for rank in range(2))
    assert any("2 processes, of a batch of 8 each has 4" in line for line in main["lines"])
    assert any("supernet.safetensors" in line for line in main["written"])
    assert other == {"lines": [], "written": []}
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), rel=1e-3)


@pytest.mark.slow
def test_two_processes_with_spread_weights_make_the_same_files(folder: Path) -> None:
    """Every weight is brought together to the bit, so that the training is that of two with whole weights."""
    done(2, "sharded", folder)
    for name in ("supernet", "adapter"):
        file = f"{name}.safetensors"
        assert (folder / "sharded" / file).read_bytes() == (folder / "two" / file).read_bytes()
    assert (
        Result.read(folder / "sharded" / "result.json").metrics == Result.read(folder / "two" / "result.json").metrics
    )


@pytest.mark.slow
def test_a_language_model_is_trained_with_spread_and_checkpointed_blocks(tmp_path: Path) -> None:
    """The blocks' forward passes are repeated within the backward pass; the backbone and its head are called apart."""
    pytest.importorskip("transformers")
    from language import tiny_causal
    from test_language_runs import rows_of

    tiny_causal(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows_of("llama"))))
    for base in ("whole", "sharded"):
        done(2, "texts", tmp_path, BASE=base, OUT=base)
    for name in ("supernet", "adapter"):
        file = f"{name}.safetensors"
        assert (tmp_path / "sharded" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.slow
def test_two_processes_search_a_trained_supernet_as_one_does(folder: Path, tmp_path: Path) -> None:
    found = []
    for size, name in ((1, "one"), (2, "two")):
        (tmp_path / name).mkdir()
        for file in ("config.yaml", "state.json", "metrics.jsonl", "supernet.safetensors"):
            shutil.copy(folder / "two" / file, tmp_path / name)
        done(size, "search", tmp_path, OUT=name)
        lines = timeless(tmp_path / name / "search.jsonl")  # several processes end in another order
        journal = sorted(json.dumps(line, sort_keys=True) for line in lines)
        found.append(((tmp_path / name / "adapter.safetensors").read_bytes(), journal))
        made = [int((tmp_path / f"scored-{rank}").read_text()) for rank in range(size)]
        assert min(made) > 0, "or a process has scored nothing"
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "told"),
    [
        (["accelerate.commands.launch", "--multi_gpu", *TWO], "2 processes, of a batch of 8"),
        (["accelerate.commands.launch", "--cpu", *TWO], "This is one process"),
        (["torch.distributed.run", "--standalone", "--nproc-per-node", "2"], "2 processes, of a batch of 8"),
    ],
    ids=["accelerate", "accelerate-cpu", "torchrun"],
)
def test_a_launcher_starts_as_many_as_the_run_says(tmp_path: Path, launcher: list[str], told: str) -> None:
    settings = tiny(image_folder(tmp_path / "photos"), search={"controls": 2}, train={"epochs": 1})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    words = ["-m", *launcher, "-m", "glora", "fit", "--config", str(tmp_path / "tiny.yaml")]
    [(code, text)] = ended(started(1, [*words, "--out", str(tmp_path / "run")]))
    assert code == 0, text
    assert told in " ".join(text.split())
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.slow
def test_two_processes_share_the_cells_of_a_benchmark(tmp_path: Path) -> None:
    file = written(tmp_path, benchmark(image_folder(tmp_path / "photos")))
    for size, out in ((1, "one"), (2, "two")):
        found = ended(started(size, ["-m", "glora", "bench", str(file), "--out", str(tmp_path / out)]))
        assert [code for code, _ in found] == [0] * size, found
    assert numbers(tmp_path / "one" / "results") == numbers(tmp_path / "two" / "results") != {}


def training(folder: Path, processes: list[Any]) -> None:
    """Waits until the training of a launch is under way."""
    (folder / "trains-0").unlink(missing_ok=True)
    end = time.monotonic() + 120
    while not (folder / "trains-0").exists():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_process_ends_a_training_with_a_message(folder: Path, tmp_path: Path, dead: int) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    processes = launch(2, "long", tmp_path)
    training(tmp_path, processes)
    processes[dead].kill()
    start = time.monotonic()
    code, text = ended(processes)[1 - dead]
    assert time.monotonic() - start < 60
    assert code == 1
    assert f"Process {dead + 1} of 2 has ended" in text


@pytest.mark.slow
def test_a_stopped_process_ends_a_training_with_a_message(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    processes = launch(2, "long", tmp_path)
    training(tmp_path, processes)
    processes[1].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    code, text = ended(processes[:1])[0]
    processes[1].kill()
    processes[1].communicate()
    assert time.monotonic() - start < 60
    assert code == 1
    assert "Process 2 of 2 has said nothing for 30 seconds" in text


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_a_signal_to_one_process_of_a_command_ends_both(tmp_path: Path, sent: signal.Signals) -> None:
    settings = tiny(image_folder(tmp_path / "photos"), train={"epochs": 3000})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    files = ["--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    processes = started(2, ["-m", "glora", "fit", *files])
    end = time.monotonic() + 120
    while not (tmp_path / "run" / "training.safetensors").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    processes[1].send_signal(sent)
    (first, said), (second, own) = ended(processes)
    if sent == signal.SIGTERM:
        assert (first, second) == (143, 143)
        assert all("Terminated. The same command continues the run." in text for text in (said, own))
    else:
        assert (first, second) == (2, -9)
        assert "Error: Process 2 of 2 has ended" in said
        assert "TIP: The same command goes on" in said


@pytest.mark.slow
def test_the_error_of_one_process_is_told_by_both(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos")
    start = time.monotonic()
    (first, said), (second, own) = ended(launch(2, "error", tmp_path))
    assert time.monotonic() - start < 60
    assert (first, second) == (1, 1)
    assert "Process 2 of 2 has ended: ValueError: something of its own." in said
    assert "ValueError: something of its own" in own


# -- scoring together


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_is_killed_ends_a_search_with_a_message(tmp_path: Path, dead: int) -> None:
    """Also where the others score, or wait for something to score."""
    processes = start(3, tmp_path, "slow")
    ready(tmp_path, 3)
    end = time.monotonic() + 60
    while not all((tmp_path / f"scored-{rank}").exists() for rank in range(3)):
        assert time.monotonic() < end
        time.sleep(0.05)
    processes[dead].kill()
    for rank, (code, text) in enumerate(ended(processes)):
        assert code == (-9 if rank == dead else 1)
        assert rank == dead or f"Process {dead + 1} of 3 has ended" in text


def test_the_processes_of_a_run_search_as_one_does(tmp_path: Path) -> None:
    assert [code for code, _ in ended(start(3, tmp_path, "search"))] == [0, 0, 0]
    alone = search(prompt_score, PromptSpace(4), **OPTIONS)
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(json.dumps(plain(alone)))
    assert all((tmp_path / f"scored-{rank}").exists() for rank in range(3)), "or one of them has done nothing"
