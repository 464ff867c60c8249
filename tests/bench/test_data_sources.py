"""Where the data sets come from: packages' programs, which the tests replace, and a server on this machine."""

import gzip
import http.server
import io
import os
import tarfile
import threading
import time
from functools import partial

import pytest
from tqdm import tqdm

from bench.data import sources
from bench.data.sets import SETS
from bench.data.sources import NotHad
from tests.bench.data_fixtures import CONTENTS, OTHERS, small, write  # noqa: F401

NAME = "train-labels-idx1-ubyte"


@pytest.fixture
def bar():
    with tqdm(disable=True) as bar:
        yield bar


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes programs that are found before those of the system."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def make(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def fetch(dataset, scratch, bar):
    """By the set's package."""
    return sources.sources(dataset)[0].fetch(dataset, scratch, bar)


# Packages


def test_debian_package(small, program, tmp_path, scratch, bar):  # noqa: F811
    fashion = SETS["fashion-mnist"]
    write(tmp_path / "packed", OTHERS, suffix=".gz")
    program("apt-get", 'echo "$@" >&2; touch data.deb')
    program(
        "dpkg-deb", f'mkdir -p $3{fashion.installed} && cp {tmp_path}/packed/* $3{fashion.installed} && test -e "$2"'
    )
    found = fetch(fashion, scratch, bar)
    assert {name: gzip.decompress(content) for name, content in found.items()} == OTHERS
    program("dpkg-deb", f"mkdir -p $3{fashion.installed}")
    os.rename(scratch / "content", tmp_path / "away")
    with pytest.raises(NotHad, match="there is no train-images"):
        fetch(fashion, scratch, bar)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo reading; echo 'E: Unable to locate package x' >&2; echo bye; exit 100", "^apt-get: E: Unable to locate"),
        ("echo one; echo two; exit 1", "^apt-get: two$"),
        ("exit 7", "^apt-get: it ended with status 7$"),
        ("true", "^apt-get left no package$"),
    ],
)
def test_debian_package_that_is_not_had(script, message, small, program, scratch, bar):  # noqa: F811
    program("apt-get", script)
    with pytest.raises(NotHad, match=message):
        fetch(SETS["fashion-mnist"], scratch, bar)


def packed(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_npm_package(small, program, tmp_path, scratch, bar):  # noqa: F811
    evil = {"../../evil": b"!", "/evil": b"!", "package/index.js": b"no data"}
    packed(tmp_path / "data.tgz", evil | {f"package/data/{name}": content for name, content in CONTENTS.items()})
    program("npm", f'test "$1 $2" = "pack --ignore-scripts" && cp {tmp_path}/data.tgz .')
    assert fetch(small, scratch, bar) == CONTENTS
    assert not list(tmp_path.rglob("evil"))
    (tmp_path / "data.tgz").write_bytes((tmp_path / "data.tgz").read_bytes()[:-50])
    with pytest.raises(NotHad, match="its package is damaged"):
        fetch(small, scratch, bar)
    packed(tmp_path / "data.tgz", {f"package/data/{NAME}": CONTENTS[NAME]})
    with pytest.raises(
        NotHad, match="its package is without train-images-idx3-ubyte, t10k-images-idx3-ubyte, t10k-lab"
    ):
        fetch(small, scratch, bar)
    packed(tmp_path / "data.tgz", {f"package/data/{NAME}": bytes(1 << 20)})  # larger than the published one
    with pytest.raises(NotHad, match=f"without .*{NAME}"):
        fetch(small, scratch, bar)


def test_a_program_that_is_not_there(small, monkeypatch, scratch, bar):  # noqa: F811
    monkeypatch.setenv("PATH", "")
    for dataset, name in ((small, "npm"), (SETS["fashion-mnist"], "apt-get")):
        with pytest.raises(NotHad, match=f"^there is no {name}$"):
            fetch(dataset, scratch, bar)


def test_a_program_that_stalls_is_ended(small, program, monkeypatch, scratch, bar):  # noqa: F811
    monkeypatch.setattr(sources, "STALLED", 0.3)
    program("npm", "echo $$ > process; sleep 60 & wait")
    begin = time.monotonic()
    with pytest.raises(NotHad, match="^npm: nothing has come for 0 seconds$"):
        fetch(small, scratch, bar)
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((scratch / "process").read_text()), 0)


# Mirrors


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, answers, *arguments):
        self.answers = answers
        super().__init__(*arguments)

    def do_GET(self):
        status, promised, content = self.answers(self.path)
        self.send_response(status)
        if promised is not None:
            self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """server(answers): its address; answers: (status, promised size, content) of a path."""
    running = []

    def start(answers):
        running.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, answers)))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def whole(content):
    return 200, len(content), content


def test_mirror(small, server, scratch, bar):  # noqa: F811
    address = server(lambda path: whole(gzip.compress(CONTENTS[path.removeprefix("/mnist/").removesuffix(".gz")])))
    found = sources._mirror(f"{address}/mnist", small, scratch, bar)
    assert {name: gzip.decompress(content) for name, content in found.items()} == CONTENTS


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, 0, b""), r"^file\.gz: Not Found$"),
        ((200, 100, b"half"), r"^file\.gz: (must have 100 bytes, got 4: cut short|IncompleteRead\(4 bytes read)"),
        ((200, None, bytes(2000)), r"^file\.gz: must have 1000 bytes at most, got more$"),
    ],
)
def test_mirror_that_fails(answer, message, server, bar):
    address = server(lambda path: answer)
    with pytest.raises(NotHad, match=message):
        sources.download(f"{address}/file.gz", 1000, bar)


def test_no_network(bar):
    with pytest.raises(NotHad, match=r"^file\.gz: .*[Rr]efused"):
        sources.download("http://127.0.0.1:1/file.gz", 1000, bar)
