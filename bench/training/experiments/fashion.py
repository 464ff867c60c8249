"""Dropout after two hidden layers of 256, as in Zhang et al., "Dive into Deep Learning", section Dropout, and the eight
questions that the book's editions ask after it, each a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import SGD

from bench.training import charts, loop, report
from bench.training.data import Data
from bench.training.experiments.answers import gap, gap_less, mean, percent, verdict
from bench.training.experiments.experiment import Experiment
from bench.training.loop import Recipe, Task, train
from bench.training.networks import ThreeLevelDropout, normal_weights

PASSES = {"digits": 5, "fashion-mnist": 1}  # in an epoch: 30 batches of 256 on the digits, where one pass has 6
WEIGHT_DECAY = 1e-3
PUBLISHED = {"from scratch": 0.881, "concise": 0.873}
COLUMNS = ("train_loss", "train_accuracy", "test_accuracy")
SEEDS = 5
PASSES_LEFT_ON = 10
WIDE = 512


@dataclass(frozen=True)
class Variant:
    """A network and how it is regularised."""

    p: tuple[float, float] | None = (0.2, 0.5)  # after the first and the second hidden layer; None: no dropout
    kind: str = "dropout"  # or three-level, or weights: those that read the hidden layers
    width: int = 256
    weight_decay: float = 0.0

    def network(self, layers: ModuleType, features: int) -> nn.Module:
        modules = [nn.Linear(features, self.width)]
        for outputs, p in zip((self.width, 10), self.p or (None, None), strict=True):
            modules.append(nn.ReLU())
            if p is not None and self.kind == "weights":
                modules.append(layers.DropConnectLinear(self.width, outputs, p=p))
                continue
            if p is not None:
                modules.append(ThreeLevelDropout(layers, p) if self.kind == "three-level" else layers.Dropout(p))
            modules.append(nn.Linear(self.width, outputs))
        return normal_weights(nn.Sequential(*modules), 0.01)

    def recipe(self, features: int, observe: Callable[[nn.Module], dict] | None = None) -> Recipe:
        optimiser = partial(SGD, lr=0.5, weight_decay=self.weight_decay)
        return Recipe(partial(self.network, features=features), optimiser, 256, shared=not self.p, observe=observe)


DROPPED, PLAIN = Variant(), Variant(p=None)
_EITHER_WAY = {"dropout": DROPPED, "no dropout": PLAIN}


def variances(network: nn.Sequential, data: Data) -> dict[str, float]:
    """Of what each hidden layer hands on in training, after its dropout if it has one, over samples and units."""
    found, x = [], data.train[0][:1000]
    with torch.no_grad():
        for module in network.train():
            if isinstance(module, nn.Linear):
                found.append(x.var().item())
            x = module(x)
    return {f"hidden_{index}_variance": value for index, value in enumerate(found[1:], start=1)}


def left_on(network: nn.Sequential, data: Data) -> dict[str, float]:
    """Test accuracy with dropout as in training: of one pass, and of the mean probabilities of several."""
    x, y = data.test
    network.train()
    with torch.no_grad():
        passes = torch.stack([network(x).softmax(1) for _ in range(PASSES_LEFT_ON)])
    return {
        f"{name}_accuracy": (output.argmax(1) == y).double().mean().item()
        for name, output in (("one_pass", passes[0]), ("mean_of_passes", passes.mean(0)))
    }


@dataclass(frozen=True)
class Question:
    """answer: of the rows. observe: further columns, of a network and the data; columns: those of the chart."""

    title: str
    variants: Mapping[str, Variant]
    answer: Callable[[list[dict]], str]
    epochs: int = 10
    observe: Callable[[nn.Sequential, Data], dict] | None = None
    columns: Sequence[str] = COLUMNS


def _against(rows: list[dict], first: str, second: str) -> str:
    """Of two variants' test accuracies."""
    apart = verdict(rows, (first, "test_accuracy"), (second, "test_accuracy"))
    return f"{first} gives {percent(rows, first)} on test data and {second} {percent(rows, second)}: {apart}."


def _longer(rows: list[dict]) -> str:
    early = QUESTIONS["longer"].epochs // 3
    first, second = (f"from {gap(rows, name, early)} to {gap(rows, name)} points" for name in _EITHER_WAY)
    return (
        f"from epoch {early} to the last the gap between training and test accuracy grows {first} with dropout and "
        f"{second} without; {_against(rows, *_EITHER_WAY)}"
    )


def _variance(rows: list[dict]) -> str:
    layers = [
        "{:.3g} instead of {:.3g}".format(*(mean(rows, name, f"hidden_{index}_variance") for name in _EITHER_WAY))
        for index in (1, 2)
    ]
    return f"in training, with dropout, it is {layers[0]} in the first hidden layer and {layers[1]} in the second."


def _test_time(rows: list[dict]) -> str:
    (name,) = QUESTIONS["test-time"].variants
    one, several = (percent(rows, name, f"{column}_accuracy") for column in ("one_pass", "mean_of_passes"))
    apart = verdict(rows, (name, "test_accuracy"), (name, "one_pass_accuracy"))
    return (
        f"switched off, dropout gives {percent(rows, name)} on test data; left on {one}, {apart}; and the mean of "
        f"{PASSES_LEFT_ON} passes with it left on {several}."
    )


def _wider(rows: list[dict]) -> str:
    small, large = (gap_less(rows, f"{width}, dropout", f"{width}, none") for width in (256, WIDE))
    return (
        f"dropout narrows the gap between training and test accuracy by {small} points with 256 units and by {large} "
        f"with {WIDE}; {_against(rows, f'{WIDE}, none', f'{WIDE}, dropout')}"
    )


def _weight_decay(rows: list[dict]) -> str:
    alone = [gap_less(rows, name, "neither") for name in ("dropout", "weight decay", "both")]
    return (
        f"dropout narrows the gap between training and test accuracy by {alone[0]} points, weight decay by {alone[1]}, "
        f"both together by {alone[2]}; {_against(rows, 'neither', 'both')}"
    )


QUESTIONS: dict[str, Question] = {
    "swapped": Question(
        "The two probabilities swapped",
        {"0.2, 0.5": DROPPED, "0.5, 0.2": Variant(p=(0.5, 0.2))},
        lambda rows: _against(rows, "0.2, 0.5", "0.5, 0.2"),
    ),
    "longer": Question(
        "Three times the epochs, with and without dropout",
        _EITHER_WAY,
        _longer,
        epochs=30,
    ),
    "variance": Question(
        "The activations' variance with and without dropout",
        _EITHER_WAY,
        _variance,
        observe=variances,
        columns=("hidden_1_variance", "hidden_2_variance", "train_accuracy", "test_accuracy"),
    ),
    "test-time": Question(
        "Dropout left on in evaluation",
        {"dropout": DROPPED},
        _test_time,
        observe=left_on,
        columns=("test_accuracy", "one_pass_accuracy", "mean_of_passes_accuracy"),
    ),
    "wider": Question(
        "Larger hidden layers",
        {
            f"{width}, {name}": replace(variant, width=width)
            for width in (256, WIDE)
            for name, variant in (("dropout", DROPPED), ("none", PLAIN))
        },
        _wider,
    ),
    "weight-decay": Question(
        f"Weight decay {WEIGHT_DECAY} against dropout",
        {
            "neither": PLAIN,
            "dropout": DROPPED,
            "weight decay": replace(PLAIN, weight_decay=WEIGHT_DECAY),
            "both": replace(DROPPED, weight_decay=WEIGHT_DECAY),
        },
        _weight_decay,
    ),
    "weights": Question(
        "Dropout on the weights (DropConnect)",
        {"activations": DROPPED, "weights": replace(DROPPED, kind="weights")},
        lambda rows: _against(rows, "activations", "weights"),
    ),
    "three-level": Question(
        "Dropout by 0, 1/2 or 1",
        {"two levels": DROPPED, "three levels": replace(DROPPED, kind="three-level")},
        lambda rows: _against(rows, "two levels", "three levels"),
    ),
}


def _published(rows: list[dict]) -> str:
    """Beside the lowest and the highest of the seeds."""
    found, highest = [], 0.0
    for layers in loop.PROVIDERS:
        if ends := [own[-1]["test_accuracy"] for (_, name, _), own in report.runs(rows).items() if name == layers]:
            highest = max(highest, *ends)
            found.append(f"{min(ends):.1%} to {max(ends):.1%} with {layers}'s layers")
    published = ", ".join(f"{value:.1%} {how}" for how, value in PUBLISHED.items())
    reached = "" if highest >= min(PUBLISHED.values()) else ", which no run here reached"
    return f"{' and '.join(found)} by seed; published for Fashion-MNIST are {published}{reached}."


def _run(question: Question, task: Task) -> Iterator[list[dict]]:
    observe = partial(question.observe, data=task.data) if question.observe else None
    recipes = {name: variant.recipe(task.data.features, observe) for name, variant in question.variants.items()}
    return train(recipes, task, passes=PASSES[task.data.name])


def _experiment(question: Question, seeds: int = 3) -> Experiment:
    def chart(rows: list[dict]) -> Figure:
        return charts.compare(rows, question.columns)

    published = {"data": "fashion-mnist", "test_accuracy": PUBLISHED}
    run = partial(_run, question)
    return Experiment(
        question.title, "fashion-mnist", question.epochs, run, chart,
        published=published, seeds=seeds, answer=question.answer,
    )  # fmt: skip


DROPOUT = _experiment(
    Question("Dropout 0.2 and 0.5 after two hidden layers of 256", {"dropout 0.2, 0.5": DROPPED}, _published), SEEDS
)
STUDIES = {name: _experiment(question) for name, question in QUESTIONS.items()}
