"""The data of the experiments: the digits' split, and the sets that are read from files."""

import pytest
import torch

from bench.data import sets
from bench.training import data
from tests.bench.data_fixtures import IMAGES, OTHERS, no_data, small, write  # noqa: F401

CPU = torch.device("cpu")


@pytest.mark.parametrize("named", [".", "FashionMNIST/raw", None])
def test_data_set_from_files(named, small, tmp_path, monkeypatch):  # noqa: F811
    """In the folder, in torchvision's below it, or where they usually are."""
    monkeypatch.setattr(sets, "ROOTS", (tmp_path,))
    write(tmp_path / (named or "FashionMNIST/raw"), OTHERS, suffix=".gz")
    loaded = data.load("fashion-mnist", named and tmp_path, CPU)
    assert (loaded.name, loaded.stands_in_for, loaded.features) == ("fashion-mnist", None, 784)
    torch.testing.assert_close(loaded.train[0], torch.tensor((255 - IMAGES) / 255, dtype=torch.float32).flatten(1))
    assert torch.equal(loaded.train[1], torch.tensor([252, 254, 251, 254, 250]))
    assert torch.equal(loaded.test[1], torch.tensor([252, 254]))
    assert loaded.describe() == "On Fashion-MNIST"


def test_a_folder_that_is_named_must_have_the_files(small, tmp_path):  # noqa: F811
    with pytest.raises(
        ValueError, match=r"^--data must be a folder with train-images-idx3-ubyte\[\.gz\], train-labels"
    ):
        data.load("mnist", tmp_path, CPU)
    write(tmp_path, OTHERS)
    with pytest.raises(
        ValueError, match="^--data .*must be MNIST's train-images-idx3-ubyte, got Fashion-MNIST's train-"
    ):
        data.load("mnist", tmp_path, CPU)


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


def test_a_stand_in_says_so(no_data):  # noqa: F811
    loaded = data.load("mnist", None, CPU)
    assert (loaded.name, loaded.stands_in_for) == ("digits", "mnist")
    assert loaded.describe() == "On scikit-learn's digits in place of MNIST, which was not there"
