"""Strides of what batch norm of DTensors returns: those of the whole tensor's on one device."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fastreg


def check_strides():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    for x in (
        torch.randn(4, 6, 2, 3),
        torch.randn(4, 6, 2, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 2, 6, 3).transpose(1, 2),
        torch.randn(3, 6, 2, 4).transpose(0, 3),
        torch.randn(4, 5, 6).transpose(1, 2),
    ):
        for training in (True, False):
            running = torch.zeros(6), torch.ones(6)
            expected = torch.nn.functional.batch_norm(x, *(t.clone() for t in running), training=training)
            for placement in (Shard(0), Shard(1), Replicate()):
                part = distribute_tensor(x, mesh, [placement])
                y = fastreg.functional.batch_norm(part, *(t.clone() for t in running), training=training)
                assert y.stride() == expected.stride(), (x.stride(), placement)
                torch.testing.assert_close(y.full_tensor(), expected)


def test_strides(two_ranks):
    two_ranks.run(check_strides)
