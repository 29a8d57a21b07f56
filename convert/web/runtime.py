"""ONNX Runtime Web's files, from its npm package at a pinned version.

``npm pack`` fetches the package once into the user's cache folder; only the files that a site needs are kept. Each is
compared with the SHA-256 recorded here, so another or a damaged file is never shipped.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from edgesam_jax.config import UsageError
from edgesam_jax.files import atomic_file, sha256_of

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# The build for WebAssembly with SIMD and threads, and that for WebGPU, which pages load only if there is an adapter.
WASM = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
WEBGPU = {
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
FILES = WASM | WEBGPU
LICENCE = "LICENSE.txt"
NOTICES = "ThirdPartyNotices.txt"
TIMEOUT = 600  # seconds for npm
# The npm package has no licence file; its package.json and scripts name the MIT licence and this holder.
MIT = """ONNX Runtime Web {version} (npm package onnxruntime-web, https://github.com/microsoft/onnxruntime)

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def cache_folder() -> Path:
    """Return the folder in the user's cache that holds the files of this version."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgesam_jax" / f"{PACKAGE}-{VERSION}"


def write_runtime(target: Path, unpacked: Path | None = None) -> None:
    """Write the runtime's files and its licence into a new folder.

    Args:
      unpacked: the unpacked npm package, or a folder with its files; default: the cache, filled by npm if necessary.

    Raises:
      UsageError: npm is missing or fails, or a file of ``unpacked`` is missing or of another version.
    """
    source = _given(unpacked) if unpacked is not None else prepare()
    target.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    (target / LICENCE).write_text(MIT.format(version=VERSION))
    notices = _notices()
    if notices is not None:
        shutil.copyfile(notices, target / NOTICES)


def _notices() -> Path | None:
    """Return the licences of the libraries in the runtime, which only the Python package of ONNX Runtime includes."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(NOTICES)
    return path if path.is_file() else None


def _given(folder: Path) -> Path:
    """Return the folder below ``folder`` that has the files.

    Raises:
      UsageError: there is none, or a file is of another version.
    """
    for source in (folder, folder / "dist", folder / "package" / "dist"):
        if (source / next(iter(FILES))).is_file():
            break
    else:
        raise UsageError(f"--runtime {folder}: has no dist/{next(iter(FILES))}; pass the unpacked package {PACKAGE}")
    for name, digest in FILES.items():
        if not (source / name).is_file():
            raise UsageError(f"--runtime {folder}: {name} is missing; unpack {PACKAGE} {VERSION} again")
        if sha256_of(source / name) != digest:
            raise UsageError(f"--runtime {folder}: {name} is not that of {PACKAGE} {VERSION}; pass this version")
    return source


def prepare() -> Path:
    """Return the cache folder, after npm has filled it if necessary.

    Raises:
      UsageError: npm is missing or fails.
    """
    folder = cache_folder()
    if all((folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in FILES.items()):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(
            f"npm: not found, and it fetches {PACKAGE}; install Node.js, or pass the unpacked package with --runtime"
        )
    with tempfile.TemporaryDirectory() as temporary:
        archive = _pack(npm, Path(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed:
            for name, digest in FILES.items():
                _take(packed, name, digest, folder)
    return folder


def _pack(npm: str, folder: Path) -> Path:
    """Have npm download the package into a folder; return its path."""
    print(f"{PACKAGE} {VERSION}: fetching with npm", flush=True)
    try:
        done = subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"],
            cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        said = f"no answer in {TIMEOUT} s"
    found = list(folder.glob("*.tgz"))
    if len(found) != 1:
        raise UsageError(
            f"npm pack {PACKAGE}@{VERSION}: {said.splitlines()[-1]}; check the network, or pass --runtime FOLDER"
        )
    return found[0]


def _take(packed: tarfile.TarFile, name: str, digest: str, folder: Path) -> None:
    """Copy one file out of the package, if it is the expected one."""
    try:
        content = packed.extractfile(f"package/dist/{name}")
    except KeyError:
        content = None
    if content is None:
        raise UsageError(f"{PACKAGE} {VERSION}: the package has no dist/{name}; pass another with --runtime")
    with content, atomic_file(folder / name) as temporary:
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file)
        if sha256_of(temporary) != digest:
            raise UsageError(f"{PACKAGE} {VERSION}: dist/{name} has another checksum than expected; try again")
