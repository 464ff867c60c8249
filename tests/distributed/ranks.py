"""Groups of processes for tests of what is distributed: gloo, on this machine, each process one thread.

The processes live as long as the group, so that a test costs what it does and not the start of Python. Whatever goes
wrong, nothing waits for longer than TIMEOUT.
"""

import datetime
import os
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.host_executor import use_kernels

TIMEOUT = 120.0  # of a test's work on all ranks, in seconds: far more than any takes
COLLECTIVE_TIMEOUT = 60.0


class RankError(Exception):
    """What went wrong on some ranks: {rank: traceback}, ended processes among them."""

    def __init__(self, errors):
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, text in errors.items()))
        self.errors = errors


class Ranks:
    """size processes, each a rank of one group."""

    def __init__(self, size, directory):
        context = mp.get_context("spawn")
        self.processes, self.pipes = [], []
        for rank in range(size):
            pipe, end = context.Pipe()
            arguments = end, rank, size, str(directory / "store")
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            end.close()
            self.processes.append(process)
            self.pipes.append(pipe)

    def run(self, function, *arguments):
        """What function(*arguments) returns on each rank. It must be importable; results must be plain Python's."""
        errors, results = {}, []
        for pipe in self.pipes:
            pipe.send((function, arguments))
        for rank, pipe in enumerate(self.pipes):
            try:
                if not pipe.poll(TIMEOUT):
                    raise TimeoutError(f"no answer in {TIMEOUT} seconds")
                error, result = pipe.recv()
            except (EOFError, TimeoutError, ConnectionError) as problem:
                error, result = f"{type(problem).__name__}: {problem}", None
            if error is not None:
                errors[rank] = error
            results.append(result)
        if errors:
            raise RankError(errors)
        return results

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()


def _serve(pipe, rank, size, store):
    use_kernels()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = datetime.timedelta(seconds=COLLECTIVE_TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)
    while True:
        function, arguments = pipe.recv()
        torch.manual_seed(0)
        try:
            answer = None, function(*arguments)
        except Exception:
            answer = traceback.format_exc(), None
        pipe.send(answer)
