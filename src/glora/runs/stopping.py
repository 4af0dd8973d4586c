"""Ctrl-C and SIGTERM in a training: the step under way ends and the state is saved before they take effect."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Halt", "Stopping"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE = 0.25  # seconds within which two are one: a terminal and a launcher both pass on a Ctrl-C


class Halt(BaseException):
    """What is under way between two steps is left: a signal has come."""


class Stopping:
    """Within it the first SIGINT or SIGTERM is noted, and passed on at the end; a second takes effect at once.

    Passed on means: it does what it did before, such as raising KeyboardInterrupt. Signals that are ignored, or come in
    another process or to another thread than the main one, are none of its business.

    Attributes:
        came: The signal that came and is not passed on yet; 0: none.
    """

    def __init__(self) -> None:
        self.came = 0
        self._at = 0.0
        self._process = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        self._process = os.getpid()
        self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._leave()
        if kind is None or issubclass(kind, Exception):
            self._raise()

    def check(self) -> None:
        """Raises Halt where a signal has come."""
        if self.came:
            raise Halt

    def pass_on(self) -> None:
        """A signal that has come takes effect; where that does not end the process or raise, all goes on."""
        if self.came:
            self._leave()
            self._raise()
            self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.getsignal(number)
            if callable(before) or before is signal.SIG_DFL:  # None: not of Python
                self._before[number] = before
                signal.signal(number, self._note)

    def _leave(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _raise(self) -> None:
        number, self.came = self.came, 0
        if number:
            signal.raise_signal(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._process:
            if not self.came:
                self.came, self._at = number, time.monotonic()
                return
            if time.monotonic() - self._at < TWICE:
                return
        self.came = number
        self._leave()
        self._raise()
