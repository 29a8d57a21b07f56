"""convert.download against a local server that breaks off, serves other data, and doesn't support Range."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from convert import download as dl
from edgesam_jax.config import UsageError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = dl.Published("edge_sam.pth", SHA256, len(CONTENT))


class Server(ThreadingHTTPServer):
    """Serves CONTENT as /edge_sam.pth; ``cut`` lists the bytes after which the next responses break off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.cut, self.errors = CONTENT, True, [], []
        self.requested: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        requested = self.headers.get("Range")
        server.requested.append(requested)
        if self.path != "/edge_sam.pth":
            return self.send_error(404)
        if server.errors:
            return self.send_error(server.errors.pop(0))
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and server.ranges else 0
        if start >= len(server.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut:
            body = body[: server.cut.pop(0)]
            self.close_connection = True
        self.wfile.write(body)
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server, folder, file=FILE):
    return dl.download(file, folder, server.url, pause=0.0)


def test_fresh(server, tmp_path):
    path = fetch(server, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["edge_sam.pth"]
    assert server.requested == [None]
    assert fetch(server, path.parent) == path  # verified and kept: no second request
    assert server.requested == [None]


def test_a_broken_connection_is_resumed_within_the_run(server, tmp_path):
    server.cut = [300_000, 200_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=300000-", "bytes=500000-"]


def test_a_broken_run_is_resumed_by_the_next(server, tmp_path):
    server.cut = [300_000]
    server.errors = []
    part = tmp_path / "edge_sam.pth.part"

    def gone(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dl.time, "sleep", gone)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, tmp_path)
    assert part.read_bytes() == CONTENT[:300_000]
    assert not (tmp_path / "edge_sam.pth").exists()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=300000-"]
    assert not part.exists()


def test_a_connection_that_never_carries_a_byte_gives_up_and_keeps_the_part(server, tmp_path):
    part = tmp_path / "edge_sam.pth.part"
    part.write_bytes(CONTENT[:1000])
    server.errors = [503] * dl.RETRIES
    with pytest.raises(
        UsageError, match=r"HTTP 503.*1000 of 1048576 bytes are kept in .*edge_sam.pth.part: run the same command again"
    ):
        fetch(server, tmp_path)
    assert part.read_bytes() == CONTENT[:1000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_server_without_range_support_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "edge_sam.pth.part").write_bytes(b"stale" * 1000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_wrong_hash_is_refused_and_removed(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(UsageError, match=rf"SHA-256 is \w+, must be {SHA256}; refused, edge_sam.pth.part removed"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [CONTENT[:-10], CONTENT + b"more"])
def test_wrong_size_is_refused_before_the_transfer(server, tmp_path, content):
    server.content = content
    with pytest.raises(UsageError, match=rf"offers {len(content)} bytes from byte 0, expected {len(CONTENT)}"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_too_long_is_not_resumed(server, tmp_path):
    (tmp_path / "edge_sam.pth.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == [None]


def test_a_complete_part_is_only_verified(server, tmp_path):
    (tmp_path / "edge_sam.pth.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == []


def test_a_foreign_file_in_the_way_is_left_alone(server, tmp_path):
    (tmp_path / "edge_sam.pth").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists and is not the published file"):
        fetch(server, tmp_path)
    assert (tmp_path / "edge_sam.pth").read_bytes() == b"mine"


def test_command_line(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(dl.TABLE, "edge_sam", FILE)
    out = str(tmp_path / "w")
    assert dl.main(["edge_sam", "--output", out, "--base-url", server.url + "/"]) == 0
    shown = capsys.readouterr()
    assert "edge_sam.pth: verified" in shown.out and "non-commercial" in shown.out
    assert "1.00M" in shown.err  # the progress bar

    def refused(*arguments: str) -> str:
        assert dl.main([*arguments, "--output", out]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    assert "HTTP 404" in refused("edge_sam_3x", "--base-url", server.url)
    assert "choose one of edge_sam, " in refused("edge_sam_30x")
    assert "http://" in refused("edge_sam_3x", "--base-url", "file:///etc")
    (tmp_path / "file").touch()
    assert dl.main(["sam_vit_b", "--output", str(tmp_path / "file" / "x"), "--base-url", server.url]) == 2


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as closed:
        url = closed.url
    with pytest.raises(UsageError, match="no connection"):
        dl.download(FILE, tmp_path, url, pause=0.0)


def test_the_table():
    assert {"edge_sam", "edge_sam_3x", "sam_vit_b", "sam_vit_l", "sam_vit_h"} <= set(dl.TABLE)
    for file in dl.FILES:
        assert len(file.sha256) == 64 and int(file.sha256, 16)
        assert 5_000_000 < file.size < 3_000_000_000
    assert dl.find("sam_vit_b_01ec64.pth") is dl.find("sam_vit_b")
