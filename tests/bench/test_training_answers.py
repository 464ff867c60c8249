"""The sentences about the experiments say what the rows do."""

import pytest
import torch
from torch import nn

from bench.training.data import Data
from bench.training.experiments import ALL, STUDIES, answers, fashion

LAYERS = ("torch", "fastreg")


def rows_of(variants, epochs=1, **columns):
    """Rows of each variant with its test accuracies, one per run; training accuracy 0.9."""
    return [
        {"variant": name, "layers": LAYERS[index % 2], "seed": index // 2, "epoch": epoch, "seconds": 1.0}
        | {"train_accuracy": 0.9, "test_accuracy": value, "train_loss": 1.0}
        | {column: values[name] for column, values in columns.items()}
        for name, tests in variants.items()
        for index, value in enumerate(tests)
        for epoch in range(1, epochs + 1)
    ]


def test_what_is_more_than_chance():
    rows = rows_of({"a": [0.80, 0.82], "b": [0.81, 0.83], "c": [0.90, 0.91], "d": [0.7]})
    test = "test_accuracy"
    assert answers.verdict(rows, ("a", test), ("b", test)) == "no more apart than chance puts them"  # 1 ± 1.4 points
    assert answers.verdict(rows, ("a", test), ("c", test)) == "9.5 points more, which is more than chance"
    assert answers.verdict(rows, ("c", test), ("a", test)) == "9.5 points less, which is more than chance"
    assert answers.verdict(rows, ("a", test), ("d", test)) == "of one run each, which tells nothing"
    assert answers.percent(rows, "a") == "81.0 ± 1.4%" and answers.percent(rows, "d") == "70.0%"


def test_gaps_are_of_an_epoch():
    rows = rows_of({"a": [0.5], "b": [0.75]}, epochs=3)
    for row in rows:
        row["test_accuracy"] += row["epoch"] / 100
    assert answers.gap(rows, "a") == "37.0" and answers.gap(rows, "a", 1) == "39.0"
    assert answers.gap_less(rows, "b", "a") == "25.0"


@pytest.mark.parametrize("name", STUDIES)
def test_each_question_has_an_answer(name):
    question = fashion.QUESTIONS[name.removeprefix("fashion-dropout-")]
    values = dict.fromkeys(question.variants, 0.25)
    extra = ("hidden_1_variance", "hidden_2_variance", "one_pass_accuracy", "mean_of_passes_accuracy")
    rows = rows_of({v: [0.7, 0.8] for v in question.variants}, 30, **dict.fromkeys(extra, values))
    text = ALL[name].answer(rows)
    assert text.endswith(".") and "\n" not in text and "nan" not in text
    expected = {"variance": "0.25 instead of 0.25", "test-time": "left on 25.0 ± 0.0%", "longer": "from 15.0 to 15.0"}
    assert expected.get(name.removeprefix("fashion-dropout-"), "75.0 ± 7.1%") in text


def test_eight_questions():
    assert len(STUDIES) == 8


def test_published_accuracies_stand_beside_the_seeds():
    rows = rows_of({"dropout 0.2, 0.5": [0.85, 0.86, 0.87, 0.84]})
    assert fashion.DROPOUT.answer(rows) == (
        "85.0% to 87.0% with torch's layers and 84.0% to 86.0% with fastreg's layers by seed; published for "
        "Fashion-MNIST are 88.1% from scratch, 87.3% concise, which no run here reached."
    )
    rows = rows_of({"dropout 0.2, 0.5": [0.85, 0.88]})
    assert fashion.DROPOUT.answer(rows).endswith("87.3% concise.")
    assert fashion.DROPOUT.seeds == 5


# What is observed


def made_up():
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    return Data("digits", (x, torch.zeros(4000).long()), (x, (x[:, 0] > 0).long()))


def test_variances_are_of_what_the_hidden_layers_hand_on():
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(6)), network[0].bias.zero_()
    found = fashion.variances(network, made_up())
    # Of relu of a normal variable: mean square 1/2, mean 1/sqrt(2 pi); dropout doubles the mean square.
    assert found["hidden_1_variance"] == pytest.approx(1 - 1 / (2 * torch.pi), rel=0.1)
    assert set(found) == {"hidden_1_variance", "hidden_2_variance"}


def test_dropout_left_on_costs_accuracy_that_the_mean_of_passes_gets_back():
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))
    with torch.no_grad():
        network[1].weight.zero_(), network[1].bias.zero_()
        network[1].weight[1, 0] = 10.0
    found = fashion.left_on(network, made_up())
    assert found["one_pass_accuracy"] == pytest.approx(0.75, abs=0.03)  # half of the samples lose what decides
    assert found["mean_of_passes_accuracy"] > 0.98
