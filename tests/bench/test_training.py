"""The training loop, the networks, and what is made of the numbers. No test asserts a time."""

import json
import math

import pytest
import torch
from torch import nn

from bench.training import charts, loop, networks, report
from bench.training.data import Data
from bench.training.experiments import digits, ensemble, init_scale
from bench.training.loop import FASTREG, Provider, Recipe, Task

CPU = torch.device("cpu")
BOTH = tuple(loop.PROVIDERS.values())


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take long where the cores are shared, and the work here is tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def task(providers=BOTH, seeds=1, epochs=1, samples=70):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2 * samples, 64, generator=generator), torch.randint(10, (2 * samples,), generator=generator)
    return Task(Data("digits", (x[:samples], y[:samples]), (x[samples:], y[samples:])), providers, seeds, epochs)


def rows_of(*arguments, **options):
    return [row for batch in loop.train(*arguments, **options) for row in batch]


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# The loop


def test_initial_weights_are_the_same_and_layers_the_providers_own():
    learners = loop.start(digits.recipe(batch_norm=True), BOTH, 3, CPU)
    theirs, ours = (learners[name].networks[0] for name in ("torch", "fastreg"))
    for (key, value), (other, copy) in zip(theirs.state_dict().items(), ours.state_dict().items(), strict=True):
        assert key == other and torch.equal(value, copy) and value.data_ptr() != copy.data_ptr()
    kinds = [nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout]
    assert [type(module) for module in theirs] == kinds * 4 + [nn.Linear]
    kinds = [nn.Linear, nn.ReLU, FASTREG.layers.BatchNorm1d, FASTREG.layers.Dropout]
    assert [type(module) for module in ours] == kinds * 4 + [nn.Linear]
    other = loop.start(digits.recipe(batch_norm=True), BOTH, 4, CPU)["torch"].networks[0]
    assert not torch.equal(other[0].weight, theirs[0].weight)


def test_both_sides_see_the_same_batches_and_draws():
    twins = (Provider("torch", nn), Provider("fastreg", nn))
    rows = rows_of({"a": digits.recipe(batch_norm=True)}, task(twins, seeds=2, epochs=2))
    order = [(seed, 1, name) for seed in (0, 1) for name in ("torch", "fastreg")]
    order = [*order[:2], (0, 2, "fastreg"), (0, 2, "torch"), *order[2:], (1, 2, "fastreg"), (1, 2, "torch")]
    assert [(row["seed"], row["epoch"], row["layers"]) for row in rows] == order
    outcome = {key: row["train_loss"] for key, row in zip(order, rows, strict=True)}
    assert all(outcome[seed, epoch, "torch"] == outcome[seed, epoch, "fastreg"] for seed, epoch, _ in order)
    assert len(set(outcome.values())) == 4


@pytest.mark.parametrize("provider", BOTH, ids=lambda provider: provider.name)
def test_the_same_seed_repeats(provider):
    first, second = (rows_of({"a": digits.recipe(True)}, task((provider,), seeds=2, epochs=2)) for _ in range(2))
    assert without_seconds(first) == without_seconds(second)
    assert first[1]["train_loss"] != first[3]["train_loss"]  # of another seed


def test_draws_do_not_depend_on_who_else_is_trained():
    alone = rows_of({"a": digits.recipe(False)}, task((FASTREG,), epochs=2))
    beside = rows_of({"a": digits.recipe(False)}, task(BOTH, epochs=2))
    assert without_seconds(alone) == without_seconds(row for row in beside if row["layers"] == "fastreg")


@pytest.mark.parametrize(("drop_last", "passes", "batches"), [(False, 1, 3), (True, 1, 2), (False, 2, 6)])
def test_batches(drop_last, passes, batches):
    seen = []

    class Spy(nn.Linear):
        def forward(self, input):
            if self.training:
                seen.append(input.detach().clone())
            return super().forward(input)

    own = task((loop.TORCH,))
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    recipe = Recipe(lambda layers: Spy(64, 10), sgd, batch=32, drop_last=drop_last)
    rows = rows_of({"a": recipe}, own, passes=passes)
    assert [len(x) for x in seen] == ([32, 32] if drop_last else [32, 32, 6] * passes)
    assert len(seen) == batches
    if not drop_last:
        for start in range(0, batches, 3):
            everything = torch.cat(seen[start : start + 3])
            assert not torch.equal(everything, own.data.train[0])
            assert torch.equal(everything.sort(0).values, own.data.train[0].sort(0).values)
    assert len(rows) == 1


def test_evaluation_is_in_evaluation_mode():
    learner = loop.start(digits.recipe(True), (FASTREG,), 0, CPU)["fastreg"]
    split = task().data.train
    loss, accuracy = learner.evaluate(split)
    assert learner.evaluate(split) == (loss, accuracy)
    network = learner.networks[0]
    assert not network.training and network[2].num_batches_tracked == 0
    assert loss == pytest.approx(nn.functional.cross_entropy(network(split[0]), split[1]).item(), rel=1e-5)
    learner.epoch(split)
    assert network.training and network[2].num_batches_tracked == 3


def test_members_are_averaged_as_probabilities_and_trained_apart():
    recipe = ensemble.recipes(64)["average of 5"]
    learner = loop.start(recipe, BOTH, 0, CPU)[loop.EITHER]
    x, y = task().data.test
    before = [network[0].weight.clone() for network in learner.networks]
    learner.epoch(task().data.train)
    for weight, network in zip(before, learner.networks, strict=True):
        assert not torch.equal(weight, network[0].weight)
    assert len({network[0].weight.sum().item() for network in learner.networks}) == 5
    mean = torch.stack([network(x).softmax(1) for network in learner.networks]).mean(0)
    loss, accuracy = learner.evaluate((x, y))
    assert loss == pytest.approx(-mean[range(len(y)), y].log().mean().item(), rel=1e-5)
    assert accuracy == (mean.argmax(1) == y).double().mean().item()


def test_networks_without_the_layers_are_trained_once():
    rows = rows_of(ensemble.recipes(64), task(epochs=1))
    assert [(row["variant"], row["layers"]) for row in rows] == [
        ("dropout 0.5", "torch"),
        ("dropout 0.5", "fastreg"),
        ("one network", "either"),
        ("average of 5", "either"),
    ]


# The networks


def test_weights():
    network = networks.mlp((300, 200, 10), lambda width: [nn.ReLU()])
    assert [type(module) for module in network] == [nn.Linear, nn.ReLU, nn.Linear]
    assert networks.normal_weights(network)[0].weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert networks.normal_weights(network, 0.01)[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network[0].bias.any()


@pytest.mark.parametrize("provider", BOTH, ids=lambda provider: provider.name)
def test_three_level_dropout_keeps_the_expectation(provider):
    torch.manual_seed(0)
    p, count = 0.3, 1_000_000
    layer = networks.ThreeLevelDropout(provider.layers, p)
    y = layer(torch.ones(count)) * (1 - p)  # 0, 1/2, 1, as far as rounding allows
    levels = (2 * y).round()
    torch.testing.assert_close(2 * y, levels, atol=1e-6, rtol=0)
    deviation = math.sqrt((1 - p) * p / 2)
    assert abs(y.double().mean().item() - (1 - p)) < 5 * deviation / math.sqrt(count)
    for level, share in enumerate((p**2, 2 * p * (1 - p), (1 - p) ** 2)):
        found = (levels == level).double().mean().item()
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / count)
    x = torch.randn(10)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("provider", BOTH, ids=lambda provider: provider.name)
def test_scaling_in_evaluation_instead_of_training(provider):
    torch.manual_seed(0)
    layer, x = provider.layers.Dropout(0.25, scaling="test"), torch.ones(10_000)
    y = layer(x)
    assert set(y.tolist()) == {0, 1} and abs(y.mean().item() - 0.75) < 0.03
    assert torch.equal(layer.eval()(x), x * 0.75)


@pytest.mark.parametrize("provider", BOTH, ids=lambda provider: provider.name)
def test_dropped_weights(provider):
    torch.manual_seed(0)
    layer = provider.layers.DropConnectLinear(40, 300, p=0.25)
    weights = (layer(torch.eye(40)) - layer.bias).T.detach()
    ratio = weights / layer.weight.detach()
    dropped = weights.abs() < 1e-6
    torch.testing.assert_close(ratio[~dropped], torch.full_like(ratio[~dropped], 1 / 0.75), atol=1e-3, rtol=1e-3)
    assert abs(dropped.double().mean().item() - 0.25) < 0.03
    torch.testing.assert_close(layer.eval()(torch.eye(40)), layer.weight.T + layer.bias)


# The numbers

COLUMNS = {"train_loss": 0.5, "test_accuracy": 0.75}


def made_up(seconds=lambda layers, epoch: 1.0, layers=("torch", "fastreg"), seeds=(0, 1), epochs=(1, 2, 6)):
    return [
        {"variant": "a", "layers": name, "seed": seed, "epoch": epoch, "seconds": seconds(name, epoch)}
        | dict.fromkeys(COLUMNS, 10 * seed + epoch)
        for seed in seeds
        for epoch in epochs
        for name in layers
    ]


def test_summary_takes_the_last_epoch_of_each_seed():
    summary = report.summarise(made_up())[1]
    assert summary["layers"] == "fastreg"
    assert (summary["seeds"], summary["epochs"]) == (2, 6)
    assert summary["train_loss"] == 11 and summary["train_loss_deviation"] == pytest.approx(7.0711, abs=1e-4)
    assert "11 ± 7.071" in report.table(made_up()) and "1100.00% ± 707.11%" in report.table(made_up())


def test_speed_is_paired_by_epoch():
    times = {("torch", 1): 2.0, ("torch", 2): 12.0, ("torch", 6): 9.0}
    times |= {("fastreg", 1): 1.0, ("fastreg", 2): 2.0, ("fastreg", 6): 3.0}
    assert report.speeds(made_up(lambda *key: times[key])) == {"a": 3.0}  # the mean is 3.67, the medians' ratio 4.5
    assert report.speeds(made_up(layers=("torch",))) == {}


def test_file_has_a_line_per_run(tmp_path):
    rows = [row | {"contention": 0.25, "rate": 0.1} for row in made_up(seeds=(0,))]
    rows[-1] |= {"train_loss": math.nan, "test_accuracy": 0.123456}
    about = {"experiment": "name"}
    (path,) = report.write(tmp_path, "name", {"device": "abacus"}, rows, True, about)
    text = path.read_text()
    document = json.loads(text, parse_constant=lambda word: pytest.fail(f"no JSON: {word}"))
    assert (document["experiment"], document["complete"], document["environment"]) == (
        "name",
        True,
        {"device": "abacus"},
    )
    assert document["runs"][1] == {
        **{"variant": "a", "layers": "fastreg", "seed": 0, "rate": 0.1, "contention": 0.25},
        **{"seconds": [1.0, 1.0, 1.0], "train_loss": [1, 2, None], "test_accuracy": [1, 2, 0.1235]},
    }
    assert document["summary"][1]["train_loss"] is None
    assert sum(line.startswith('  {"variant"') for line in text.splitlines()) == 4
    (path,) = report.write(tmp_path, "name", {}, rows[:1], False, about)
    assert path.name == "name.partial.json"


# The charts


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], []),
        ([1, 20, 40], [1, 20, 40]),
        ([10, 10], [5, 15]),
        ([10, 12, 14], [2, 12, 22]),
        ([0, 11, 100], [0, 11, 100]),
        ([0, 10.5, 10.5], [-3, 7, 17]),
        ([0, 0, 4, 30], [-26 / 3, 4 / 3, 34 / 3, 30]),
    ],
)
def test_labels_are_moved_apart_no_more_than_needed(wanted, found):
    assert charts.apart(wanted, 10) == pytest.approx(found)


def test_curves_of_runs_that_were_cut_short():
    rows = made_up()[:-1]  # without seed 1's last epoch with fastreg's layers
    values = charts.by_epoch(rows, "train_loss", variant="a", layers="fastreg")
    assert values[0].tolist() == [1, 2, 6]
    assert values[1, :2].tolist() == [11, 12] and math.isnan(values[1, 2])
    assert charts.by_epoch(rows, "train_loss", variant="b").shape == (0, 0)


def test_panels_that_share_an_axis_show_all_curves():
    rows = [
        {"variant": init_scale.name(scale, False), "layers": loop.EITHER, "seed": 0, "epoch": epoch}
        | {"train_accuracy": 0.1 if scale == 1 else epoch / 10}
        for scale in init_scale.SCALES
        for epoch in range(1, 11)
    ]
    for ax in init_scale.INIT_SCALE.chart(rows).axes:
        assert ax.get_ylim()[0] < 0.1 and ax.get_ylim()[1] > 1
