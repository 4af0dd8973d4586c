"""`glora data` of texts: how long the rows are as tokens, how much of them is learned, and some of them to look at."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from glora.tasks.texts import IGNORED, Choices, Dialog, DialogSet, Question, TextSet

if TYPE_CHECKING:
    from glora.tasks.task import Task

__all__ = ["lengths", "lines", "rows", "with_lengths"]

Mark = Callable[[str], str]  # what is learned, so that it is seen


def lengths(split: Any) -> dict[str, int]:
    """Tokens of a row, all of them, and those that are learned; empty where a split is no tokens."""
    if not isinstance(split, TextSet) or split.found is None:
        return {}
    every = sorted(split.lengths)
    found = {"min": every[0], "median": round(statistics.median(every)), "p95": every[(95 * (len(every) - 1)) // 100]}
    found |= {"max": every[-1], "all": sum(every)}
    return found if split.weights is None else {**found, "learned": int(split.weights.sum())}


def with_lengths(told: dict[str, Any], task: Task) -> dict[str, Any]:
    """What there is to say about a task, as plain data, with the tokens of each split."""
    for name, split in {**task.splits, **task.others}.items():
        if found := lengths(split):
            told["splits"][name]["tokens"] = found
    return told


def lines(task: Task) -> Iterator[str]:
    """The tokens of each split, for a person."""
    for name, split in {**task.splits, **task.others}.items():
        if found := lengths(split):
            learned = f", {found['learned']:,} of {found['all']:,} are learned" if "learned" in found else ""
            yield (
                f"  {name:5} {found['min']:,} to {found['max']:,} tokens a row, median {found['median']:,}, "
                f"95% have at most {found['p95']:,}{learned}"
            )


def rows(task: Task, number: int, *, seed: int, mark: Mark) -> Iterator[str]:
    """Some training rows as the model reads them, what is learned marked; before they are tokens, as they are."""
    split = task.train
    if not isinstance(split, TextSet):
        return
    chosen = random.Random(seed).sample(range(len(split)), min(number, len(split)))
    for place in chosen:
        yield f"{split.rows[place].where or f'row {place}'}:"
        label = _label(task, split, place)
        yield from (f"  {line}" for line in [*_shown(split, place, mark).split("\n"), *label])


def _label(task: Task, split: TextSet, place: int) -> list[str]:
    """What is to be predicted of a labelled text."""
    if isinstance(split.rows[place], Dialog | Question):
        return []
    names, target = task.objective.strata_names, split.targets[place]
    return [f"-> {names[int(target)] if names else target.tolist()}"]


def _shown(split: TextSet, place: int, mark: Mark) -> str:
    row = split.rows[place]
    if split.found is not None:
        return _as_tokens(split, place, mark)
    if isinstance(row, Dialog):
        said = [
            (each.role, f"{each.text}\n{each.input}" if each.input else each.text, each.answers)
            for each in row.messages
        ]
        return "\n".join(f"{role}: {mark(text) if learned else text}" for role, text, learned in said)
    if isinstance(row, Question):
        choices = [f"{'*' if k == row.answer else '-'} {choice}" for k, choice in enumerate(row.choices)]
        return "\n".join([row.prompt, *choices])
    return row.text if row.pair is None else f"{row.text}\n{row.pair}"


def _as_tokens(split: TextSet, place: int, mark: Mark) -> str:
    """What the model reads, out of its tokens again."""
    assert split.found is not None
    tokenizer, batch = split.found.preprocess.tokenizer, split.batch([place])
    pairs = split.found.preprocess.form == "encoder_decoder"
    ids, masks = batch.inputs["input_ids"].tolist(), batch.inputs["attention_mask"].tolist()
    read = [[each for each, there in zip(*row, strict=True) if there] for row in zip(ids, masks, strict=True)]
    if isinstance(split, DialogSet):
        learned = batch.targets[0].tolist()
        whole = tokenizer.decode(read[0]) + "\n" + mark(tokenizer.decode(learned)) if pairs else ""
        return whole or _marked(tokenizer, read[0], learned, mark)
    if isinstance(batch.targets, Choices):
        there = [k for k, size in enumerate(batch.targets.sizes[0].tolist()) if size]
        found = [_choice(tokenizer, read[k], batch.targets.tokens[k].tolist(), mark, pairs=pairs) for k in there]
        right = int(batch.targets.answer[0])
        return "\n".join(f"{'*' if k == right else '-'} {each}" for k, each in zip(there, found, strict=True))
    return str(tokenizer.decode(read[0]))


def _choice(tokenizer: Any, read: Sequence[int], scored: Sequence[int], mark: Mark, *, pairs: bool) -> str:
    if pairs:
        return f"{tokenizer.decode(read)} {mark(tokenizer.decode([each for each in scored if each != IGNORED]))}"
    unread = [each for each in scored[len(read) :] if each != IGNORED]  # of a question that fills all there is
    return _marked(tokenizer, [*read, *unread], scored, mark)


def _marked(tokenizer: Any, ids: Sequence[int], targets: Sequence[int], mark: Mark) -> str:
    """The text of tokens, in which each run of learned ones is marked."""
    pairs = zip(ids, targets[: len(ids)], strict=True)
    runs = (
        (learned, [token for token, _ in some]) for learned, some in groupby(pairs, lambda pair: pair[1] != IGNORED)
    )
    return "".join(mark(tokenizer.decode(run)) if learned else tokenizer.decode(run) for learned, run in runs)
