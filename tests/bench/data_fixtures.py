"""A data set of the published form and a few samples, and its files."""

import dataclasses
import gzip
import hashlib
import struct

import numpy as np
import pytest

from bench.data import bring
from bench.data.sets import FASHION_MNIST, MNIST, SETS, SIZES

IMAGES = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
ARRAYS = dict(zip(SIZES, (IMAGES, LABELS, IMAGES[:2], LABELS[:2]), strict=True))


def encoded(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


CONTENTS = {name: encoded(array) for name, array in ARRAYS.items()}
OTHERS = {name: encoded(255 - array) for name, array in ARRAYS.items()}  # the other set's


def _small(published, contents):
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return dataclasses.replace(published, files=files, installed="/no/such/place")


@pytest.fixture
def small(monkeypatch):
    """MNIST, and Fashion-MNIST, of a few samples; none lies anywhere yet."""
    for name, content in CONTENTS.items():
        monkeypatch.setitem(SIZES, name, len(content))
    monkeypatch.setitem(SETS, "mnist", _small(MNIST, CONTENTS))
    monkeypatch.setitem(SETS, "fashion-mnist", _small(FASHION_MNIST, OTHERS))
    monkeypatch.setattr(bring.sets, "ROOTS", ())
    return SETS["mnist"]


@pytest.fixture
def no_data(monkeypatch):
    """Whatever lies on this machine: the experiments do not find it."""
    monkeypatch.setattr(bring, "places", lambda dataset: [])


def write(folder, contents=CONTENTS, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content, 1) if suffix else content)
    return folder
