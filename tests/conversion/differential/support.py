"""What generated programs import."""

import threading

import torch
from torch import nn

import fastreg


class DropPath(nn.Module):
    """Drop path as many libraries have it, with fastreg's draws, so that masks can be compared."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return fastreg.functional.drop_path(x, self.drop_prob, self.training)


class Norm1d(nn.BatchNorm1d):
    """A user's subclass."""


class Norm2d(nn.BatchNorm2d):
    """A user's subclass."""


class Options:
    def __init__(self, **settings):
        self.__dict__.update(settings)


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight * 2


def in_threads(functions):
    """Run functions at the same time; their results, or the types of what they raised."""
    results = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(index):
        barrier.wait()
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = type(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def own_method(function, module):
    """A function as a method of one object."""
    return function.__get__(module)


def can_be_hooked(x):
    """Hooks of views written to without gradients end torch's process."""
    return x.requires_grad and torch.is_grad_enabled()


def halved(x, *_):
    return torch.mul(x, 0.5)


def unchanged(function):
    """A decorator that nobody knows."""

    def call(*args):
        return function(*args)

    return call
