"""The data sets' files: whole, packed in any way, damaged, swapped; found, and brought whole or not at all."""

import errno
import gzip
import os

import numpy as np
import pytest

from bench.data import __main__ as command
from bench.data import bring, idx, sets
from bench.data.sets import SETS, SIZES
from bench.data.sources import NotHad, Source, folder_source
from tests.bench.bench_fixtures import run_command as run_main
from tests.bench.data_fixtures import ARRAYS, CONTENTS, IMAGES, LABELS, OTHERS, encoded, small, write  # noqa: F401

NAME = "t10k-images-idx3-ubyte"


def everything(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def run_command(*arguments):
    return run_main(command.main, *arguments)


# Files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_read_whatever_their_packing(suffix, small, tmp_path):  # noqa: F811
    contents = idx.read(write(tmp_path, suffix=suffix), small)
    for (name, content), expected in zip(contents.items(), ARRAYS.values(), strict=True):
        np.testing.assert_array_equal(idx.parse(content, name), expected)
    (tmp_path / f"{NAME}{suffix}").unlink()
    (tmp_path / f"{NAME}.gz").write_bytes(gzip.compress(CONTENTS[NAME], 9, mtime=5))  # packed anew
    assert idx.read(tmp_path, small) == CONTENTS
    (tmp_path / f"{NAME}.gz").write_bytes(CONTENTS[NAME])  # named so, and not packed
    assert idx.read(tmp_path, small) == CONTENTS


def test_what_is_missing_is_named_beside_what_is_there(small, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match=r"^must be a folder with train-images.*, got .*/absent which is not there$"):
        idx.read(tmp_path / "absent", small)
    with pytest.raises(ValueError, match="which is empty$"):
        idx.read(tmp_path, small)
    write(tmp_path)
    (tmp_path / NAME).rename(tmp_path / "t10k-images.idx3-ubyte")
    expected = rf"^must be a folder with {NAME}\[\.gz\], got .* with t10k-images\.idx3-ubyte, t10k-labels-idx1-ubyte, "
    with pytest.raises(ValueError, match=expected):
        idx.read(tmp_path, small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENTS[NAME][:-1] + b"\1", "other content, of SHA-256 "),
        (CONTENTS[NAME][:-1], "1583 bytes: truncated, or other data, where 1584 bytes are right"),
        (b"", "0 bytes: truncated"),
        (CONTENTS[NAME] + b"\0", "a longer one, where 1584 bytes are right"),
        (gzip.compress(bytes(1 << 20)), "a longer one, where 1584 bytes are right"),
        (gzip.compress(CONTENTS[NAME])[:-9], r"a gzip file that is damaged \(Compressed file ended"),
        (gzip.compress(CONTENTS[NAME])[:12] + b"\xff" * 30, "a gzip file that is damaged"),
        (gzip.compress(CONTENTS[NAME])[:-8] + bytes(8), r"a gzip file that is damaged \(CRC check failed"),
        (b"\n<!doctype html><title>Not found", r"a page of HTML \(32 bytes\)"),
        (CONTENTS["train-images-idx3-ubyte"], "MNIST's train-images-idx3-ubyte"),
        (gzip.compress(CONTENTS["t10k-labels-idx1-ubyte"]), "MNIST's t10k-labels-idx1-ubyte"),
        (OTHERS[NAME], "Fashion-MNIST's t10k-images-idx3-ubyte"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(content, message, small, tmp_path):  # noqa: F811
    (write(tmp_path) / NAME).write_bytes(content)
    with pytest.raises(ValueError, match=rf"/{NAME}: must be MNIST's {NAME}, got {message}"):
        idx.read(tmp_path, small)


def test_what_unpacks_to_far_more_is_not_unpacked():
    assert len(idx._unpack(gzip.compress(bytes(1 << 22)), 100)) == 101


def test_published_checksums_differ():
    known = [checksum for dataset in SETS.values() for checksum in dataset.files.values()]
    assert len(set(known)) == 8 and {len(checksum) for checksum in known} == {64}
    assert sum(SIZES.values()) == 54_950_048


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header must begin with 00 00 08 and a rank from 1, got $"),
        (b"\0\0\x08", "header must begin with 00 00 08 and a rank from 1, got 00 00 08$"),
        (b"\0\1\x08" + encoded(LABELS)[3:], "got 00 01 08 01$"),
        (b"\0\0\x0d" + encoded(LABELS)[3:], "got 00 00 0d 01$"),  # floats
        (b"\0\0\x08\0" + encoded(LABELS)[4:], "got 00 00 08 00$"),
        (encoded(IMAGES)[:15], "header must have 16 bytes, got 15: truncated"),
        (encoded(IMAGES)[:-1], r"must have 3936 bytes for shape \[5, 28, 28\], got 3935"),
        (encoded(IMAGES) + b"\0", r"must have 3936 bytes for shape \[5, 28, 28\], got 3937"),
    ],
)
def test_damaged_idx(content, message):
    with pytest.raises(ValueError, match=message):
        idx.parse(content)


# Finding


def test_found_where_torchvision_leaves_them(small, tmp_path, monkeypatch, capsys):  # noqa: F811
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(sets, "ROOTS", (first, second))
    assert bring.find(small) is None
    write(second / "MNIST/raw")
    assert bring.find(small) == (second / "MNIST/raw", CONTENTS)
    write(first / "MNIST/raw", CONTENTS | {NAME: b"<html>"})
    assert bring.find(small)[0] == second / "MNIST/raw"
    assert "passed over: " in (error := capsys.readouterr().err) and "got a page of HTML" in error
    (first / "MNIST/raw" / NAME).write_bytes(CONTENTS[NAME])
    assert bring.find(small)[0] == first / "MNIST/raw"
    assert bring.find(SETS["fashion-mnist"]) is None


def test_a_root_or_the_folder_itself(small, tmp_path):  # noqa: F811
    folder = write(tmp_path / "MNIST/raw")
    assert bring.within(tmp_path, small) == bring.within(folder, small) == folder


# Bringing


def source(contents, name="there"):
    return Source(name, lambda dataset, scratch, bar: contents)


def failing(error):
    def fetch(dataset, scratch, bar):
        (scratch / "half").write_bytes(b"of it")
        raise error

    return Source("failing", fetch)


def test_the_first_that_has_them_is_taken(small, tmp_path):  # noqa: F811
    damaged = source(CONTENTS | {NAME: b"<html>"}, "damaged")
    packed = source({name: gzip.compress(content) for name, content in CONTENTS.items()}, "packed")
    found = bring.bring(
        small, tmp_path / "new/root", [failing(NotHad("no network")), damaged, packed, failing(OSError())]
    )
    assert found == (tmp_path / "new/root/MNIST/raw", "packed")
    assert everything(tmp_path) == sorted(CONTENTS)
    assert idx.read(found[0], small) == CONTENTS


def test_where_none_has_them_each_tells_why(small, tmp_path):  # noqa: F811
    damaged = source(CONTENTS | {NAME: b"<html>"}, "damaged")
    with pytest.raises(NotHad) as raised:
        bring.bring(small, tmp_path, [failing(NotHad("no network")), damaged])
    first, second = str(raised.value).splitlines()
    assert first == "failing: no network"
    assert second == f"damaged: damaged: must be MNIST's {NAME}, got a page of HTML (6 bytes)"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_what_ends_it_leaves_nothing(error, small, tmp_path):  # noqa: F811
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        bring.bring(small, tmp_path, [failing(error)])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_there(small, tmp_path, monkeypatch):  # noqa: F811
    target = write(tmp_path / "MNIST/raw", CONTENTS | {NAME: b"damaged"})
    before, written = {path: path.read_bytes() for path in target.iterdir()}, []

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        bring.bring(small, tmp_path, [source(CONTENTS)])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (target / f"{NAME}.gz").write_bytes(b"damaged, too")
    bring.bring(small, tmp_path, [source(CONTENTS)])
    assert idx.read(target, small) == CONTENTS and everything(tmp_path) == sorted(CONTENTS)


# The command


@pytest.fixture
def nowhere(small, monkeypatch, tmp_path):  # noqa: F811
    """There is no network, and nothing on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "sources", lambda dataset: [failing(NotHad("no network"))])
    return tmp_path


def test_not_to_be_had(nowhere, capsys):
    assert run_command() == 1
    error = capsys.readouterr().err
    assert "bench.data: MNIST is not to be had:\n  failing: no network\n" in error
    assert "bench.data: Fashion-MNIST is not to be had:" in error and "--from DIR" in error
    assert everything(nowhere) == []


def test_brought_once(nowhere, monkeypatch, capsys):
    monkeypatch.setattr(command, "sources", lambda dataset: [source(CONTENTS)])
    assert run_command("mnist", "mnist") == 0
    assert capsys.readouterr().out == "MNIST: bench/out/data/MNIST/raw, from there\n"
    monkeypatch.setattr(command, "sources", lambda dataset: [])
    assert run_command("mnist") == 0
    assert capsys.readouterr().out == "MNIST: bench/out/data/MNIST/raw, already there\n"


def test_found_elsewhere(nowhere, monkeypatch, capsys):
    monkeypatch.setattr(sets, "ROOTS", (nowhere / "mine",))
    write(nowhere / "mine/MNIST/raw", suffix=".gz")
    assert run_command("mnist") == 0
    assert capsys.readouterr().out == f"MNIST: {nowhere}/mine/MNIST/raw, already there\n"
    assert run_command("mnist", "--to", "other") == 0  # copied, as it was asked for there
    assert capsys.readouterr().out == f"MNIST: other/MNIST/raw, from {nowhere}/mine/MNIST/raw\n"
    assert idx.read(nowhere / "other/MNIST/raw", SETS["mnist"]) == CONTENTS


def test_from_a_folder(nowhere, capsys):
    write(nowhere / "given")
    assert run_command("mnist", "--from", "given") == 0
    assert run_command("fashion-mnist", "--from", "given") == 1
    assert "got MNIST's train-images-idx3-ubyte" in capsys.readouterr().err
    (nowhere / "given" / NAME).unlink()
    assert run_command("mnist", "--from", "given", "--to", "new") == 1
    assert f"given: there is no {NAME} in it" in capsys.readouterr().err
    assert not (nowhere / "new/MNIST").exists()


def test_a_folder_that_cannot_be_written(nowhere, monkeypatch, capsys):
    monkeypatch.setattr(command, "sources", lambda dataset: [source(CONTENTS)])
    (nowhere / "file").touch()
    assert run_command("mnist", "--to", nowhere / "file") == 1
    assert f"MNIST: cannot write to {nowhere}/file: " in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert run_command("mnist", "--to", nowhere / "full") == 1
    assert f"MNIST: cannot write to {nowhere}/full: No space left" in capsys.readouterr().err


def test_ctrl_c(nowhere, monkeypatch, capsys):
    monkeypatch.setattr(command, "sources", lambda dataset: [failing(KeyboardInterrupt())])
    assert run_command() == 130
    assert "interrupted" in capsys.readouterr().err and everything(nowhere) == []


def test_bad_names(capsys):
    assert run_command("mnits") == 2
    assert "NAME must be one of mnist, fashion-mnist, got mnits" in capsys.readouterr().err


def test_folder_source_of_what_is_no_folder(small, tmp_path):  # noqa: F811
    with pytest.raises(NotHad, match="there is no train-images"):
        folder_source(tmp_path / "absent").fetch(small, tmp_path, None)
