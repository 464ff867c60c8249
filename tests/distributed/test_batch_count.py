"""num_batches_tracked over several processes: of any dtype and size that torch's layers count with."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fastreg


def check_synchronised(momentum):
    rank = dist.get_rank()
    torch.manual_seed(0)
    x = 2 * torch.randn(8 * dist.get_world_size(), 4) + 1
    for count in (torch.tensor(7.5), torch.tensor([7]), torch.tensor(7, dtype=torch.int32)):
        for act in (None, "relu"):
            whole = nn.BatchNorm1d(4, momentum=momentum)
            whole.num_batches_tracked = count.clone()
            part = fastreg.nn.SyncBatchNorm(4) if act is None else fastreg.nn.SyncBatchNormAct(4, act=act)
            part.momentum, part.num_batches_tracked = momentum, count.clone()
            for _ in range(2):
                expected, found = whole(x), part(x[8 * rank : 8 * rank + 8])
            expected = expected if act is None else expected.relu()
            torch.testing.assert_close(found, expected[8 * rank : 8 * rank + 8])
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                torch.testing.assert_close(getattr(part, name), getattr(whole, name))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised(two_ranks, momentum):
    two_ranks.run(check_synchronised, momentum)


def check_of_dtensors():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    x = 2 * torch.randn(8, 4) + 1
    for count in (torch.tensor(7.5), torch.tensor([7]), torch.tensor(7, device="meta"), torch.tensor(7)):
        for placement in (Shard(0), Shard(1), Replicate()):
            theirs, ours = nn.BatchNorm1d(4), fastreg.nn.BatchNorm1d(4)
            theirs.num_batches_tracked, ours.num_batches_tracked = count.clone(), count.clone()
            for _ in range(2):
                expected, found = theirs(x), ours(distribute_tensor(x, mesh, [placement]))
            torch.testing.assert_close(found.full_tensor(), expected)
            torch.testing.assert_close(ours.running_var, theirs.running_var)
            if not count.is_meta:
                assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


def test_of_dtensors(two_ranks):
    two_ranks.run(check_of_dtensors)
