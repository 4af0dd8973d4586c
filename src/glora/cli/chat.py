"""`glora chat`: a conversation in a terminal. Answers go to stdout as they come, everything else to stderr."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from glora.runs.chat import Chat

__all__ = ["one_answer", "talk"]

HELP = "/reset forgets what was said, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def one_answer(chat: Chat, text: str) -> None:
    """The answer to one text."""
    _answer(chat, text)


def talk(chat: Chat) -> None:
    """Answers line after line until there is no more."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        typer.echo(HELP, err=True)
    for line in _lines(ask=terminal):
        text = line.strip()
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            chat.reset()
            typer.echo("Forgotten.", err=True)
        elif text.startswith("/") and " " not in text:
            typer.echo(f"There is no {text}. {HELP}", err=True)
        elif text:
            _try(chat, text)


def _lines(*, ask: bool) -> Iterator[str]:
    """What is typed, with a prompt and the keys of a line editor where it is a terminal."""
    if not ask:
        yield from sys.stdin
        return
    try:
        import readline  # noqa: F401  # `input` uses it where it is loaded
    except ImportError:  # not on every system
        pass
    while True:
        try:
            yield input("> ")
        except EOFError:
            typer.echo()
            return


def _try(chat: Chat, text: str) -> None:
    """The answer; what is wrong with a text is told, and the conversation goes on."""
    from glora.errors import DataError

    before = chat.forgotten
    try:
        _answer(chat, text)
    except DataError as error:
        typer.echo(f"Error: {error}", err=True)
    if chat.forgotten > before:
        typer.echo(f"The conversation has become too long: {chat.forgotten} turns are forgotten.", err=True)


def _answer(chat: Chat, text: str) -> None:
    with _stopping() as stopped:
        chat.answer(text, show=lambda piece: typer.echo(piece, nl=False), stopped=stopped)
        typer.echo()
        if stopped():
            typer.echo("Stopped.", err=True)


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C makes the function true that it gives; the second is what it was before."""
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
