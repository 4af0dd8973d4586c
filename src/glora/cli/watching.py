"""`glora watch`: the page of runs, made anew on every request by a server on this machine's loopback; read-only."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from glora.cli.reporting import page
from glora.errors import GloraError, RunError
from glora.report.page import read_run

__all__ = ["server"]

LOOPBACK = "127.0.0.1"
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


def server(runs: Sequence[Path], *, port: int, refresh: int, images: bool = True) -> ThreadingHTTPServer:
    """A server that is not serving yet: `serve_forever` does. Its address is `server_address`.

    It answers `/` alone, and only where it is asked for by a name of this machine, so that no page of another site
    can read it through a browser.

    Args:
        runs: Run folders.
        port: 0 for any that is free.
        refresh: Seconds after which a browser asks again, as long as a run is not finished.
        images: Whether the images that are most wrong are shown.

    Raises:
        RunError: A path is no run, or the port is taken.
    """
    for run in runs:
        read_run(run)

    class Handler(BaseHTTPRequestHandler):
        """Answers one request."""

        def do_GET(self) -> None:
            """The page."""
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
            if host not in (LOOPBACK, "localhost"):
                self.send_error(403)
            elif self.path != "/":
                self.send_error(404)
            else:
                self._answer(*_made(runs, refresh=refresh, images=images))

        def _answer(self, code: int, html: str) -> None:
            data = html.encode()
            self.send_response(code)
            for name, value in {**HEADERS, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        raise RunError(
            f"Port {port} cannot be used: {error.strerror}.", remedy="Give another with --port, or 0 for any."
        ) from error


def _made(runs: Sequence[Path], *, refresh: int, images: bool) -> tuple[int, str]:
    """The status and the page; while a file is being written a line that asks to wait."""
    try:
        finished = all(read_run(run).state == "tested" for run in runs)
        return 200, page(runs, images=images, refresh=0 if finished else refresh)
    except (GloraError, OSError) as error:
        told = f"<!DOCTYPE html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content={refresh}>"
        return 503, f"{told}<title>glora watch</title><p>{escape(str(error))}</p></html>"
