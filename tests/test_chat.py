"""Talking with a model: what it reads is the conversation, and the answer is what transformers itself would give."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glora.backbones import load_backbone
from glora.errors import ConfigError, DataError, RunError
from glora.runs.chat import Chat, Reply
from glora.runs.open_chat import open_chat
from glora.tasks.rows import Message, TextReading
from language import tiny_causal, tiny_encoder, tiny_t5

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("chat"))


def chat(folder: Path, *, reading: TextReading | None = None, system: str = "", **reply: Any) -> Chat:
    backbone = load_backbone(str(folder), num_classes=None)
    assert backbone.preprocess is not None
    how = Reply(**{"most": 12, **reply})
    return Chat(backbone.model, backbone.preprocess, reading or TextReading(), system=system, reply=how)  # type: ignore[arg-type]


def greedy(talk: Chat, text: str, most: int = 12) -> str:
    """What the likeliest tokens are, one after the other, by whole forward passes."""
    tokenizer = talk.preprocess.tokenizer
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(talk.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    said: str = tokenizer.decode(ids[start:], skip_special_tokens=True)
    return said


def test_the_likeliest_answer_to_a_conversation_as_the_template_has_it(folder: Path) -> None:
    talk = chat(folder, system="Be red.")
    pieces: list[str] = []
    first = talk.answer("What is red?", pieces.append)
    assert len(pieces) > 2
    assert "".join(pieces) == first != ""
    start = "<|im_start|>system\nBe red.<|im_end|>\n<|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\n"
    assert first == greedy(talk, start)
    second = talk.answer("And blue?")
    then = f"{start}{first}<|im_end|>\n<|im_start|>user\nAnd blue?<|im_end|>\n<|im_start|>assistant\n"
    assert second == greedy(talk, then)
    talk.reset()
    assert talk.answer("What is red?") == first


def test_a_model_without_a_template_reads_alpacas_prompt(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    (folder / "chat_template.jinja").unlink()
    talk = chat(folder)
    begins = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhat is red?\n\n### Response:\n"
    )
    assert talk.answer("What is red?") == greedy(talk, begins)
    other = chat(folder, reading=TextReading(template="plain"))
    assert other.answer("What is red?") == greedy(other, "What is red?\n")


def test_drawn_answers_hang_on_the_seed_alone(folder: Path) -> None:
    def drawn(seed: int) -> str:
        return chat(folder, temperature=1.5, seed=seed, most=30).answer("What is red?")

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert drawn(0) == first
    assert drawn(1) != first
    talk = chat(folder, temperature=1.5, most=30)
    assert talk.answer("What is red?") != talk.answer("What is red?")


def test_the_answer_ends_where_the_turn_does_and_where_it_is_stopped(folder: Path) -> None:
    talk = chat(folder, most=40)
    assert talk.tokens.ends() == [talk.preprocess.tokenizer.eos_token_id]
    whole = talk.answer("What is red?")
    ids = torch.tensor([talk.tokens.asked(talk.turns[:1])])
    (first,) = talk.model.generate(ids, max_new_tokens=1, do_sample=False)[0, ids.shape[1] :].tolist()  # type: ignore[operator]
    talk.reset()
    talk.model.generation_config.eos_token_id = first  # type: ignore[union-attr]
    part = talk.answer("What is red?")
    assert whole.startswith(part)
    assert part != whole

    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) == 3

    other = chat(folder, most=40)
    whole = chat(folder, most=40).answer("What is red?")
    part = other.answer("What is red?", stopped=stopped)
    assert whole.startswith(part)
    assert len(asked) == 3
    assert other.turns[-1] == Message("assistant", part)


def test_a_turn_that_ends_in_another_token_than_a_text_is_known(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    ends = (folder / "chat_template.jinja").read_text().replace("<|im_end|>", "<|endoftext|>")
    (folder / "chat_template.jinja").write_text(ends)
    talk = chat(folder)
    tokenizer = talk.preprocess.tokenizer
    assert set(talk.tokens.ends()) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")}


def test_old_turns_are_forgotten_where_the_conversation_is_too_long(folder: Path) -> None:
    talk = chat(folder, most=30)
    for _ in range(12):
        talk.answer("What is the capital of France?")
    assert talk.forgotten > 0
    assert talk.forgotten % 2 == 0
    with pytest.raises(DataError, match=r"The text is [\d,]+ tokens long\. The model reads 256"):
        chat(folder).answer("red " * 300)
    assert chat(folder, most=1000).answer("red " * 20)


def test_an_encoder_decoder_answers_and_a_classifier_does_not(tmp_path: Path) -> None:
    talk = chat(tiny_t5(tmp_path / "t5"))
    pieces: list[str] = []
    said = talk.answer("What is red?", pieces.append)
    assert said == "".join(pieces)
    tokenizer = talk.preprocess.tokenizer
    ids = talk.model.generate(**tokenizer("What is red?", return_tensors="pt"), max_new_tokens=12, do_sample=False)  # type: ignore[operator]
    assert said == tokenizer.decode(ids[0], skip_special_tokens=True)
    backbone = load_backbone(str(tiny_encoder(tmp_path / "bert")), num_classes=2)
    with pytest.raises(DataError, match="classifies texts, and does not answer"):
        Chat(backbone.model, backbone.preprocess, TextReading())  # type: ignore[arg-type]


def test_what_a_template_refuses_is_told_and_forgotten(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages }}"
    (folder / "chat_template.jinja").write_text(template)
    talk = chat(folder, system="Be red.")
    with pytest.raises(DataError, match=r"conversation is refused by the chat template.*no system"):
        talk.answer("What is red?")
    assert not talk.turns


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}")
    with pytest.raises(RunError, match=r"chats.jsonl' is a file\."):
        open_chat(tmp_path / "chats.jsonl")


def test_half_a_character_is_told_and_forgotten(folder: Path) -> None:
    talk = chat(folder)
    with pytest.raises(DataError, match=r"conversation has '\\ud83d', which is a part of a character"):
        talk.answer("What is red? \ud83d")
    assert not talk.turns


@pytest.mark.parametrize(("setting", "value"), [("most", 0), ("temperature", -1.0)])
def test_odd_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        Reply(**{setting: value})


def test_characters_of_several_tokens_come_whole(folder: Path) -> None:
    talk = chat(folder)
    pieces: list[str] = []
    ids = talk.preprocess.tokenizer("été – 東京 ok", add_special_tokens=False)["input_ids"]
    from glora.runs.chat import _Pieces

    streamer = _Pieces(talk.preprocess.tokenizer, pieces.append, lambda: False)
    for each in iterated([[0, 1], *([token] for token in ids)]):
        streamer.put(each)
    streamer.end()
    assert "".join(pieces) == streamer.text == "été – 東京 ok"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 3


def iterated(rows: list[list[int]]) -> Iterator[torch.Tensor]:
    yield from map(torch.tensor, rows)


# The command.


def run_in_terminal(folder: Path, keys: list[tuple[str, bytes]], *more: str, timeout: float = 120) -> str:
    """What a terminal shows: each of `keys` is typed when what it matches has been shown."""
    read, write = pty.openpty()
    words = [sys.executable, "-m", "glora", "chat", str(folder), *more]
    process = subprocess.Popen(words, stdin=write, stdout=write, stderr=write, start_new_session=True, close_fds=True)
    os.close(write)
    shown, waiting, end = "", list(keys), time.monotonic() + timeout
    after = 0
    try:
        while time.monotonic() < end:
            ready, _, _ = select.select([read], [], [], 0.1)
            if ready:
                try:
                    shown += os.read(read, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
            if waiting and (found := re.search(waiting[0][0], shown[after:], re.DOTALL)):
                _, typed = waiting.pop(0)
                after += found.end()
                if typed == b"\x03":
                    os.kill(process.pid, signal.SIGINT)
                else:
                    os.write(read, typed)
        assert process.wait(timeout=10) == 0, shown
    finally:
        process.kill()
        os.close(read)
    assert not waiting, (waiting, shown)
    return shown


@pytest.mark.slow
def test_a_terminal(folder: Path) -> None:
    keys = [
        ("stops an answer.\r\n> ", b"What is red?\n"),
        ("> ", b"/reset\n"),
        ("Forgotten.", b"/what\n"),
        ("There is no /what", b"What is blue?\n"),
        ("> ", b"/exit\n"),
    ]
    shown = run_in_terminal(folder, keys, "--max-tokens", "8")
    assert "/exit or Ctrl-D leaves" in shown
    assert chat(folder, most=8).answer("What is red?").strip().split("\n")[0][:5] in shown


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(folder: Path, tmp_path: Path) -> None:
    long = tiny_causal(tmp_path, max_position_embeddings=100_000, eos_token_id=None)
    settings = json.loads((long / "tokenizer_config.json").read_text())
    (long / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 100_000}))
    keys = [("stops an answer.\r\n> ", b"What is red?\n"), (r"\?\r\n.{20}", b"\x03"), ("Stopped.\r\n> ", b"\x04")]
    run_in_terminal(long, keys, "--max-tokens", "90000", "--temperature", "2")


def test_one_answer_is_all_that_stdout_gets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from glora.cli.chat import one_answer

    one_answer(chat(folder), "What is red?")
    out, err = capsys.readouterr()
    assert out == chat(folder).answer("What is red?") + "\n"
    assert err == ""


def test_lines_that_are_piped_in_are_one_conversation(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glora.cli.chat import talk

    lines = ["What is red?", "", "red " * 300, "And blue?", "/reset", "/exit", "not this"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    talk(chat(folder))
    out, err = capsys.readouterr()
    other = chat(folder)
    assert out == f"{other.answer('What is red?')}\n{other.answer('And blue?')}\n"
    assert "tokens long" in err and "Forgotten." in err
