"""The CPU backend works in torch's own threads: as many as torch has, and no others."""

import subprocess
import sys
from pathlib import Path

import pytest

# Threads and their CPU time, before and after, as Linux counts them.
SCRIPT = """
import os
import torch
import fastreg

def cpu_time_of(task):
    user, system = open(f"/proc/self/task/{{task}}/stat").read().rsplit(")", 1)[1].split()[11:13]
    return int(user) + int(system)

def cpu_time():
    return {{task: cpu_time_of(task) for task in os.listdir("/proc/self/task")}}

torch.set_num_threads({threads})
x = torch.randn(64, 32, 64, 64)
x.add(1), x.relu()  # torch's threads are there now
layers = [fastreg.nn.Dropout(0.5), fastreg.nn.BatchNorm2d(32)]
before = cpu_time()
while sum(cpu_time().values()) < sum(before.values()) + 50 * {threads}:  # in hundredths of a second
    for layer in layers:
        layer(x)
after = cpu_time()
print(len(after.keys() - before.keys()), sum(after[t] > before.get(t, 0) + 5 for t in after))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's account of threads")
@pytest.mark.parametrize("threads", [1, 3])
def test_torchs_threads(threads):
    script = SCRIPT.format(threads=threads)
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    new, working = map(int, output.split())
    assert (new, working) == (0, threads)
