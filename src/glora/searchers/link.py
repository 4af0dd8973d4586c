"""The processes of one run, as a launcher starts them: each knows within seconds that another has ended.

A collective operation waits for a process that is gone: gloo fails without a name, NCCL after ten minutes, and neither
notices one that is stopped. Here the first process is connected with each of the others, and both say every second that
they are there.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from glora.errors import GloraError, RunError

__all__ = ["Link", "end_process"]

BEAT = 1.0  # seconds between signs of life
SILENT = 30  # of them missed: the other process is stopped, or its machine is gone
GRACE = 8.0  # seconds for a process to end by itself, once it knows
NOTICE = 4.0  # seconds after an error in which it may turn out that another process is the cause
JOINING = 120.0  # seconds for all to be connected
TOKEN = 32  # bytes by which the processes know each other
BYE = b"bye"  # nobody needs to wait for this one any more
LONGEST = 400  # characters of another process's error that are told
GOES_ON = "The same command goes on from the last saved state, with as many processes or another number."


def end_process(message: str) -> None:
    """Ends this process at once, whatever it waits for, with a message on stderr."""
    sys.stderr.write(f"Error: {message}\n")
    sys.stderr.flush()
    os._exit(1)


class Link:
    """What connects a process with the others of its run, from when it is made until `leave`.

    Args:
        rank: This process's number.
        size: How many there are; of one nothing is connected.
        host: Where the first of them listens, as all can reach it.
        share: Gives every process what the first one gives it.
        ending: Called, in another thread, with what to say where this process has to end and does not by itself.

    Attributes:
        lost: What has become of another process, in a sentence; empty as long as all are there.
        jobs: What work is sent on: of the first process by number to each of the others, of those to the first.

    Raises:
        RunError: Another process does not come.
    """

    def __init__(
        self, rank: int, size: int, *, host: str, share: Callable[[Any], Any], ending: Callable[[str], None]
    ) -> None:
        self.rank = rank
        self.size = size
        self.ending = ending
        self.lost = ""
        self.jobs: dict[int, Connection] = {}
        self._beats: dict[Connection, int] = {}
        self._left = False
        self._knows = threading.Event()
        if size > 1:
            self._connect(host, share)
            threading.Thread(target=self._listen, daemon=True).start()

    def _connect(self, host: str, share: Callable[[Any], Any]) -> None:
        token = secrets.token_bytes(TOKEN)
        if self.rank:
            port, token = share(None)
            for kind in (0, 1):
                self._keep(0, kind, _called(host, port, token, self.rank, kind))
            return
        with _server(host) as server:
            share((server.getsockname()[1], token))
            end = time.monotonic() + JOINING
            while len(self.jobs) + len(self._beats) < 2 * (self.size - 1):
                server.settimeout(max(0.01, end - time.monotonic()))
                try:
                    other, _ = server.accept()
                except TimeoutError as error:
                    raise RunError(
                        f"Of {self.size} processes only {1 + len(self._beats)} have come within {JOINING:g} seconds.",
                        remedy="Read what the others wrote, and start all again.",
                    ) from error
                if (known := _answered(other, token)) is not None:
                    self._keep(*known, Connection(other.detach()))

    def _keep(self, rank: int, kind: int, connection: Connection) -> None:
        if kind:
            self.jobs[rank] = connection
        else:
            self._beats[connection] = rank

    def _listen(self) -> None:
        """Says that this process is there, and notes who is not."""
        silent, beats = dict.fromkeys(self._beats, 0), self._beats
        while beats and not self._left and not self.lost:
            start = time.monotonic()
            for connection in list(beats):
                _say(connection, b"")
            while beats and (ready := wait(list(beats), max(0.0, start + BEAT - time.monotonic()))):
                for heard in ready:
                    assert isinstance(heard, Connection)
                    silent[heard] = 0
                    self._hear(heard)
            for connection, rank in list(beats.items()):
                silent[connection] += 1
                if silent[connection] > SILENT:
                    self._lose(f"{self._named(rank)} has said nothing for {SILENT * BEAT:.0f} seconds")
        if self.lost and not self._left:
            time.sleep(GRACE)
            if not self._left:
                self.ending(f"{self.lost} {GOES_ON}")

    def _hear(self, connection: Connection) -> None:
        rank = self._beats[connection]
        try:
            said = connection.recv_bytes()
        except (EOFError, OSError):
            del self._beats[connection]
            self._lose(f"{self._named(rank)} has ended")
            return
        if said == BYE:
            del self._beats[connection]
        elif said:
            self._lose(said.decode(errors="replace"))

    def _named(self, rank: int) -> str:
        return f"Process {rank + 1} of {self.size}"

    def _lose(self, what: str) -> None:
        if not self.lost and not self._left:
            self.lost = what if what.endswith(".") else f"{what}; the others end with it."
            for connection in self._beats:  # those that are not connected with that one
                _say(connection, self.lost.encode())
            self._knows.set()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Within it an error is told to the other processes; one that another process has caused says so.

        Raises:
            RunError: Another process has ended.
        """
        try:
            yield
        except BaseException as error:
            if self.size == 1 or self._left:
                raise
            own = isinstance(error, GloraError) or not isinstance(error, Exception)
            if not own and self._knows.wait(NOTICE):
                self._leave(b"")
                raise RunError(self.lost, remedy=GOES_ON) from error
            words = f"{type(error).__name__}: {error}"[:LONGEST].rstrip(": .")
            words = f"ended: {words}" if isinstance(error, Exception) else "been interrupted"
            self._leave(f"{self._named(self.rank)} has {words}. The others end with it.".encode())
            raise

    def leave(self) -> None:
        """Nobody needs to wait for this process from here on, unless it ends by an error that nobody has caught."""
        caught = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        self._leave(BYE if caught is None else f"{self._named(self.rank)} has ended: {caught!r:.400}.".encode())

    def _leave(self, words: bytes) -> None:
        if not self._left and self.size > 1:
            self._left = True
            for connection in list(self._beats):
                _say(connection, words)


def _server(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0))
    except OSError:  # a name of the cluster's, which is not this machine's own
        return socket.create_server(("", 0))


def _say(connection: Connection, words: bytes) -> None:
    try:
        connection.send_bytes(words)
    except OSError:
        pass  # it is gone: `_hear` tells


def _called(host: str, port: int, token: bytes, rank: int, kind: int) -> Connection:
    """A connection with the first process."""
    end = time.monotonic() + JOINING
    while True:
        try:
            other = socket.create_connection((host, port), timeout=JOINING)
            break
        except OSError as error:
            if time.monotonic() > end:
                raise RunError(f"The first process cannot be reached at {host}:{port}: {error}.") from error
            time.sleep(0.2)
    other.sendall(token + rank.to_bytes(4, "big") + bytes([kind]))
    other.settimeout(None)
    return Connection(other.detach())


def _answered(other: socket.socket, token: bytes) -> tuple[int, int] | None:
    """Which process it is that calls, and what for; None of a stranger."""
    other.settimeout(5.0)
    said = b""
    try:
        while len(said) < TOKEN + 5 and (more := other.recv(TOKEN + 5 - len(said))):
            said += more
    except OSError:
        pass
    if len(said) < TOKEN + 5 or not hmac.compare_digest(said[:TOKEN], token):
        other.close()
        return None
    other.settimeout(None)
    return int.from_bytes(said[TOKEN : TOKEN + 4], "big"), said[-1]
