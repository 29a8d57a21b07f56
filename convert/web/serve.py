"""Serves a site on this machine, with the headers that WebAssembly's threads need, and the page's policy."""

from __future__ import annotations

import errno
import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from convert.web.policy import HEADER, policy_of
from edgesam_jax.config import UsageError

HOST, PORT = "127.0.0.1", 8000  # reachable from this machine only
MARKER = "site.json"
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a site that was written again is seen at once
}
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm", ".onnx": "application/octet-stream", ".svg": "image/svg+xml", ".png": "image/png",
    ".jpg": "image/jpeg", ".webmanifest": "application/manifest+json",
}  # fmt: skip


class Handler(SimpleHTTPRequestHandler):
    """Serves the files of a folder, without listings."""

    protocol_version = "HTTP/1.1"
    extensions_map = TYPES
    headers_sent = HEADERS

    def __init__(self, *args: Any, policy: str = "", **rest: Any) -> None:
        # A handler that stands for a host without headers sends none.
        self._sent = {**self.headers_sent, HEADER: policy} if policy and self.headers_sent else self.headers_sent
        super().__init__(*args, **rest)

    def end_headers(self) -> None:
        """Add the headers to every answer."""
        for name, value in self._sent.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Refuse what would be a listing."""
        self.send_error(404, "File not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about requests."""


def open_server(site: Path, port: int, handler: type[Handler] = Handler) -> ThreadingHTTPServer:
    """Return a server for a site that listens on a port; 0: any free one.

    Raises:
      UsageError: the folder is not a site, or the port can't be used.
    """
    if not (site / MARKER).is_file():
        raise UsageError(f"--serve {site}: not a site (it has no {MARKER}); write one with --output first")
    try:
        made = functools.partial(handler, directory=str(site), policy=policy_of(site))
        server = ThreadingHTTPServer((HOST, port), made)
    except OverflowError:
        raise UsageError(f"--port {port}: must be 0 to 65535") from None
    except OSError as error:
        reason = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
        raise UsageError(f"--port {port}: {reason}; pass another one, or 0 for any free one") from None
    server.daemon_threads = True
    return server


def serve(site: Path, port: int) -> int:
    """Serve a site until Ctrl-C; return the exit code.

    Raises:
      UsageError: see ``open_server``.
    """
    with open_server(site, port) as server:
        print(f"{site}: http://localhost:{server.server_port}/ (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
