"""The same training with the layers of either provider, from the same initial weights.

The providers take turns epoch by epoch, in an order that changes, so that what else the machine does hits both alike.
Each epoch starts from a seed of its own: both see the same batches, and neither depends on the other's draws.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from bench import digits
from bench.providers import FASTREG, TORCH, Provider
from bench.results import format_table, progress

BATCH = 32
LEARNING_RATE = 1e-3
PROVIDERS = (TORCH, FASTREG)


def networks(providers: tuple[Provider, ...], seed: int, device: torch.device) -> dict[str, nn.Module]:
    """One network per provider, all with the first one's initial weights."""
    torch.manual_seed(seed)
    built = {provider.name: digits.network(provider.layers) for provider in providers}
    initial = built[providers[0].name].state_dict()
    for network in built.values():
        network.load_state_dict(initial)
    return {name: network.to(device) for name, network in built.items()}


def train_epoch(network: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    """One pass over the training data in random order. Returns its seconds."""
    network.train()
    order = torch.randperm(len(x)).to(x.device)
    begin = _now(x.device)
    for batch in order.split(BATCH):
        optimiser.zero_grad()
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimiser.step()
    return _now(x.device) - begin


@torch.no_grad()
def evaluate(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """(loss, accuracy) in evaluation mode."""
    output = network.eval()(x)
    return F.cross_entropy(output, y).item(), (output.argmax(1) == y).double().mean().item()


def run(device: torch.device, epochs: int, seeds: int) -> Iterator[list[dict]]:
    """Train; yields the rows of both providers after each epoch."""
    train_x, train_y, test_x, test_y = digits.data(device)
    with progress(range(seeds * epochs), "training", "epoch") as bar:
        for seed in range(seeds):
            nets = networks(PROVIDERS, seed, device)
            optimisers = {name: torch.optim.Adam(net.parameters(), lr=LEARNING_RATE) for name, net in nets.items()}
            for epoch in range(1, epochs + 1):
                rows = []
                for name in list(nets)[:: 1 if epoch % 2 else -1]:
                    torch.manual_seed(seed * 1_000_000 + epoch)  # the CPU's generator heeds 32 bits only
                    seconds = train_epoch(nets[name], optimisers[name], train_x, train_y)
                    train_loss, train_accuracy = evaluate(nets[name], train_x, train_y)
                    test_loss, test_accuracy = evaluate(nets[name], test_x, test_y)
                    rows.append(
                        {
                            "network": "digits",
                            "seed": seed,
                            "epoch": epoch,
                            "provider": name,
                            "seconds": seconds,
                            "train_loss": train_loss,
                            "test_loss": test_loss,
                            "train_accuracy": train_accuracy,
                            "test_accuracy": test_accuracy,
                        }
                    )
                bar.set_postfix({row["provider"]: f"{row['test_accuracy']:.1%}" for row in rows}, refresh=False)
                yield rows
                bar.update()


def summarise(rows: list[dict]) -> dict[str, dict]:
    """Per provider: the last epoch's losses and accuracies, a list over the seeds; median seconds per epoch."""
    summary = {}
    for provider in PROVIDERS:
        own = [row for row in rows if row["provider"] == provider.name]
        last = {row["seed"]: row for row in own}.values()
        columns = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
        summary[provider.name] = {column: [row[column] for row in last] for column in columns}
        summary[provider.name]["seconds"] = statistics.median(row["seconds"] for row in own)
    return summary


def report(rows: list[dict]) -> str:
    """A line per provider: means over the seeds, and the standard deviation where there are several."""
    summary = summarise(rows)
    lines = []
    for name, values in summary.items():
        losses = [_spread(values[column], "{:.4f}") for column in ("train_loss", "test_loss")]
        accuracies = [_spread(values[column], "{:.2%}") for column in ("train_accuracy", "test_accuracy")]
        ratio = summary[TORCH.name]["seconds"] / values["seconds"]
        lines.append([name, *losses, *accuracies, f"{values['seconds']:.4f}", f"{ratio:.2f}"])
    header = ["layers", "train loss", "test loss", "train accuracy", "test accuracy", "s/epoch", "speed"]
    seeds = len({row["seed"] for row in rows})
    epochs = max(row["epoch"] for row in rows)
    title = f"digits 64-100-100-100-100-10, {epochs} epochs, {seeds} seed{'s' * (seeds > 1)}, median seconds per epoch"
    return f"{title}\n{format_table(header, lines)}"


def _spread(values: list[float], form: str) -> str:
    mean = form.format(statistics.mean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
