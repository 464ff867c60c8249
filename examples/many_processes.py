"""Two processes train like one: synchronised batch norm, and dropout of a batch that is spread over them.

python examples/many_processes.py     # on the CPU, over gloo; with GPUs, run under torchrun, it would be nccl
"""

import os
import socket

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastreg

ROWS, STEPS = 16, 5


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), fastreg.nn.Dropout(0.5),
        torch.nn.Linear(64, 10),
    )  # fmt: skip


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.randn(ROWS, 32, generator=generator), torch.randint(10, (ROWS,), generator=generator)


def train(model, rank, size):
    """The losses of this process's rows of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(2)  # rank 0 draws the masks
    losses = []
    for x, y in batches():
        x, y = x.chunk(size)[rank], y.chunk(size)[rank]
        with fastreg.sharded_batch(x.shape[0]):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def worker(rank, size, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    model = fastreg.nn.SyncBatchNorm.convert_sync_batchnorm(network())
    model = DistributedDataParallel(model)
    results.put(train(model, rank, size))
    del model  # before its group
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo's may still have a tensor, and aborts an interpreter that has ended by then


def main():
    one = train(network(), rank=0, size=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(worker, args=(2, port, results), nprocs=2)
    two = [sum(losses) / 2 for losses in zip(results.get(), results.get(), strict=True)]
    for step, losses in enumerate(zip(one, two, strict=True)):
        print(f"step {step}: loss {losses[0]:.6f} in one process, {losses[1]:.6f} in two")
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one))


if __name__ == "__main__":
    main()
