"""The same on several devices, under DistributedDataParallel: a process for each, all with batches of their own."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
Work = Callable[..., object]  # of device and wrap


def run(work: Work, device_type: str, processes: int) -> object:
    """What `work(device=..., wrap=...)` returned in the first process.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a process failed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (work, device_type, processes, Path(folder)), nprocs=processes)
        return torch.load(Path(folder) / "result", weights_only=False)


def _process(rank: int, work: Work, device_type: str, processes: int, folder: Path) -> None:
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    if device_type == "cuda":
        torch.cuda.set_device(device)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group(BACKENDS[device_type], meeting, rank=rank, world_size=processes)
    try:

        def wrap(model: nn.Module) -> nn.Module:
            return DistributedDataParallel(model, device_ids=[rank] if device_type == "cuda" else None)

        result = work(device=device, wrap=wrap)
        if rank == 0:
            torch.save(result, folder / "result")
        distributed.barrier()  # a process that leaves before the others makes them abort
    finally:
        distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # at times a thread of torch's still runs, and aborts an interpreter that ends as usual
