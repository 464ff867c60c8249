"""A small convolutional network with and without batch norm, on MNIST or, where that is absent, scikit-learn's digits.

pip install scikit-learn
python examples/mnist.py [FOLDER]     # with train-images-idx3-ubyte and its three fellows, packed or not
"""

import gzip
import sys
from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits

import fastreg

EPOCHS, BATCH, LARGEST = 3, 64, 10000


def read(folder, name):
    """An IDX file: the number of dimensions in its fourth byte, their sizes in four bytes each, the values."""
    path = Path(folder, name)
    content = path.read_bytes() if path.exists() else gzip.decompress(Path(folder, f"{name}.gz").read_bytes())
    shape = numpy.frombuffer(content, ">i4", count=content[3], offset=4)
    return torch.from_numpy(numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * content[3]).reshape(shape).copy())


def load(folder):
    """(name, images [N, 1, H, W] and labels to train with, the same to test with)."""
    if folder is not None:
        parts = [read(folder, f"{part}-{kind}") for part in ("train", "t10k") for kind in FILES]
        images, labels = (part.unsqueeze(1) / 255 for part in parts[::2]), (part.long() for part in parts[1::2])
        (train_x, test_x), (train_y, test_y) = images, labels
        return "MNIST", train_x[:LARGEST], train_y[:LARGEST], test_x, test_y
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return "scikit-learn's digits, for no folder of MNIST was given", x[train], y[train], x[test], y[test]


FILES = ("images-idx3-ubyte", "labels-idx1-ubyte")


def network(normalised):
    """Four convolutions; with batch norm each is followed by one, fused with its relu."""
    modules, channels = [], 1
    for width in (16, 16, 32, 32):
        modules.append(torch.nn.Conv2d(channels, width, 3, padding=1, bias=not normalised))
        modules.append(fastreg.nn.BatchNormAct2d(width) if normalised else torch.nn.ReLU())
        channels = width
    return torch.nn.Sequential(*modules, torch.nn.AdaptiveMaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(128, 10))


def train(model, x, y, rate):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses[-10:]) / 10


def main(folder=None):
    name, train_x, train_y, test_x, test_y = load(folder)
    print(f"on {name}")
    reached = {}
    for normalised in (False, True):
        torch.manual_seed(0)
        model = network(normalised)
        loss = train(model, train_x, train_y, rate=0.1)
        with torch.no_grad():
            reached[normalised] = (model.eval()(test_x).argmax(1) == test_y).float().mean().item()
        title = "with batch norm" if normalised else "without"
        print(f"{title:<16} last losses {loss:.3f}, test accuracy {reached[normalised]:.1%}")
    assert reached[True] > reached[False], "batch norm trains faster"


if __name__ == "__main__":
    main(*sys.argv[1:])
