"""Texts as data: every layout is read, every fault told with its place, and what is learned is what was answered."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import language
from glora.cli.app import app
from glora.errors import ConfigError, DataError
from glora.tasks.batching import lengths_of, weights_of
from glora.tasks.data.text import Text
from glora.tasks.data.text_files import read_records
from glora.tasks.images import ImageSet
from glora.tasks.objective import Measured, Objective
from glora.tasks.objectives.choose import Choose
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.language import Language
from glora.tasks.objectives.multilabel import MultiLabel
from glora.tasks.objectives.regress import Regress
from glora.tasks.objectives.verbalize import Verbalize
from glora.tasks.splits import stratified_split
from glora.tasks.task import Task, load_task, source_class
from glora.tasks.texts import (
    IGNORED,
    Dialog,
    DialogSet,
    Labelled,
    LabelledSet,
    Message,
    Question,
    QuestionSet,
    TextPreprocess,
    TextReading,
)
from glora.tasks.visible import visible

LLAMA2 = (  # strict: turns must alternate, the system is put into the first; every answer ends with the eos
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (  # no role for the system; the assistant is called model
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '[' + role + ']\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[model]\n' }}{% endif %}"
)
FORGETS = (  # leaves the thoughts of earlier answers out
    "{% for message in messages %}{{ '[' + message['role'] + ']\n' }}"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)
UNENDED = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEMPLATES = {"chatml": language.CHATML, "llama2": LLAMA2, "gemma": GEMMA}
STOP = language.ENDS
TALK = (
    Message("user", "Name a colour."),
    Message("assistant", "Red, of course."),
    Message("user", "And the capital of France?"),
    Message("assistant", "Paris"),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return language.tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of an encoder-decoder."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(language.tiny_t5(tmp_path_factory.mktemp("t5")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(language.tiny_encoder(tmp_path_factory.mktemp("bert")))


def causal(tokenizer: Any, template: str | None = None, most: int = 256) -> TextPreprocess:
    found = tokenizer
    if template is not None:
        found = type(tokenizer)(
            tokenizer_object=tokenizer.backend_tokenizer,
            **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")},
        )
        found.chat_template = template or None
    return TextPreprocess(found, "tiny", "causal", most)


def read(preprocess: TextPreprocess, *rows: Any, **reading: Any) -> tuple[list[str], list[str]]:
    """What the model reads of each row, and what it learns, as text again."""
    split = DialogSet(rows, reading=TextReading(**reading)).prepared(preprocess)
    batch = split.batch(range(len(split)))
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    decode = preprocess.tokenizer.decode
    whole = [decode(row[there]) for row, there in zip(ids, mask, strict=True)]
    return whole, [decode(row[row != IGNORED]) for row in batch.targets]


# What is learned.


@pytest.mark.parametrize(("name", "between"), [("chatml", ""), ("gemma", ""), ("llama2", " ")])
def test_answers_and_the_tokens_that_end_them_are_learned_whatever_the_template(tokenizer, name, between):
    whole, learned = read(causal(tokenizer, TEMPLATES[name]), Dialog(TALK))
    answers = ["Red, of course.", "Paris"]
    assert learned == ["".join(f"{between}{answer}{between}{STOP}" for answer in answers)]
    assert whole[0].endswith(f"Paris{between}{STOP}")  # nothing is read behind what is learned


def test_the_learned_tokens_one_by_one(tokenizer):
    split = DialogSet([Dialog(TALK)]).prepared(causal(tokenizer))
    batch = split.batch([0])
    ids, targets = batch.inputs["input_ids"][0].tolist(), batch.targets[0].tolist()
    pieces = [tokenizer(f"<|im_start|>{each.role}\n", add_special_tokens=False)["input_ids"] for each in TALK]
    said = [tokenizer(f"{each.text}{STOP}", add_special_tokens=False)["input_ids"] for each in TALK]
    end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    expected, masks = [], []
    for message, head, text in zip(TALK, pieces, said, strict=True):
        expected += [*head, *text, *end]
        masks += [IGNORED] * len(head) + (text if message.role == "assistant" else [IGNORED] * len(text))
        masks += [IGNORED] * len(end)
    assert ids == expected[: len(ids)] and targets == masks[: len(ids)]
    assert len(ids) == len(expected) - len(end)


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<|>"), min_size=1)
texts = words.filter(lambda text: text.strip() == text and text != "")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), name=st.sampled_from(sorted(TEMPLATES)))
def test_what_is_learned_decodes_to_the_answers(tokenizer, turns, name):
    talk = [m for asked, said in turns for m in (Message("user", asked), Message("assistant", said))]
    _, learned = read(causal(tokenizer, TEMPLATES[name], most=10_000), Dialog(tuple(talk)), max_length=10_000)
    space = " " if name == "llama2" else ""
    assert learned == ["".join(f"{space}{said}{space}{STOP}" for _, said in turns)]


def test_training_on_prompts_is_asked_for(tokenizer):
    split = DialogSet([Dialog(TALK)], reading=TextReading(train_on_prompt=True)).prepared(causal(tokenizer))
    batch = split.batch([0])
    assert batch.targets[0, 0] == IGNORED  # nothing comes before it
    assert torch.equal(batch.targets[0, 1:], batch.inputs["input_ids"][0, 1:])


def test_what_the_system_and_tools_say_is_read_and_not_learned(tokenizer):
    talk = (Message("system", "Be kind."), *TALK[:1], Message("assistant", "Wait."), Message("tool", "blue"), TALK[3])
    whole, learned = read(causal(tokenizer), Dialog(talk))
    assert learned == [f"Wait.{STOP}Paris{STOP}"]
    assert "system\nBe kind." in whole[0] and "tool\nblue" in whole[0]


def test_an_answer_may_be_left_out_of_what_is_learned(tokenizer):
    talk = (TALK[0], TALK[1]._replace(learned=False), *TALK[2:])
    assert read(causal(tokenizer), Dialog(talk))[1] == [f"Paris{STOP}"]


def test_an_opening_turn_of_the_assistant_answers_nothing(tokenizer):
    split = DialogSet([Dialog((Message("system", "Be kind."), TALK[1], *TALK[2:]))]).prepared(causal(tokenizer))
    targets = split.batch([0]).targets[0]
    assert tokenizer.decode(targets[targets != IGNORED]) == f"Paris{STOP}"
    assert any("opening turn of the assistant" in note for note in split.notes)
    with pytest.raises(DataError, match="no turn of an assistant"):
        DialogSet([Dialog(TALK[1:3])]).prepared(causal(tokenizer))


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokenizers_that_mark_spaces(name):
    """As SentencePiece's: a space is part of the next word, and one is put before the first."""
    import tokenizers
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", language.STARTS, STOP]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([*language.SENTENCES, "[INST] [/INST] [user] [model] \n Red, of course. Paris"], trainer)
    names = {"unk_token": "<unk>", "bos_token": language.STARTS, "eos_token": STOP, "pad_token": STOP}
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=TEMPLATES[name], **names)
    _, learned = read(TextPreprocess(found, "tiny", "causal", 256), Dialog(TALK))
    assert learned[0].replace(" ", "") == f"Red,ofcourse.{STOP}Paris{STOP}"


def test_without_a_chat_template_it_is_alpacas_prompt(tokenizer):
    bare = causal(tokenizer, "")
    whole, learned = read(bare, Dialog((Message("user", "Say it.", "blue"), Message("assistant", "It is."))))
    assert learned == [f"It is.{STOP}"]
    assert whole[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSay it.\n\n### Input:\nblue\n\n"
        f"### Response:\nIt is.{STOP}"
    )
    whole, learned = read(bare, Dialog(TALK))
    assert learned == [f"Red, of course.{STOP}Paris{STOP}"] and whole[0].count("### Instruction:") == 2


def test_plain_text_is_learned_whole_and_ends(tokenizer):
    whole, learned = read(causal(tokenizer), Dialog((Message("text", "one two three"),)))
    assert whole == [f"one two three{STOP}"]
    assert learned[0] and whole[0].endswith(learned[0])
    assert read(causal(tokenizer), Dialog((Message("text", f"one two{STOP}"),)))[0] == [f"one two{STOP}"]


def test_a_prompt_and_its_completion_are_taken_as_they_are(tokenizer):
    row = Dialog((Message("prompt", "The capital is"), Message("completion", " Paris")))
    assert read(causal(tokenizer), row) == ([f"The capital is Paris{STOP}"], [f" Paris{STOP}"])
    whole, _ = read(causal(tokenizer), row, template="chat")
    assert whole[0].startswith("<|im_start|>user\nThe capital is<|im_end|>")


def test_a_space_on_the_border_counts_to_the_completion(tokenizer):
    row = Dialog((Message("prompt", "The capital is "), Message("completion", "Paris")))
    whole, learned = read(causal(tokenizer), row)
    assert whole == [f"The capital is Paris{STOP}"] and learned[0].lstrip() == f"Paris{STOP}"


def with_bos(tokenizer: Any) -> Any:
    """The tokenizer, putting a bos before every text."""
    import tokenizers

    other = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    start = (language.STARTS, tokenizer.bos_token_id)
    other.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start[0]} $A", pair=f"{start[0]} $A $B", special_tokens=[start]
    )
    names = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")}
    return type(tokenizer)(tokenizer_object=other, chat_template=GEMMA, **names)


def test_there_is_one_bos(tokenizer):
    reads = TextPreprocess(with_bos(tokenizer), "tiny", "causal", 256)
    rows = [Dialog((Message("text", text),)) for text in ("one two", f"{language.STARTS}one two")]
    for whole in read(reads, *rows, Dialog(TALK))[0]:
        assert whole.startswith(language.STARTS) and whole.count(language.STARTS) == 1
    asked = QuestionSet([Question("one", ("two", "three"), 0)]).prepared(reads).batch([0])
    assert (asked.inputs["input_ids"] == reads.tokenizer.bos_token_id).sum(-1).tolist() == [1, 1]


def test_padding_is_masked_by_length_also_where_it_is_the_token_that_ends(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    split = DialogSet([Dialog(TALK), Dialog(TALK[:2])]).prepared(causal(tokenizer))
    batch = split.batch([0, 1])
    assert batch.inputs["attention_mask"].sum(-1).tolist() == split.lengths
    last = split.lengths[1] - 1
    assert batch.targets[1, last] == tokenizer.eos_token_id  # learned
    assert (batch.targets[1, last + 1 :] == IGNORED).all()
    assert split.weights is not None
    assert split.weights.tolist() == (batch.targets != IGNORED).sum(-1).tolist()


def test_lengths_and_weights_are_what_steps_are_made_by(tokenizer):
    split = DialogSet([Dialog(TALK), Dialog(TALK[:2])]).prepared(causal(tokenizer))
    assert isinstance(split, Measured)
    assert lengths_of(split) == split.lengths and torch.equal(weights_of(split, [1]), split.weights[1:])
    both = split.subset([1]).joined(split.subset([0]))
    assert both.lengths == split.lengths[::-1]
    assert torch.equal(both.batch([1]).targets, split.batch([0]).targets)


def test_a_template_that_ends_no_turn_is_told(tokenizer):
    split = DialogSet([Dialog(TALK)]).prepared(causal(tokenizer, UNENDED))
    targets = split.batch([0]).targets[0]
    assert targets[-1] == tokenizer.eos_token_id
    assert any("ends no turn" in note for note in split.notes)


# Templates that do not go along.


@pytest.mark.parametrize(
    ("template", "talk", "said"),
    [
        (LLAMA2, (TALK[0], TALK[0], TALK[1]), "must alternate"),
        (GEMMA, (Message("system", "Be kind."), *TALK), "System role not supported.*data.system=user"),
        (FORGETS, (TALK[0], Message("assistant", "hm</think>Red"), *TALK[2:]), "tiny renders.*turn 2.*turns=apart"),
    ],
)
def test_a_template_that_does_not_go_along_is_told_with_the_row(tokenizer, template, talk, said):
    rows = [Dialog(TALK, "a.json, line 1"), Dialog(talk, "a.json, line 7")]
    with pytest.raises(DataError, match=r"^a.json, line 7, .*chat template of tiny.*") as error:
        DialogSet(rows).prepared(causal(tokenizer, template))
    assert error.match(f"(?s){said}")
    left = DialogSet(rows, reading=TextReading(on_bad_row="skip")).prepared(causal(tokenizer, template))
    assert len(left) == 1 and "Skipped 1 of 2 rows" in left.notes[0] and "line 7" in left.notes[0]


def test_a_token_that_ends_the_whole_conversation_ends_the_last_turn(tokenizer):
    """As in Phi-3's template, whose turns end with a token of their own."""
    template = language.CHATML.replace(STOP, "<|endoftext|>")
    at_end = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    _, learned = read(causal(tokenizer, template + at_end), Dialog(TALK))
    assert learned == [f"Red, of course.<|endoftext|>Paris<|endoftext|>\n{STOP}"]


def test_taken_apart_every_answer_is_learned_as_it_would_be_given(tokenizer):
    talk = (TALK[0], Message("assistant", "hm</think>Red"), *TALK[2:])
    whole, learned = read(causal(tokenizer, FORGETS), Dialog(talk), turns="apart")
    assert learned == [f"hm</think>Red{STOP}", f"Paris{STOP}"]
    assert "hm" in whole[0] and "hm" not in whole[1]


@pytest.mark.parametrize(("how", "begins"), [("user", "[user]\nBe kind.\n\nName"), ("drop", "[user]\nName")])
def test_the_system_may_be_put_before_the_user_or_left_out(tokenizer, how, begins):
    whole, _ = read(causal(tokenizer, GEMMA), Dialog((Message("system", "Be kind."), *TALK)), system=how)
    assert whole[0].removeprefix(language.STARTS).startswith(begins)


def test_a_template_of_ones_own(tokenizer, tmp_path):
    (tmp_path / "own.jinja").write_text(GEMMA)
    reading = Text(source="chat.json", template=str(tmp_path / "own.jinja")).reading
    whole, _ = read(causal(tokenizer, ""), Dialog(TALK), template=reading.template)
    assert "[model]" in whole[0]
    with pytest.raises(ConfigError, match=r"data.template='no.jinja' cannot be read"):
        _ = Text(source="chat.json", template="no.jinja").reading
    with pytest.raises(DataError, match=r"chat template in data\.template is no Jinja: "):
        read(causal(tokenizer, ""), Dialog(TALK), template="{% if", on_bad_row="skip")
    with pytest.raises(DataError, match="chat template of tiny is no Jinja: "):
        read(causal(tokenizer, "{% if"), Dialog(TALK))
    with pytest.raises(DataError, match="has no chat template"):
        read(causal(tokenizer, ""), Dialog(TALK), template="chat")


# Lengths.


def test_long_rows_are_told_cut_or_left_out(tokenizer):
    long = Dialog((TALK[0], Message("assistant", "one two three four " * 30)), "a.json, line 3")
    with pytest.raises(
        DataError, match=r"a.json, line 3, has \d+ tokens, more than 64.*data.max_length.*on_long_row=cut"
    ):
        read(causal(tokenizer, most=64), long, Dialog(TALK[:2]))
    cut = DialogSet([long], reading=TextReading(on_long_row="cut")).prepared(causal(tokenizer, most=64))
    assert cut.lengths == [64] and "Cut to 64 tokens: 1 row." in cut.notes
    asks = Dialog((Message("user", "one two three four " * 30), TALK[1]), "a.json, line 4")
    with pytest.raises(DataError, match="none of the first is learned"):
        read(causal(tokenizer, most=64), asks, on_long_row="cut")
    skip = DialogSet([long, Dialog(TALK[:2])], reading=TextReading(on_bad_row="skip")).prepared(
        causal(tokenizer, most=64)
    )
    assert len(skip) == 1 and "1 too long (first: a.json, line 3)" in skip.notes[0]


def test_a_long_plain_text_goes_on_and_every_token_is_learned_once(tokenizer):
    text = "one two three four five " * 20
    whole = DialogSet([Dialog((Message("text", text),))]).prepared(causal(tokenizer, most=2000))
    parts = DialogSet([Dialog((Message("text", text),))]).prepared(causal(tokenizer, most=40))
    assert len(parts) > 1 and max(parts.lengths) <= 40
    learned = [token for row in parts.batch(range(len(parts))).targets.tolist() for token in row if token != IGNORED]
    assert learned == [token for token in whole.batch([0]).targets[0].tolist() if token != IGNORED]


def test_the_length_is_the_models_and_no_more(tokenizer):
    assert TextReading().limit(causal(tokenizer, most=100)) == 100
    assert TextReading().limit(TextPreprocess(tokenizer, "tiny", "causal", None)) == 2048
    assert TextReading().limit(causal(tokenizer, most=100_000)) == 2048
    assert TextReading(max_length=3000).limit(causal(tokenizer, most=100_000)) == 3000
    with pytest.raises(DataError, match="max_length=300 is more than tiny takes"):
        TextReading(max_length=300).limit(causal(tokenizer, most=100))


# Other forms.


def test_an_encoder_decoder_reads_the_prompt_and_learns_each_answer(pairs):
    reads = TextPreprocess(pairs, "t5", "encoder_decoder", 256)
    split = DialogSet([Dialog(TALK)]).prepared(reads)
    batch = split.batch([0, 1])
    inputs = [pairs.decode(row[row != pairs.pad_token_id]) for row in batch.inputs["input_ids"]]
    assert inputs == ["Name a colour.</s>", "Name a colour.\nRed, of course.\nAnd the capital of France?</s>"]
    assert [pairs.decode(row[row != IGNORED]) for row in batch.targets] == ["Red, of course.</s>", "Paris</s>"]
    assert "Read as 2 rows: 1 conversation." in split.notes
    with pytest.raises(DataError, match="train_on_prompt"):
        DialogSet([Dialog(TALK)], reading=TextReading(train_on_prompt=True)).prepared(reads)


def test_questions_are_scored_after_their_prompts(tokenizer):
    rows = [Question("Name a colour: ", ("red", "blue"), 1), Question("One", ("two", "three", "four"), 0)]
    split = QuestionSet(rows).prepared(causal(tokenizer))
    batch = split.batch([0, 1])
    assert batch.rows == 3 and len(batch.inputs["input_ids"]) == 6
    said = [tokenizer.decode(row[row != IGNORED]) for row in batch.targets.tokens]
    assert said == ["  red", "  blue", "", " two", " three", " four"]  # the space at the end is the choice's
    assert batch.targets.answer.tolist() == [1, 0] and batch.targets.sizes.tolist() == [[3, 4, 0], [3, 5, 4]]
    assert batch.inputs["attention_mask"].sum(-1)[2] == 1
    assert split.subset([0]).batch([0]).rows == 3  # the same for all of a split
    scored = batch.targets.tokens != IGNORED
    assert torch.equal(batch.targets.tokens[scored], batch.inputs["input_ids"][scored])


def test_long_questions_are_cut_at_the_beginning_and_empty_ones_begin_with_a_token(tokenizer):
    split = QuestionSet([Question("one two three " * 40 + "four", ("red", "blue"), 1)]).prepared(
        causal(tokenizer, most=32)
    )
    batch = split.batch([0])
    assert batch.inputs["input_ids"].shape == (2, 32) and "Cut to 32 tokens: 1 row." in split.notes
    assert tokenizer.decode(batch.targets.tokens[1][batch.targets.tokens[1] != IGNORED]) == " blue"
    batch = QuestionSet([Question("", ("red", "blue"), 1)]).prepared(causal(tokenizer)).batch([0])
    assert (batch.inputs["input_ids"][:, 0] == tokenizer.bos_token_id).all()
    assert (batch.targets.tokens[:, 0] == IGNORED).all() and (batch.targets.tokens[:, 1] != IGNORED).all()


def test_labelled_texts_are_read_as_the_tokenizer_reads_them_and_long_ones_cut(encoder):
    rows = [Labelled("one two", "three"), Labelled("four " * 80, "five")]
    split = LabelledSet(rows, torch.tensor([1, 0])).prepared(TextPreprocess(encoder, "bert", "encoder", 32))
    batch = split.batch([0, 1])
    assert set(batch.inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    own = encoder("one two", "three")
    for name, values in own.items():
        assert batch.inputs[name][0, : len(values)].tolist() == values
        assert name == "input_ids" or not batch.inputs[name][0, len(values) :].any()
    assert split.lengths[1] == 32 and "Cut to 32 tokens: 1 row." in split.notes
    assert batch.targets.tolist() == [1, 0]


def test_texts_need_a_model_that_reads_them(tokenizer):
    with pytest.raises(DataError, match="the model reads no texts"):
        DialogSet([Dialog(TALK)]).prepared(None)
    with pytest.raises(DataError, match="The data is images, and the model 'tiny' reads texts"):
        ImageSet([np.zeros((2, 2), np.uint8)], [0]).prepared(causal(tokenizer))
    with pytest.raises(DataError, match="not tokenised yet"):
        DialogSet([Dialog(TALK)]).batch([0])


# Layouts.

ANSWERED = (("user", "Who?"), ("assistant", "He."))
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "alpaca": ({"instruction": "Who?", "input": "", "output": "He."}, "alpaca"),
    "alpaca with more": ({"instruction": "Who?", "output": "He.", "input": "", "text": "all of it"}, "alpaca"),
    "dolly": ({"instruction": "Who?", "context": "", "response": "He.", "category": "qa"}, "alpaca"),
    "prompt and response": ({"prompt": "Who?", "response": "He."}, "alpaca"),
    "question and answer": ({"question": "Who?", "answer": "He."}, "alpaca"),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "He."}]}, "sharegpt"),
    "messages": (
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]},
        "messages",
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]},
                {"role": "assistant", "content": "He."},
            ]
        },
        "messages",
    ),
    "lists of turns": (
        {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "He."}]},
        "completion",
    ),
}


def files(folder: Path, row: Mapping[str, Any], n: int = 12) -> Iterator[Path]:
    """Files with this row n times, in all formats that it can be in."""
    rows = [dict(row)] * n
    lines = "\n".join(map(json.dumps, rows))
    (folder / "a.json").write_text(json.dumps(rows, indent=2))
    (folder / "a.jsonl").write_text(lines)
    (folder / "wrapped.json").write_text(json.dumps({"data": rows}))
    (folder / "lines.json").write_text(lines)
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    yield from (folder / name for name in ("a.json", "a.jsonl", "wrapped.json", "lines.json", "a.jsonl.gz"))
    if all(isinstance(value, str) for value in row.values()):
        for name, sign in (("a.csv", ","), ("a.tsv", "\t"), ("semicolons.csv", ";")):
            with (folder / name).open("w", newline="") as table:
                writer = csv.DictWriter(table, list(row), delimiter=sign)
                writer.writeheader()
                writer.writerows(rows)
            yield folder / name


def rows_of(path: Path, objective: Objective | None = None, **given: Any) -> tuple[list[Any], list[str]]:
    kind = source_class({"source": str(path), **given})
    assert kind is Text
    examples, notes = kind(source=str(path), **given).load_all(objective or Language())
    return list(examples.rows), notes  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ROWS)
def test_every_layout_of_conversations_is_read_from_every_format(tmp_path, name):
    row, layout = ROWS[name]
    for path in files(tmp_path, row):
        found, notes = rows_of(path)
        assert [(each.role, each.text) for each in found[0].messages] == list(ANSWERED), path.name
        assert len(found) == 12 and f"Read as 12 {layout}." in notes, path.name
        assert found[0].where.startswith(path.name)
        assert Text.usual_objective({"source": str(path)}) == "language"


def test_turns_of_a_conversation_keep_what_templates_read(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    turns = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Who?"},
        call,
        {"role": "tool", "content": "he", "name": "f"},
        {"role": "assistant", "content": "He.", "weight": 0},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns, "tools": [{"name": "f"}]}))
    (row,), _ = rows_of(tmp_path / "a.jsonl")
    assert [each.role for each in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [each.answers for each in row.messages] == [False, False, True, False, False]
    assert json.loads(row.messages[2].extra)["tool_calls"][0]["function"]["name"] == "f"
    assert json.loads(row.tools) == [{"name": "f"}]


def test_history_and_system_of_alpacas_rows(tmp_path):
    row = {"instruction": "Who?", "output": "He.", "system": "Be kind.", "history": [["Hi", "Hello"]]}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    (found,), _ = rows_of(tmp_path / "a.json")
    assert [each.text for each in found.messages] == ["Be kind.", "Hi", "Hello", "Who?", "He."]


def test_pieces_that_are_taken_as_they_are(tmp_path):
    for path in files(tmp_path, {"prompt": "Who? ", "completion": "He."}):
        assert [each.role for each in rows_of(path)[0][0].messages] == ["prompt", "completion"]
    for path in files(tmp_path, {"text": "one two"}):
        assert rows_of(path)[0][0].messages == (Message("text", "one two"),)


@pytest.mark.parametrize(
    ("by", "expected"), [("line", ["one", "two", "three"]), ("paragraph", ["one\ntwo", "three"]), ("document", None)]
)
def test_plain_text_files(tmp_path, by, expected):
    (tmp_path / "a.txt").write_text(whole := "one\ntwo\n\nthree\n")
    found, _ = rows_of(tmp_path / "a.txt", sample_by=by)
    assert [row.messages[0].text for row in found] == (expected or [whole])
    if by == "line":
        assert [row.where for row in found] == ["a.txt, line 1", "a.txt, line 2", "a.txt, line 4"]


QUESTIONS: dict[str, dict[str, Any]] = {
    "mmlu": {"question": "Who?", "subject": "x", "choices": ["he", "she", "it"], "answer": 1},
    "arc": {"question": "Who?", "choices": {"text": ["he", "she", "it"], "label": ["A", "B", "C"]}, "answerKey": "B"},
    "arc with numbers": {
        "question": "Who?",
        "choices": {"text": ["he", "she", "it"], "label": list("123")},
        "answer": "2",
    },
    "hellaswag": {"ctx": "Who?", "endings": ["he", "she", "it"], "label": "1"},
    "the choice itself": {"question": "Who?", "options": ["he", "she", "it"], "answer": "she"},
    "a letter": {"question": "Who?", "choices": ["he", "she", "it"], "answer": "b"},
    "columns": {"question": "Who?", "A": "he", "B": "she", "C": "it", "answer": "B"},
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_layout_of_questions_is_read(tmp_path, name):
    for path in files(tmp_path, QUESTIONS[name]):
        found, notes = rows_of(path, Choose())
        assert found[0][:3] == ("Who?", ("he", "she", "it"), 1), path.name
        assert "Read as 12 question." in notes
        assert Text.usual_objective({"source": str(path)}) == "choose"


def test_a_question_is_put_as_the_settings_say(tmp_path):
    path = next(files(tmp_path, QUESTIONS["mmlu"]))
    found, _ = rows_of(path, Choose(), prompt="{subject}: {question}\nAnswer:")
    assert found[0].prompt == "x: Who?\nAnswer:"
    with pytest.raises(
        ConfigError, match=r"data.prompt.*does not fit a.json, line 2.*In braces stand fields: question"
    ):
        rows_of(path, Choose(), prompt="{topic}")


def test_names_of_ones_own(tmp_path):
    row = {"frage": "Who?", "antwort": "He."}
    path = next(files(tmp_path, row))
    with pytest.raises(DataError, match=r"of which no layout is known.*data.fields"):
        rows_of(path)
    found, _ = rows_of(path, fields={"instruction": "frage", "output": "antwort"})
    assert [each.text for each in found[0].messages] == ["Who?", "He."]
    with pytest.raises(ConfigError, match=r"data.fields names 'instructon'.*Did you mean 'instruction'"):
        rows_of(path, fields={"instructon": "frage"})
    with pytest.raises(ConfigError, match=r"names 'frage'.*other way round: data.fields='\{instruction: frage\}'"):
        rows_of(path, fields={"frage": "instruction"})
    with pytest.raises(ConfigError, match=r"names 'kunde'.*other way round: data.roles='\{kunde: user\}'"):
        rows_of(path, roles={"user": "kunde"})
    turns = [{"role": "kunde", "content": "Who?"}, {"role": "wir", "content": "He."}]
    path = next(files(tmp_path, {"messages": turns}))
    with pytest.raises(DataError, match=r"a.json, line 2, has the unknown role 'kunde'.*data.roles"):
        rows_of(path)
    found, _ = rows_of(path, roles={"kunde": "user", "wir": "assistant"})
    assert [each.role for each in found[0].messages] == ["user", "assistant"]


def test_a_layout_may_be_said(tmp_path):
    path = next(files(tmp_path, {"instruction": "Who?", "output": "He.", "text": "all of it"}))
    assert rows_of(path, layout="plain")[0][0].messages[0].text == "all of it"
    with pytest.raises(DataError, match=r"has no 'messages'|as nothing"):
        rows_of(path, layout="messages")


# Faults.

TURNS = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "He."}]
FAULTS: dict[str, tuple[Any, str]] = {
    "no JSON": ("{'a': 1}", "is no JSON"),
    "no object": ([1, 2], "is a list, where an object is needed"),
    "no field": ({"turns_": []}, "has its turns as nothing"),
    "no turns": ({"conversations": []}, "has no turns"),
    "turns of another type": ({"conversations": {"from": "human"}}, "has its turns as an object"),
    "a turn of another type": ({"conversations": ["Who?", "He."]}, "has a text as turn 1"),
    "an unknown role": ({"conversations": [{"from": "alien", "value": "x"}]}, "has the unknown role 'alien' in turn 1"),
    "no role": ({"conversations": [{"value": "x"}]}, r"has no role in turn 1\. Mend the row"),
    "an empty turn": ({"conversations": [TURNS[0], {"from": "gpt", "value": " "}]}, "has an empty turn 2"),
    "a number for a turn": ({"conversations": [TURNS[0], {"from": "gpt", "value": 4}]}, "has a number in turn 2"),
    "an image": (
        {"conversations": [{"from": "human", "value": [{"type": "image"}]}, TURNS[1]]},
        "has 'image' in turn 1",
    ),
    "no answer": ({"conversations": TURNS[:1]}, "has no turn of an assistant"),
    "turns as Python writes them": ({"conversations": str(TURNS)}, "has its turns as a text that is no JSON"),
    "a part without its text": (
        {"conversations": [{"from": "human", "value": [{"type": "text", "text": None}]}, TURNS[1]]},
        "has nothing in turn 1",
    ),
    "half a character": (
        '{"conversations": [{"from": "human", "value": "Who \\ud83d"}, {"from": "gpt", "value": "He."}]}',
        r"has '\\ud83d', which is a part of a character",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_conversation_is_told_with_its_place_or_left_out(tmp_path, name):
    fault, said = FAULTS[name]
    rows = [json.dumps({"conversations": TURNS})] * 5
    rows[3] = fault if isinstance(fault, str) else json.dumps(fault)
    (tmp_path / "chats.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=rf"^chats.jsonl, line 4, {said}") as error:
        rows_of(tmp_path / "chats.jsonl")
    assert "on_bad_row=skip" in error.value.remedy
    found, notes = rows_of(tmp_path / "chats.jsonl", on_bad_row="skip")
    assert len(found) == 4
    assert any(note.startswith("Skipped 1 of 5 rows: 1 ") and "(first: chats.jsonl, line 4)" in note for note in notes)


def test_a_first_row_that_says_nothing_of_the_layout_is_one_bad_row(tmp_path):
    rows = [{"id": 1}, *[{"conversations": TURNS}] * 5]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert Text.usual_objective({"source": str(tmp_path / "a.jsonl")}) == "language"
    with pytest.raises(DataError, match=r"^a\.jsonl, line 1, has its turns as nothing"):
        rows_of(tmp_path / "a.jsonl")
    found, notes = rows_of(tmp_path / "a.jsonl", on_bad_row="skip")
    assert len(found) == 5 and "Skipped 1 of 6 rows" in " ".join(notes)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:1] * 3)))
    with pytest.raises(DataError, match=r"has the fields id, of which no layout is known"):
        rows_of(tmp_path / "a.jsonl", on_bad_row="skip")


@pytest.mark.parametrize("first", ["[1, 2]", "[1, 2", '{"conversations": [{"from": "human"', "17"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_damaged_first_line_is_one_bad_row(tmp_path, name, first):
    rows = [first, *[json.dumps({"conversations": TURNS})] * 5]
    (tmp_path / name).write_text("\n".join(rows))
    with pytest.raises(DataError, match=f"^{name}, line 1, is "):
        rows_of(tmp_path / name)
    found, _ = rows_of(tmp_path / name, on_bad_row="skip")
    assert [row.where for row in found] == [f"{name}, line {place}" for place in range(2, 7)]


ALPACA_FAULTS = {
    "no output": ({"instruction": "Who?"}, "has no 'output'"),
    "empty": ({"instruction": "Who?", "output": ""}, "has an empty 'output'"),
    "a number": ({"instruction": "Who?", "output": 4}, "has 'output' as a number, not as a text"),
    "history": ({"instruction": "Who?", "output": "He.", "history": ["x"]}, "has a history that is no list of pairs"),
}
QUESTION_FAULTS = {
    "no answer": ({**QUESTIONS["mmlu"], "answer": None}, "has nothing for an answer"),
    "another answer": ({**QUESTIONS["mmlu"], "answer": "they"}, "has the answer 'they', and the choices 'he', 'she'"),
    "a number too high": ({**QUESTIONS["mmlu"], "answer": 3}, "has the answer 3"),
    "one choice": ({**QUESTIONS["mmlu"], "choices": ["he"]}, "has 1 choices"),
    "an empty choice": ({**QUESTIONS["mmlu"], "choices": ["he", ""]}, "has an empty choice"),
    "no list": ({**QUESTIONS["mmlu"], "choices": "he, she"}, "has a text for choices"),
}


@pytest.mark.parametrize("name", ALPACA_FAULTS)
def test_a_fault_of_alpacas_rows(tmp_path, name):
    check_fault(tmp_path, {"instruction": "Who?", "output": "He."}, *ALPACA_FAULTS[name], Language())


@pytest.mark.parametrize("name", QUESTION_FAULTS)
def test_a_fault_of_questions(tmp_path, name):
    check_fault(tmp_path, QUESTIONS["mmlu"], *QUESTION_FAULTS[name], Choose())


def check_fault(folder: Path, good: Any, fault: Any, said: str, objective: Objective) -> None:
    (folder / "a.json").write_text(json.dumps([good, good, fault, good], indent=None).replace("}, {", "},\n{"))
    with pytest.raises(DataError, match=rf"^a.json, line 3, {said}"):
        rows_of(folder / "a.json", objective)
    found, notes = rows_of(folder / "a.json", objective, on_bad_row="skip")
    assert len(found) == 3 and any("Skipped 1 of 4 rows" in note for note in notes)


def test_all_causes_are_counted(tmp_path):
    rows = [{"conversations": TURNS}] * 6 + [{"conversations": []}] * 2 + [{"conversations": TURNS[:1]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, notes = rows_of(tmp_path / "a.jsonl", on_bad_row="skip")
    counted = "Skipped 3 of 9 rows: 2 empty (first: a.jsonl, line 7), 1 without an answer (first: a.jsonl, line 9)."
    assert counted in notes
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": []}))
    with pytest.raises(DataError, match="has no turns"):
        rows_of(tmp_path / "a.jsonl", on_bad_row="skip")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"text": "a"},\n{"text": "b"', "line 2, column [0-9]+, is no JSON"),
        ("a.json", '[{"text": "a"},\n{"text": "b"}', "ends before its list does"),
        ("a.json", '[{"text": "a"},\n{"text": "b"}]\n[{"text": "c"}]', "line 3, goes on after its list has ended"),
        ("a.json", "", "is empty"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.csv", "text,text\na,b\n", "several columns 'text'"),
        ("a.tsv", "text\tlabel\n", "no lines below its header"),
        ("a.tsv", 'text\tlabel\n"a\tb\n', "line 2, cannot be read"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        Text(source=str(tmp_path / name)).load_all(Language())


def test_a_line_of_a_table_with_another_number_of_values(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none two three,x\nfour, five, six,y\nseven eight nine,y\n")
    with pytest.raises(DataError, match=r"a.csv, line 3, has 4 values, and the header has 2"):
        rows_of(tmp_path / "a.csv", Classify(classes=("x", "y")))
    found, _ = rows_of(tmp_path / "a.csv", Classify(classes=("x", "y")), on_bad_row="skip")
    assert [row.where for row in found] == ["a.csv, line 2", "a.csv, line 4"]


def test_line_ends_in_values_and_very_long_values(tmp_path):
    limit = csv.field_size_limit()
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'text,label\n"one\ntwo three",x\n"{long}",y\nsix,x\n')
    found, _ = rows_of(tmp_path / "a.csv", Classify(classes=("x", "y")))
    assert [row.where for row in found] == ["a.csv, line 2", "a.csv, line 4", "a.csv, line 5"]
    assert found[1].text == long and csv.field_size_limit() == limit


# Splits.


def talk(asked: str, said: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], **more}


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def asked(split: Any) -> set[str]:
    return {row.messages[0].text for row in split.rows}


def test_equal_prompts_and_parts_of_one_conversation_are_in_one_split(tmp_path):
    rows = [talk(f"Question {k % 30}", f"Answer {k}", conversation_id=f"{k // 2}") for k in range(45)]
    rows += [talk(f"Other {k}", f"Answer {k}") for k in range(55)]
    path = write(tmp_path / "a.jsonl", rows)
    task = load_task(path, objective=Language())
    splits = list(task.splits.values())
    assert [len(split) for split in splits] == [64, 16, 20]
    for one in splits:
        for other in splits:
            assert one is other or not asked(one) & asked(other)
            ids = [{row.group for row in split.rows if row.group} for split in (one, other)]
            assert one is other or not ids[0] & ids[1]
    assert any("no two splits share a group" in note for note in task.notes)
    again = load_task(path, objective=Language())
    assert [split.rows for split in again.splits.values()] == [split.rows for split in splits]
    seen = visible(task, seed=0, aside=6, folds=1)
    assert not asked(seen.val) & asked(seen.aside)
    folded = visible(task, seed=0, aside=0, folds=3)
    parts = [asked(folded.val.subset(places)) for places in folded.folds]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.integers(0, 12), min_size=20, max_size=40), seed=st.integers(0, 3))
def test_no_group_is_in_two_splits_and_sizes_are_near(groups, seed):
    single = [100 + k for k in range(40)]
    every = groups + single
    strata = [k % 3 for k in range(len(every))]
    sizes = (len(every) // 2, len(every) // 4)
    parts = stratified_split(strata, sizes, random.Random(seed), groups=every)
    assert parts == stratified_split(strata, sizes, random.Random(seed), groups=every)
    assert not {every[k] for k in parts[0]} & {every[k] for k in parts[1]}
    assert not set(parts[0]) & set(parts[1])
    assert [len(part) for part in parts] == list(sizes)  # what stands alone fills the gaps
    assert all({strata[k] for k in part} == {0, 1, 2} for part in parts)


def test_one_prompt_for_all_keeps_nothing_together(tmp_path):
    task = load_task(
        write(tmp_path / "a.jsonl", [talk("Tell a joke", f"Joke {k}") for k in range(50)]), objective=Language()
    )
    assert [len(split) for split in task.splits.values()] == [32, 8, 10]


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "val.jsonl", "test.jsonl"),
        ("train/a.jsonl", "validation/a.jsonl", "test/a.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/dev-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("my_train.jsonl", "my_valid.jsonl", "my_test.jsonl"),
    ],
)
def test_files_of_splits(tmp_path, names):
    for k, name in enumerate(names):
        write(tmp_path / name, [talk(f"{name} {j}", "Yes") for j in range(8 - k)])
    (tmp_path / "README.md").write_text("About it.")
    task = load_task(tmp_path, objective=Language())
    assert [len(split) for split in task.splits.values()] == [8, 7, 6]
    assert task.train.rows[0].where == f"{names[0]}, line 1"


def test_several_files_without_splits_are_one_pool_and_others_are_told(tmp_path):
    for k in range(3):
        write(tmp_path / f"part{k}.jsonl", [talk(f"{k} {j}", "Yes") for j in range(10)])
    assert sum(map(len, load_task(tmp_path, objective=Language()).splits.values())) == 30
    (tmp_path / "part0.jsonl").rename(tmp_path / "train.jsonl")
    (tmp_path / "part1.jsonl").rename(tmp_path / "test.jsonl")
    task = load_task(tmp_path, objective=Language())
    assert any("not used: part2.jsonl" in note for note in task.notes)


def test_what_test_or_val_has_is_left_out_of_train(tmp_path):
    write(tmp_path / "train.jsonl", [talk(f"Question  {k}", "Yes") for k in range(20)])
    write(tmp_path / "val.jsonl", [talk(f"Question {k}", "No") for k in range(3, 8)])
    write(tmp_path / "test.jsonl", [talk(f"Question {k}", "No") for k in range(5)])
    task = load_task(tmp_path, objective=Language())
    assert [len(split) for split in task.splits.values()] == [12, 3, 5]
    assert any(
        note.startswith("Left out of train, as the same is asked") and note.endswith(": 8 rows.") for note in task.notes
    )
    assert any(
        note.startswith("Left out of val, as the same is asked") and note.endswith(": 2 rows.") for note in task.notes
    )


def test_a_column_of_splits(tmp_path):
    rows = [
        {"text": f"number {k} of them", "label": "ab"[k % 2], "split": ("train", "dev", "test")[k % 3]}
        for k in range(30)
    ]
    task = load_task(write(tmp_path / "a.jsonl", rows))
    assert [len(split) for split in task.splits.values()] == [10, 10, 10]


def test_the_fingerprint_is_of_what_is_said(tmp_path):
    rows = [talk(f"Question {k}", "Yes") for k in range(20)]
    first = load_task(write(tmp_path / "a" / "x.jsonl", rows), objective=Language()).fingerprint
    assert load_task(write(tmp_path / "b" / "y.json", rows), objective=Language()).fingerprint == first
    rows[3] = talk("Question 3", "No")
    assert load_task(write(tmp_path / "a" / "x.jsonl", rows), objective=Language()).fingerprint != first


# Labelled texts, and the objectives.

TABLE = "review,stars,kind\n" + "".join(
    f"it was number {k} of many,{k % 5},{'ab'[k % 2]}|{'cd'[k % 3 > 0]}\n" for k in range(40)
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "reviews.csv").write_text(TABLE)
    return tmp_path / "reviews.csv"


@pytest.mark.parametrize(
    ("objective", "columns", "shape"),
    [(Classify(), "stars", ()), (Regress(), "stars", (1,)), (MultiLabel(), "kind", (4,))],
    ids=["classify", "regress", "multilabel"],
)
def test_a_table_of_texts_goes_with_every_objective_of_labels(table, encoder, objective, columns, shape):
    task = load_task(table, objective=objective, columns=columns)
    assert isinstance(task.train, LabelledSet) and task.train.targets.shape[1:] == shape
    batch = task.prepared(TextPreprocess(encoder, "bert", "encoder", 64)).train.batch([0, 1])
    assert batch.inputs["input_ids"].shape[0] == len(batch.targets) == 2


def test_classes_by_words(table, tokenizer):
    task = load_task(table, objective=Verbalize(), columns="stars")
    assert isinstance(task.train, QuestionSet) and task.objective.strata_names == ("0", "1", "2", "3", "4")
    batch = task.prepared(causal(tokenizer)).train.batch([0])
    assert batch.rows == 5 and batch.targets.answer[0] == task.train.targets[0]


def test_a_label_that_is_none_is_told_with_its_line(tmp_path):
    rows = [{"text": f"number {k}", "label": "ab"[k % 2]} for k in range(20)]
    rows[6]["label"] = None
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"^a.jsonl, line 7, has nothing for 'label'"):
        load_task(path)
    assert sum(map(len, load_task(path, on_bad_row="skip").splits.values())) == 19
    rows[6]["label"] = "x"
    with pytest.raises(DataError, match=r"a.jsonl, line 7, has 'x' for a number"):
        load_task(
            write(path, [{**row, "label": "1" if row["label"] != "x" else "x"} for row in rows]), objective=Regress()
        )


def test_pairs_of_texts(tmp_path, encoder):
    rows = [{"premise": f"one {k}", "hypothesis": "two", "label": k % 3} for k in range(30)]
    task = load_task(write(tmp_path / "a.jsonl", rows))
    assert task.train.rows[0].pair == "two" and task.objective.strata_names == ("0", "1", "2")
    batch = task.prepared(TextPreprocess(encoder, "bert", "encoder", 64)).train.batch([0])
    assert batch.inputs["token_type_ids"].any()


def test_a_wrong_objective_is_told(tmp_path):
    path = write(tmp_path / "a.jsonl", [talk("Who?", "He.")] * 9)
    with pytest.raises(
        DataError, match=r"layout messages, and the objective 'classify' does not read such.*'language'"
    ):
        load_task(path, objective=Classify())
    write(tmp_path / "d" / "a.jsonl", [talk("Who?", "He.")] * 9)
    write(tmp_path / "d" / "b.jsonl", [QUESTIONS["mmlu"]] * 9)
    with pytest.raises(DataError, match=r"rows of b.jsonl are of the layout question.*'language'.*Use .* 'choose'"):
        load_task(tmp_path / "d", objective=Language())


# What is taken for texts.


def test_tables_and_folders_of_images_are_none_of_texts(tmp_path):
    (tmp_path / "images.csv").write_text("file,label\n1.jpg,a\n2.jpg,b\n")
    assert source_class({"source": str(tmp_path / "images.csv")}).__name__ == "ImageTable"
    (tmp_path / "captions.csv").write_text("file,text\n1.jpg,a red car on a road\n")
    assert source_class({"source": str(tmp_path / "captions.csv")}).__name__ == "ImageTable"
    assert source_class({"source": str(tmp_path)}).__name__ == "ImageTable"
    for name in ("cat", "dog"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "1.jpg").write_bytes(b"")
    (tmp_path / "folder" / "labels.json").write_text("[]")
    assert source_class({"source": str(tmp_path / "folder")}).__name__ == "ImageFolder"
    write(tmp_path / "folder" / "a.jsonl", [talk("Who?", "He.")] * 9)
    assert source_class({"source": str(tmp_path / "folder")}).__name__ == "ImageFolder"
    assert len(rows_of(tmp_path / "folder" / "a.jsonl")[0]) == 9
    (tmp_path / "own.csv").write_text("titel,sorte\nein Buch und mehr davon,x\n")
    assert source_class({"source": str(tmp_path / "own.csv")}) is Text


@pytest.mark.parametrize("form", ["dataset", "splits", "parquet"])
def test_what_the_package_datasets_writes(tmp_path, form):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": [f"number {k} of them" for k in range(40)], "label": [k % 2 for k in range(40)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    if form == "dataset":
        whole.save_to_disk(tmp_path / "d")
    elif form == "splits":
        datasets.DatasetDict(train=whole.select(range(30)), test=whole.select(range(30, 40))).save_to_disk(
            tmp_path / "d"
        )
    else:
        (tmp_path / "d" / "data").mkdir(parents=True)
        whole.to_parquet(tmp_path / "d" / "data" / "train-00000-of-00001.parquet")
    assert source_class({"source": str(tmp_path / "d")}) is Text
    assert Text.usual_objective({"source": str(tmp_path / "d")}) == "classify"
    task = load_task(tmp_path / "d")
    assert task.objective.strata_names == ("bad", "good")
    assert sum(map(len, task.splits.values())) == 40


# The command.


def shown(*words: str) -> str:
    done = CliRunner().invoke(app, ["data", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_command_shows_what_is_learned(tmp_path):
    folder = language.tiny_causal(tmp_path / "model")
    path = write(tmp_path / "a.jsonl", [talk(f"Question {k}", f"Answer {k}") for k in range(20)])
    plain = shown(str(path))
    assert "user: Question" in plain and "assistant: [[Answer" in plain and "tokens" not in plain
    told = shown(str(path), "--model", str(folder), "--samples", "2")
    assert told.count("a.jsonl, line ") == 2 and told.count("[[Answer") == 2 and f"{STOP}]]" in told
    assert "tokens a row, median" in told and "are learned" in told
    split = json.loads(shown(str(path), "--model", str(folder), "--json"))[0]["splits"]["train"]
    assert split["examples"] == 13 and 0 < split["tokens"]["learned"] < split["tokens"]["all"]
    assert "### Response" in shown(str(path), "--model", str(folder), "--set", "data.template=alpaca")


def test_the_command_shows_questions_and_labelled_texts(tmp_path):
    folder = language.tiny_causal(tmp_path / "model")
    path = write(tmp_path / "q.jsonl", [{**QUESTIONS["mmlu"], "question": f"Who is {k}?"} for k in range(20)])
    assert "* she" in shown(str(path))
    assert "?[[ she]]" in shown(str(path), "--model", str(folder))
    (tmp_path / "r.csv").write_text("text,label\n" + "".join(f"this is {k} now,{'ab'[k % 2]}\n" for k in range(20)))
    assert "-> a" in (told := shown(str(tmp_path / "r.csv"))) or "-> b" in told
    encoder = language.tiny_encoder(tmp_path / "bert")
    assert "[CLS]this is" in shown(str(tmp_path / "r.csv"), "--model", str(encoder))


def test_the_task_tells_of_each_split_what_is_left_out(tmp_path, tokenizer):
    rows = [talk(f"Question {k}", "Yes " * (100 if k == 3 else 1)) for k in range(20)]
    task: Task = load_task(write(tmp_path / "a.jsonl", rows), objective=Language(), on_bad_row="skip", max_length=64)
    prepared = task.prepared(causal(tokenizer))
    assert sum(map(len, prepared.splits.values())) == 19
    assert sum("too long (first: a.jsonl, line 4)" in note for note in prepared.notes) == 1


def test_a_list_on_a_single_line_tells_which_entry_is_wrong(tmp_path: Path) -> None:
    """As `json.dump` writes it: the line alone would say nothing."""
    rows = [{"text": "one"}, {"text": "two"}, 3]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    found = read_records(path, "a.json")
    assert [row.where for row in found] == ["a.json, line 1", "a.json, line 1, entry 2", "a.json, line 1, entry 3"]
    path.write_text(json.dumps(rows, indent=1))
    assert "entry" not in "".join(row.where for row in read_records(path, "a.json"))


def test_a_byte_of_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2, is not UTF-8: the byte 0xe9"):
        read_records(file, "a.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_texts_are_read_in_the_encoding_that_their_mark_tells(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    (tmp_path / "a.jsonl").write_bytes((mark + '{"text": "caf\u00e9"}\n').encode(encoding))
    assert [found.fields["text"] for found in read_records(tmp_path / "a.jsonl", "a.jsonl")] == ["caf\u00e9"]
