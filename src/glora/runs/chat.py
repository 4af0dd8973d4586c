"""Talking with a model: a conversation goes in as its chat template or prompt has it, the answer comes in pieces."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glora.errors import DataError, within
from glora.tasks.rows import BadRow, Message, TextPreprocess, TextReading
from glora.tasks.tokens import Tokens

__all__ = ["Chat", "Reply"]

MOST = 512  # tokens of an answer, unless told otherwise


@dataclass(frozen=True)
class Reply:
    """How a model answers.

    Attributes:
        most: Most tokens of an answer.
        temperature: 0: always the likeliest token; else logits are divided by it, and a token is drawn.
        seed: For drawing tokens.
    """

    most: int = MOST
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        within(self.most, "max_tokens", 1, 1_000_000)
        within(self.temperature, "temperature", 0, 100)


class Chat:
    """A conversation with a model that answers.

    Args:
        model: A model of transformers that generates.
        preprocess: How it reads texts.
        reading: How turns are put together.
        system: The system message; may be empty.
        reply: How it answers.
        raw: Whether texts are continued as they are, and not answered as a user's turns.

    Raises:
        DataError: The model does not generate.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: TextPreprocess,
        reading: TextReading,
        *,
        system: str = "",
        reply: Reply | None = None,
        raw: bool = False,
    ) -> None:
        if preprocess.form == "encoder" or not getattr(model, "can_generate", bool)():
            raise DataError(
                f"{preprocess.name} classifies texts, and does not answer.",
                remedy="Ask for its classes: glora predict RUN TEXT.",
            )
        self.model, self.preprocess = model.eval(), preprocess
        self.tokens = Tokens(preprocess, reading)
        self.system = (Message("system", system),) if system else ()
        self.reply = reply or Reply()
        self.roles = ("prompt", "completion") if raw else ("user", "assistant")
        self.turns: list[Message] = []
        self.forgotten = 0  # turns that the model no longer reads

    def reset(self) -> None:
        """Forgets all that was said."""
        self.turns, self.forgotten = [], 0

    def answer(
        self, text: str, show: Callable[[str], None] = lambda _: None, stopped: Callable[[], bool] = lambda: False
    ) -> str:
        """What the model answers; the conversation goes on with it.

        Args:
            text: What it is asked.
            show: Gets the answer's pieces as they come.
            stopped: Asked after every token; where it is true the answer ends there.

        Raises:
            DataError: The text is longer than the model reads, or its template refuses the conversation.
        """
        asks, says = self.roles
        turns, ids = self._fitting([*self.turns, Message(asks, text)])
        self.forgotten += len(self.turns) + 1 - len(turns)
        said = self._generated(ids, show, stopped)
        self.turns = [*turns, Message(says, said)]
        return said

    def reply_to(self, messages: Sequence[Message]) -> str:
        """What the model says next in a conversation of its own.

        Raises:
            DataError: It is longer than the model reads, or its template refuses it.
        """
        _, ids = self._fitting(list(messages))
        return self._generated(ids, lambda _: None, lambda: False)

    def check(self, messages: Sequence[Message]) -> None:
        """Raises DataError where the model cannot answer these: they are too long, or its template refuses them."""
        self._fitting(list(messages))

    def _fitting(self, turns: list[Message]) -> tuple[list[Message], list[int]]:
        """The conversation and its tokens; without its oldest turns where it is too long to answer."""
        room = self.preprocess.max_length
        while True:
            ids = self._ids(turns)
            if room is None or self.preprocess.form == "encoder_decoder" or len(ids) + self.reply.most <= room:
                return turns, ids
            if len(turns) == 1:
                if len(ids) < room:
                    return turns, ids
                raise DataError(
                    f"The text is {len(ids):,} tokens long.", allowed=f"The model reads {room:,}, its answer included."
                )
            turns = turns[2:] or turns[-1:]

    def _ids(self, turns: Sequence[Message]) -> list[int]:
        try:
            return self.tokens.asked((*self.system, *turns))
        except BadRow as bad:
            raise DataError(f"The conversation {bad.message}.", remedy=f"{bad.remedy}.") from bad

    def _generated(self, ids: list[int], show: Callable[[str], None], stopped: Callable[[], bool]) -> str:
        read = torch.tensor([ids], device=next(self.model.parameters()).device)
        taken = 0 if self.preprocess.form == "encoder_decoder" else len(ids)
        room = self.preprocess.max_length
        most = self.reply.most if room is None or not taken else min(self.reply.most, room - taken)
        pieces = _Pieces(self.preprocess.tokenizer, show, stopped)
        seed = random.Random(f"{self.reply.seed}-{len(self.turns) + self.forgotten}").getrandbits(63)
        with torch.no_grad(), _drawing(read.device, seed):
            try:
                self.model.generate(  # type: ignore[operator]
                    inputs=read,
                    attention_mask=torch.ones_like(read),
                    generation_config=self._how(most),
                    streamer=pieces,
                )
            except _Stopped:
                pieces.end()
        return pieces.text

    def _how(self, most: int) -> Any:
        """The model's own generation settings, with those of the reply."""
        tokenizer = self.preprocess.tokenizer
        config: Any = copy.deepcopy(self.model.generation_config)
        own = config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), *self.tokens.ends()} - {None}
        config.eos_token_id = sorted(ends) or None
        config.pad_token_id = next((each for each in (tokenizer.pad_token_id, *sorted(ends)) if each is not None), None)
        config.max_new_tokens, config.max_length, config.num_beams = most, None, 1
        config.do_sample = self.reply.temperature > 0
        if config.do_sample:
            config.temperature = self.reply.temperature
        else:  # settings for drawing, of which transformers would warn as unused
            config.temperature = config.top_p = config.top_k = config.min_p = config.typical_p = None
        return config


class _Stopped(Exception):
    """The answer is to end here."""


class _Pieces:
    """What `generate` calls with every token: the answer's text in pieces, none of which ends inside a character."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        self.tokenizer, self.show, self.stopped = tokenizer, show, stopped
        self.prompt = True
        self.ids: list[int] = []
        self.text = ""

    def put(self, ids: Tensor) -> None:
        if self.prompt:  # the prompt comes first
            self.prompt = False
            return
        self.ids += ids.flatten().tolist()
        now = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not now.endswith("\ufffd"):  # a character of several tokens is not whole yet
            self._more(now)
        if self.stopped():
            raise _Stopped

    def end(self) -> None:
        self._more(self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _more(self, now: str) -> None:
        if len(now) > len(self.text):
            new, self.text = now[len(self.text) :], now
            self.show(new)


@contextmanager
def _drawing(device: torch.device, seed: int) -> Iterator[None]:
    """Within it torch draws from this seed, which is where `generate` draws from; the generators are restored."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
