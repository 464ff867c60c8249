"""The digits network, trained by two processes as by one."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fastreg
from bench.training.data import digits
from bench.training.networks import mlp
from fastreg.nn import BatchNorm1d, Dropout, SyncBatchNorm

BATCH, STEPS = 32, 40


def network():
    torch.manual_seed(1)
    return mlp([64, 100, 100, 10], lambda width: [torch.nn.ReLU(), BatchNorm1d(width), Dropout(0.5)]).double()


def losses(model, rows, group):
    """Of STEPS batches; rows: how many of a batch each rank of the group takes, contiguous."""
    torch.manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters())
    inputs, labels = digits(torch.device("cpu")).train
    found = []
    for step in range(STEPS):
        own = [t[step * BATCH :][:BATCH].split(rows)[group.rank()] for t in (inputs.double(), labels)]
        with fastreg.sharded_batch(rows, group):
            # Summed by the ranks, and divided by their number: the mean of the batch.
            loss = cross_entropy(model(own[0]), own[1], reduction="sum") / BATCH * group.size()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss, group=group)
        found.append(loss.item() / group.size())
    return found


def check_losses(rows, static_graph):
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    expected = losses(network(), [BATCH], alone)
    model = SyncBatchNorm.convert_sync_batchnorm(network())
    model = DistributedDataParallel(model, static_graph=static_graph)
    found = losses(model, rows, dist.group.WORLD)
    # Sums in another order: 1e-16 of float64, which Adam's division by small gradients and the steps enlarge.
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize(("rows", "static_graph"), [([16, 16], False), ([20, 12], True)])
def test_losses_are_those_of_one_process(two_ranks, rows, static_graph):
    two_ranks.run(check_losses, rows, static_graph)
