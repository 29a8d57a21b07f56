"""Download a published file, and verify it: ``python -m convert.download NAME [--output DIR]``.

The data is written to ``FILE.part``, which is renamed once its size and SHA-256 match the table. Broken downloads are
resumed with HTTP Range, within a run and when the same command is run again.
"""

from __future__ import annotations

import argparse
import http.client
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from edgesam_jax.cli.command import run_command
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError
from edgesam_jax.files import sha256_of

EDGESAM_URL = "https://huggingface.co/spaces/chongzhou/EdgeSAM/resolve/main/weights"
SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
EDGESAM_LICENCE = "S-Lab License 1.0: non-commercial use only"
SAM_LICENCE = "Apache-2.0"
CHUNK = 1 << 18
TIMEOUT = 60.0  # seconds without data
RETRIES = 5  # in a row, without progress


@dataclass(frozen=True)
class Published:
    """A published file: its path below ``base_url``, SHA-256, size in bytes and licence."""

    path: str
    sha256: str
    size: int
    base_url: str = EDGESAM_URL
    licence: str = EDGESAM_LICENCE


def _sam(path: str, sha256: str, size: int) -> Published:
    # The six hexadecimal digits in SAM's file names are the beginning of the MD5, not of the SHA-256.
    return Published(path, sha256, size, SAM_URL, SAM_LICENCE)


FILES = (
    Published("edge_sam.pth", "439b086a20ab6fba90c12cba32e0001ba3aa726da5791ff8738acdd440330991", 38807540),
    Published("edge_sam_3x.pth", "5a3e3261da9e2f4c8154410885689ae57d09cbf4cf5d0c848b9d80b6df336ece", 38807540),
    Published("edge_sam_encoder.onnx", "c051e69a2a16ca8f5e09583ca18420ef0e75a67387dd90228ac9438f7f01357a", 22098300),
    Published("edge_sam_decoder.onnx", "e820af76837271db87478851603c6ce855906ca96baae2238217c2d5a38e0926", 15937006),
    Published("edge_sam_3x_encoder.onnx", "719a498cf5b3fe9be9f01ee513e13d3915f9028aa4f23dfd30eaaa0a17143159", 22098300),
    Published("edge_sam_3x_decoder.onnx", "83a2174d54571596913dcb7455d021e713623c3dca30a31c8c41ab98c9fb0863", 15937006),
    Published(
        "edge_sam_encoder.mlpackage.zip", "d011879601db71e95c578f3a9c3a26b8eb0e42e97896784da28d17b43da7e87e", 10290888
    ),
    Published(
        "edge_sam_decoder.mlpackage.zip", "b5b1f12242e4a181bbce0c1df0334083ccae8b71d6bd729d6e6bb0837e0f75e2", 9161751
    ),
    Published(
        "edge_sam_3x_encoder.mlpackage.zip",
        "9c749659493a12948937a845cc9c0578930c3532ebbdbaf64c71a32c7a3a6dec",
        10294845,
    ),
    Published(
        "edge_sam_3x_decoder.mlpackage.zip", "f8a278c28ee831e1a43e6f8e1ea5f2c9f0dd7dc4965ef6126204958217fcff7e", 9158303
    ),
    _sam("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375042383),
    _sam("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1249524607),
    _sam("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2564550879),
)


def _short_name(path: str) -> str:
    return re.sub(r"(_[0-9a-f]{6})?\.pth$", "", path)


TABLE = {_short_name(file.path): file for file in FILES}


def find(name: str) -> Published:
    """Return the file with a short name (``edge_sam``) or a file name (``edge_sam.pth``).

    Raises:
      UsageError: no such file in the table.
    """
    for short, file in TABLE.items():
        if name in (short, file.path):
            return file
    raise UsageError(f"{name}: not a published file; choose one of {', '.join(TABLE)}")


class _Broken(Exception):
    """A broken connection or a temporary server error; the request can be retried."""


def download(file: Published, folder: Path, base_url: str | None = None, pause: float = 1.0) -> Path:
    """Download ``file`` into ``folder`` and verify it; return its path. An existing file is verified and kept.

    Args:
      base_url: a mirror with the file at the same path.
      pause: seconds before the first retry; doubled after every attempt that receives no data.

    Raises:
      UsageError: no such file on the server, no connection, a wrong size or hash, or a folder that can't be written.
    """
    url = f"{(base_url or file.base_url).rstrip('/')}/{file.path}"
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"--base-url {base_url}: must begin with http:// or https://")
    target = folder / file.path
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if target.stat().st_size == file.size and sha256_of(target) == file.sha256:
                return target
            raise UsageError(f"{target}: exists and is not the published file; move it away, then run the same command")
        _fetch(url, part, file.size, pause)
        found = sha256_of(part)
        if found != file.sha256:
            part.unlink()
            raise UsageError(
                f"{url}: SHA-256 is {found}, must be {file.sha256}; refused, {part.name} removed: run the same command"
                " again; if the error persists, the server's file is not the published one"
            )
        part.replace(target)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror or error}") from error
    return target


def _fetch(url: str, part: Path, size: int, pause: float) -> None:
    """Download until ``part`` has ``size`` bytes; give up after ``RETRIES`` attempts in a row without data."""
    if part.exists() and part.stat().st_size > size:
        part.unlink()  # can't be the beginning of this file
    failures = 0
    with tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc=part.stem, dynamic_ncols=True) as bar:
        while (have := part.stat().st_size if part.exists() else 0) < size:
            bar.n = have
            bar.refresh()
            try:
                _continue(url, part, have, size, bar)
            except _Broken as error:
                arrived = part.stat().st_size if part.exists() else 0
                failures = 0 if arrived > have else failures + 1
                if failures >= RETRIES:
                    raise UsageError(
                        f"{url}: {error}; {arrived} of {size} bytes are kept in {part}:"
                        " run the same command again to resume"
                    ) from error
                time.sleep(pause * 2**failures)


def _continue(url: str, part: Path, have: int, size: int, bar: tqdm) -> None:
    """Request the rest of the file, and append it to ``part``."""
    headers = {"User-Agent": "edgesam-jax", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the server's file is shorter than ``part``
            raise UsageError(
                f"{url}: the server's file is not the published one (it ends before byte {have})"
            ) from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Broken(f"HTTP {error.code} {error.reason}") from error
        raise UsageError(f"{url}: HTTP {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Broken(f"no connection ({getattr(error, 'reason', error)})") from error
    with response:
        resumed = response.status == 206
        start, total = _announced(response, have if resumed else 0)
        if start != (have if resumed else 0) or (total is not None and total != size):
            expected = have if resumed else 0
            raise UsageError(
                f"{url}: the server offers {total} bytes from byte {start}, expected {size} from byte"
                f" {expected}; refused"
            )
        if not resumed and have:  # the server doesn't support Range: start from the beginning
            bar.n = 0
        with part.open("ab" if resumed else "wb") as out:
            written = start
            while written < size:
                try:
                    chunk = response.read1(min(CHUNK, size - written))
                except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                    raise _Broken(f"the connection broke ({type(error).__name__})") from error
                if not chunk:
                    raise _Broken("the connection broke")
                out.write(chunk)
                written += len(chunk)
                bar.update(len(chunk))


def _announced(response: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
    """Return (first byte, size of the complete file) from the response headers; the size is None if unknown."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match:
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return start, int(length) + start if length and length.isdigit() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(
        prog="python -m convert.download",
        description="Fetch a published file and verify it.",
        epilog=f"names: {', '.join(TABLE)}",
    )
    parser.add_argument("name", metavar="NAME", help="one of the names listed below")
    parser.add_argument("--output", type=Path, default=Path("weights"), metavar="DIR", help="folder (default: weights)")
    parser.add_argument("--base-url", metavar="URL", help="a mirror that holds the file")
    return run_command(
        lambda: run(parser.parse_args(argv)), interrupted="stopped; run the same command again to resume"
    )


def run(args: argparse.Namespace) -> int:
    """Download a file.

    Raises:
      UsageError: see ``find`` and ``download``.
    """
    file = find(args.name)
    path = download(file, args.output, args.base_url)
    print(f"{path}: verified, {file.size} bytes.  Licence: {file.licence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
