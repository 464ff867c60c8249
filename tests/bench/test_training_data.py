"""The data of the experiments: the digits' split, and IDX files, whole and damaged, which the tests write."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from bench.training import data, idx

CPU = torch.device("cpu")
IMAGES = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
ARRAYS = dict(zip(idx.MNIST, (IMAGES, LABELS, IMAGES[:2], LABELS[:2]), strict=True))


def encoded(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder, contents):
    """The files, by name; returns the checksums that a publisher would give."""
    checksums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        checksums[name.removesuffix(".gz")] = (hashlib.md5(content).hexdigest(),) * 2
    return checksums


@pytest.fixture(params=["", ".gz"], ids=["plain", "packed"])
def suffix(request):
    return request.param


@pytest.fixture
def files(suffix):
    pack = gzip.compress if suffix else bytes
    return {name + suffix: pack(encoded(array)) for name, array in ARRAYS.items()}


def test_files_are_read(files, tmp_path):
    arrays = idx.load(tmp_path, write(tmp_path, files))
    for array, expected in zip(arrays, ARRAYS.values(), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("subfolder", [".", "FashionMNIST/raw"])
def test_data_set_from_files(files, subfolder, tmp_path, monkeypatch):
    (tmp_path / subfolder).mkdir(parents=True, exist_ok=True)
    monkeypatch.setitem(data.CHECKSUMS, "fashion", write(tmp_path / subfolder, files))
    loaded = data.load("fashion", tmp_path, CPU)
    assert (loaded.name, loaded.stands_in_for, loaded.features) == ("fashion", None, 784)
    torch.testing.assert_close(loaded.train[0], torch.tensor(IMAGES / 255, dtype=torch.float32).flatten(1))
    assert torch.equal(loaded.train[1], torch.tensor([3, 1, 4, 1, 5]))
    assert torch.equal(loaded.test[1], torch.tensor([3, 1]))
    assert loaded.describe() == "On Fashion-MNIST"


def test_missing_files_are_all_named(files, suffix, tmp_path):
    checksums = write(tmp_path, files)
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / (name + suffix)).unlink()
    with pytest.raises(ValueError, match=r"^--data must be a folder with train-labels-idx1-ubyte\[\.gz\], t10k-labels"):
        idx.load(tmp_path, checksums)


def test_wrong_checksum(files, suffix, tmp_path):
    checksums = write(tmp_path, files)
    path = tmp_path / ("t10k-images-idx3-ubyte" + suffix)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    expected = checksums["t10k-images-idx3-ubyte"][0]
    with pytest.raises(ValueError, match=f"t10k-images-idx3-ubyte{suffix}: MD5 must be the published {expected}, got"):
        idx.load(tmp_path, checksums)


def test_published_checksums_refuse_other_data(files, tmp_path):
    write(tmp_path, files)
    for published in (idx.MNIST, idx.FASHION_MNIST):
        with pytest.raises(ValueError, match="damaged, or other data"):
            idx.load(tmp_path, published)
    known = [checksum for table in (idx.MNIST, idx.FASHION_MNIST) for pair in table.values() for checksum in pair]
    assert len(set(known)) == 16 and {len(checksum) for checksum in known} == {32}


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:20] + b"\xff" * 8 + c[28:], lambda c: b"no" + c])
def test_damaged_gzip(damage, tmp_path):
    name = "train-labels-idx1-ubyte"
    checksums = write(tmp_path, {f"{name}.gz": damage(gzip.compress(encoded(LABELS.repeat(50))))})
    with pytest.raises(ValueError, match=rf"{name}\.gz: must be a whole gzip file, got one that is damaged"):
        idx.load(tmp_path, checksums)


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


def test_digits_are_standardised_by_the_training_split():
    loaded = data.load("digits", None, CPU)
    (train_x, train_y), (test_x, test_y) = loaded.train, loaded.test
    assert (train_x.shape, train_y.shape, test_x.shape, test_y.shape) == ((1437, 64), (1437,), (360, 64), (360,))
    varying = train_x.std(0) > 0
    assert varying.sum() > 55
    torch.testing.assert_close(train_x.mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(train_x.std(0)[varying], torch.ones(int(varying.sum())))
    assert test_x.mean(0).abs().max() > 1e-3  # not by its own mean
    again = data.digits(CPU)
    assert torch.equal(again.train[0], train_x) and torch.equal(again.test[1], test_y)


def test_a_stand_in_says_so():
    loaded = data.load("mnist", None, CPU)
    assert (loaded.name, loaded.stands_in_for) == ("digits", "mnist")
    assert loaded.describe() == "On scikit-learn's digits in place of MNIST, for there was no --data"
