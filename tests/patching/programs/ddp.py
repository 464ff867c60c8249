"""DistributedDataParallel in two processes, which torch.multiprocessing spawns."""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from torch import nn


class Net(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x)


def worker(rank, folder, p):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(Net(p))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        y = model(torch.randn(8, 8))
        loss = y.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if rank == 0:
        print(*losses, sep="\n", flush=True)
    del model, y, loss  # what holds DistributedDataParallel must not outlive its group
    dist.barrier()  # by then gloo's threads have let go of tensors, and do not abort an interpreter that has ended
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder, float(sys.argv[1])), nprocs=2)
    assert os.path.basename(sys.argv[0]) == "ddp.py"
