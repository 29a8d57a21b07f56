"""The command's errors, the runtime's files, and the server: without a browser."""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from web_pages import served

from convert import to_web
from convert.export import common
from convert.web import runtime, serve
from edgesam_jax.config import UsageError

ROOT = Path(__file__).resolve().parents[2]


def said(capsys, *arguments: str) -> str:
    """Run the command, which must refuse its arguments; return its message."""
    assert to_web.main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "CHECKPOINT: missing"),
        (["tiny_teacher"], "--output: missing"),
        (["--output", "x"], "CHECKPOINT: missing"),
        (["--serve"], "CHECKPOINT: missing"),
        (["--serve", "tiny_teacher", "--output", "x"], "comes before --output"),
        (["tiny_teacher", "--output", "x", "--serve", "y"], "--serve y: with a CHECKPOINT"),
        (["--serve", "nowhere"], "--serve nowhere: not a site"),
        (["tiny_teacher", "--output", "x", "--precision", "float8"], "--precision"),
        (["no_such_file.msgpack", "--output", "x"], "no_such_file.msgpack: no such file"),
        (["tiny_teacher", "--output", "x", "--runtime", "nowhere"], "--runtime nowhere: has no dist/ort.wasm.min.mjs"),
        (["tiny_teacher", "--output", "x", "--image-size", "100"], "--image-size 100"),
        (["--serve", ".", "--port", "many"], "--port"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in said(capsys, *arguments)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_folder_that_is_not_a_site_is_refused(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "contains files that are not a site" in said(capsys, "tiny_teacher", "--output", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    file = tmp_path / "thesis.txt"
    assert "is a file; choose a folder" in said(capsys, "tiny_teacher", "--output", str(file))


def test_an_earlier_site_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "site"
    target.mkdir()
    for name in ("site.json", "old.txt"):
        (target / name).write_text("{}")
    with pytest.raises(UsageError), common.output_folder(target, "site"):
        raise UsageError("a failure leaves what was there")
    assert {p.name for p in target.iterdir()} == {"site.json", "old.txt"}
    with common.output_folder(target, "site") as folder:
        (folder / "site.json").write_text("[]")
    assert {p.name for p in target.iterdir()} == {"site.json"} and list(tmp_path.iterdir()) == [target]


# ------------------------------------------------------------------------------------------------------------- runtime


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A small package in place of the real one, whose checksums are expected; the cache is empty."""
    folder = tmp_path / "unpacked"
    (folder / "dist").mkdir(parents=True)
    expected = {}
    for name in runtime.FILES:
        content = name.encode() * 10
        (folder / "dist" / name).write_bytes(content)
        expected[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(runtime, "FILES", expected)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def fake_npm(folder: Path, script: str) -> None:
    """Put a program named npm into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}")
    (folder / "npm").chmod(0o755)


def archive_of(package: Path, target: Path, leave_out: str = "") -> None:
    with tarfile.open(target, "w:gz") as file:
        for path in sorted((package / "dist").iterdir()):
            if path.name != leave_out:
                file.add(path, f"package/dist/{path.name}")
        member = tarfile.TarInfo("package/../../outside.txt")
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))


def test_the_page_names_the_same_version():
    content = json.loads((ROOT / "convert" / "web" / "page" / "package.json").read_text())
    assert content["private"] and content["dependencies"] == {runtime.PACKAGE: runtime.VERSION}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in content["devDependencies"].values())


def test_npm_fetches_the_package_once(package, tmp_path, monkeypatch):
    archive_of(package, tmp_path / "p.tgz")
    log = tmp_path / "calls"
    fake_npm(
        tmp_path / "bin",
        f"import shutil, sys\nopen({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
        f"shutil.copy({str(tmp_path / 'p.tgz')!r}, 'onnxruntime-web-1.tgz')\n",
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for number in range(2):
        runtime.write_runtime(tmp_path / f"ort{number}")
        files = {p.name: p.read_bytes() for p in (tmp_path / f"ort{number}").iterdir()}
        assert {runtime.LICENCE, *runtime.FILES} <= set(files) and b"MIT License" in files[runtime.LICENCE]
        assert all(files[name] == (package / "dist" / name).read_bytes() for name in runtime.FILES)
    assert log.read_text().splitlines() == [f"pack onnxruntime-web@{runtime.VERSION} --silent"]
    assert not (tmp_path / "outside.txt").exists() and not list(tmp_path.glob("cache/**/outside.txt"))
    # A damaged file of the cache is fetched again.
    (runtime.cache_folder() / "ort.wasm.min.mjs").write_text("damaged")
    runtime.prepare()
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('npm error code E404', file=sys.stderr); sys.exit(1)", "npm error code E404; check"),
        ("pass", "exit code 0; check the network"),
    ],
)
def test_what_npm_says_is_passed_on(package, tmp_path, monkeypatch, script, words):
    fake_npm(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UsageError, match=re.escape(words)):
        runtime.write_runtime(tmp_path / "ort")
    assert not (tmp_path / "ort").exists() and not runtime.cache_folder().exists()


def test_without_npm_one_line_says_what_to_install(package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"npm: not found.*install Node\.js, or pass .* --runtime"):
        runtime.write_runtime(tmp_path / "ort")


def test_a_package_of_another_version_is_refused(package, tmp_path, monkeypatch):
    name = list(runtime.FILES)[2]
    archive_of(package, tmp_path / "p.tgz")
    for remedy, leave_out in (("another checksum", ""), (f"has no dist/{name}", name)):
        (package / "dist" / name).write_text("another")
        archive_of(package, tmp_path / "p.tgz", leave_out)
        fake_npm(tmp_path / "bin", f"import shutil; shutil.copy({str(tmp_path / 'p.tgz')!r}, 'p.tgz')")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        with pytest.raises(UsageError, match=re.escape(remedy)):
            runtime.write_runtime(tmp_path / "ort")
        assert not (runtime.cache_folder() / name).exists()
    with pytest.raises(UsageError, match=f"--runtime .*: {re.escape(name)} is not that of onnxruntime-web"):
        runtime.write_runtime(tmp_path / "ort", package)
    (package / "dist" / name).unlink()
    with pytest.raises(UsageError, match=f"--runtime .*: {re.escape(name)} is missing"):
        runtime.write_runtime(tmp_path / "ort", package)


@pytest.mark.parametrize("inside", ["", "dist"])
def test_an_unpacked_package_needs_no_npm(package, tmp_path, monkeypatch, inside):
    monkeypatch.setenv("PATH", str(tmp_path))
    runtime.write_runtime(tmp_path / "ort", package / inside)
    assert set(runtime.FILES) < {p.name for p in (tmp_path / "ort").iterdir()}


def test_a_bundle_has_the_page_on_request(package, tmp_path, capsys):
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from convert import bundle

    target = tmp_path / "bundle"
    assert bundle.main(["tiny_teacher", "--output", str(target), "--formats", "web", "--part", "encoder"]) == 2
    assert "--part encoder: the format web needs both parts" in capsys.readouterr().err
    shutil.copytree(package / "dist", runtime.cache_folder())
    assert bundle.main(["tiny_teacher", "--output", str(target), "--formats", "web"]) == 0
    web = target / "web"
    listed = json.loads((web / "site.json").read_text())
    assert {"index.html", "sw.js", "js/session.js", "vectors/check.json", "examples/examples.json"} <= {
        file["path"] for file in listed["files"]
    }
    assert not {file["path"] for file in listed["files"]} & {"package.json", "tsconfig.json", ".npmrc"}
    info = json.loads((web / "model" / "model.json").read_text())
    for part in ("encoder", "image", "decoder"):
        file = web / "model" / info["parts"][part]["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == info["parts"][part]["sha256"]
    assert info["verified"]["passed"] and info["slots"] == "dynamic" and info["mask_input"]
    assert json.loads((target / "contract.json").read_text())["web"] == info
    assert "--serve web" in (target / "README.md").read_text()
    with serve.open_server(web, 0):
        pass


# -------------------------------------------------------------------------------------------------------------- server


@pytest.fixture
def tiny_site(tmp_path) -> Path:
    folder = tmp_path / "site"
    (folder / "ort").mkdir(parents=True)
    files = (
        "site.json",
        "index.html",
        "js.mjs",
        "a.wasm",
        "a.onnx",
        "style.css",
        "a.png",
        "ort/x.js",
        "a.jpg",
        "a.txt",
    )
    for name in files:
        (folder / name).write_text(name)
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def test_headers_and_types(tiny_site):
    kinds = {
        "": "text/html; charset=utf-8", "js.mjs": "text/javascript; charset=utf-8", "a.wasm": "application/wasm",
        "a.onnx": "application/octet-stream", "site.json": "application/json", "a.png": "image/png",
        "style.css": "text/css; charset=utf-8", "ort/x.js": "text/javascript; charset=utf-8", "a.jpg": "image/jpeg",
    }  # fmt: skip
    with served(tiny_site) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for path, kind in kinds.items():
            connection.request("GET", f"/{path}")
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read().decode() == (path or "index.html")
            assert answer.headers["Content-Type"] == kind
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for path in ("/missing", "/ort/", "/../secret.txt", "/%2e%2e/secret.txt", "/ort/../../secret.txt"):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 404 and b"secret" not in answer.read().replace(path.encode(), b"")
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        connection.close()
        with pytest.raises(UsageError, match=f"--port {port}: in use; pass another one"):
            serve.open_server(tiny_site, port)
    with pytest.raises(UsageError, match="--port 70000: must be 0 to 65535"):
        serve.open_server(tiny_site, 70000)


def test_only_this_machine_is_served(tiny_site):
    with serve.open_server(tiny_site, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        others = [a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for address in set(others) - {"127.0.0.1"}:
            with socket.socket() as client, pytest.raises(OSError):
                client.settimeout(1)
                client.connect((address, server.server_port))


def test_ctrl_c_ends_the_server(tiny_site):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "convert.to_web", "--serve", str(tiny_site), "--port", "0"]
    # A shell's background jobs ignore SIGINT, and what they start ignores it, too.
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        preexec_fn=listening,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        port = int(line.split("localhost:")[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(10) == 0 and process.stderr.read() == ""
        finally:
            process.kill()


def test_serving_loads_no_jax_and_no_torch():
    code = (
        "import sys\nfrom convert import to_web\n"
        "assert to_web.main(['--serve', 'nowhere']) == 2\n"
        "assert not {'torch', 'onnx'} & set(sys.modules), 'serving needs none of them'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "not a site" in done.stderr, done.stderr
