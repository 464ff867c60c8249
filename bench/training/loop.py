"""The same training with either kind of layers, from the same initial weights.

The providers take turns epoch by epoch, in an order that changes, so that what else the machine does hits both alike.
Each epoch starts from a seed of its own: both see the same batches, and neither depends on the other's draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastreg
from bench.results import progress
from bench.training import plain
from bench.training.data import Data, Split


@dataclass(frozen=True)
class Provider:
    """Layers under torch.nn's names: `layers.Dropout(p)`, `layers.BatchNorm1d(features)`, ..."""

    name: str
    layers: ModuleType


TORCH = Provider("torch", plain)
FASTREG = Provider("fastreg", fastreg.nn)
PROVIDERS = {provider.name: provider for provider in (TORCH, FASTREG)}
EITHER = "either"  # the layers of a network that has none of those compared


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained, with cross entropy."""

    network: Callable[[ModuleType], nn.Module]  # of the layers
    optimiser: Callable[..., torch.optim.Optimizer]  # of the parameters
    batch: int
    drop_last: bool = False  # of the batches, one that is not full
    members: int = 1  # networks that are trained each by itself, and whose predicted probabilities are averaged
    shared: bool = False  # it has none of the layers compared: trained once
    observe: Callable[[nn.Module], dict] | None = None  # further columns, after each epoch


@dataclass(frozen=True)
class Task:
    """What to train on, with whose layers, how often and how long."""

    data: Data
    providers: tuple[Provider, ...]
    seeds: int
    epochs: int


class Learner:
    """A network in training; `members` networks count as one."""

    def __init__(self, recipe: Recipe, networks: list[nn.Module]):
        self.recipe = recipe
        self.networks = networks
        self.optimisers = [recipe.optimiser(network.parameters()) for network in networks]

    def epoch(self, split: Split, passes: int = 1) -> float:
        """Train on all samples, in random order, `passes` times. Returns the seconds."""
        x, y = split
        orders = [torch.randperm(len(x)).to(x.device) for _ in range(passes * len(self.networks))]
        begin = _now(x.device)
        for index, order in enumerate(orders):
            network, optimiser = (each[index % len(self.networks)] for each in (self.networks, self.optimisers))
            network.train()
            for batch in order.split(self.recipe.batch):
                if self.recipe.drop_last and len(batch) < self.recipe.batch:
                    break
                optimiser.zero_grad()
                F.cross_entropy(network(x[batch]), y[batch]).backward()
                optimiser.step()
        return _now(x.device) - begin

    @torch.no_grad()
    def evaluate(self, split: Split) -> tuple[float, float]:
        """(loss, accuracy) in evaluation mode."""
        x, y = split
        output = self._log_probabilities(x)
        return F.nll_loss(output, y).item(), (output.argmax(1) == y).double().mean().item()

    def _log_probabilities(self, x: Tensor) -> Tensor:
        outputs = [network.eval()(x).log_softmax(1) for network in self.networks]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).exp().mean(0).log()


def start(recipe: Recipe, providers: tuple[Provider, ...], seed: int, device: torch.device) -> dict[str, Learner]:
    """A learner per provider, all with the first one's initial weights."""
    if recipe.shared:
        providers = (Provider(EITHER, providers[0].layers),)
    torch.manual_seed(seed)
    built = {provider.name: [recipe.network(provider.layers) for _ in range(recipe.members)] for provider in providers}
    initial = [network.state_dict() for network in built[providers[0].name]]
    for networks in built.values():
        for network, state in zip(networks, initial, strict=True):
            network.load_state_dict(state)
    return {name: Learner(recipe, [network.to(device) for network in networks]) for name, networks in built.items()}


def train(
    recipes: Mapping[str, Recipe],
    task: Task,
    splits: Mapping[str, Split] | None = None,
    passes: int = 1,
    losses: bool = True,
    name: str = "training",
) -> Iterator[list[dict]]:
    """Train each recipe with each provider's layers; yields the rows of all providers after each epoch.

    splits: what is trained on, by the name "train", and what else is evaluated; by default the data set's two.
    passes: over the training data that an epoch is made of.
    losses: are columns, too, and not the accuracies alone.
    """
    splits = splits or {"train": task.data.train, "test": task.data.test}
    device = splits["train"][0].device
    with progress(range(task.seeds * len(recipes) * task.epochs), name, "epoch") as bar:
        for seed in range(task.seeds):
            for variant, recipe in recipes.items():
                learners = start(recipe, task.providers, seed, device)
                for epoch in range(1, task.epochs + 1):
                    rows = []
                    for layers in list(learners)[:: 1 if epoch % 2 else -1]:
                        torch.manual_seed(seed * 1_000_000 + epoch)  # the CPU's generator heeds 32 bits only
                        row = {"variant": variant, "layers": layers, "seed": seed, "epoch": epoch}
                        row["seconds"] = learners[layers].epoch(splits["train"], passes)
                        rows.append(row | _judge(learners[layers], splits, losses))
                    bar.set_postfix_str(variant, refresh=False)
                    yield rows
                    bar.update()


def _judge(learner: Learner, splits: Mapping[str, Split], losses: bool) -> dict:
    columns = {}
    for name, split in splits.items():
        loss, accuracy = learner.evaluate(split)
        columns |= {f"{name}_loss": loss} if losses else {}
        columns[f"{name}_accuracy"] = accuracy
    if learner.recipe.observe:
        columns |= learner.recipe.observe(learner.networks[0])
    return columns


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
