"""What only a GPU can show: captured graphs, streams, several devices."""

import pytest
import torch

import fastreg
from fastreg import nn

pytestmark = pytest.mark.cuda


def network(device="cuda"):
    torch.manual_seed(0)
    layers = (nn.BatchNorm1d(64), nn.Dropout(0.5), nn.BatchNormAct1d(64, drop=0.1))
    return torch.nn.Sequential(*layers).to(device)


def step(model, x, states):
    """Output and gradients of the input and the parameters, with given masks."""
    x = x.detach().requires_grad_()
    with fastreg.replay_rng_states(states):
        y = model(x)
    return y, *torch.autograd.grad(y.square().sum(), (x, *model.parameters()))


def test_a_replayed_graph_draws_anew():
    """A captured step has a new mask at each replay, and statistics move."""
    model = torch.nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(0.5)).cuda()
    x = torch.randn(32, 64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    seen, counts = [], []
    for _ in range(3):
        graph.replay()
        seen.append((y != 0).cpu())
        counts.append(int(model[0].num_batches_tracked))
    assert len({tuple(mask.flatten().tolist()) for mask in seen}) == 3
    assert counts[2] - counts[0] == 2


def test_kernels_run_on_the_current_stream():
    """What a side stream computes waits for what that stream did before, and for nothing else."""
    x = torch.randn(4096, 64, device="cuda")
    states = [torch.tensor([seed, 0], device="cuda") for seed in (1, 2)]
    expected = step(network(), x, states)
    model, late = network(), torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: a kernel on another stream would see the zeros
        late.copy_(x)
        got = step(model, late, states)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_every_device_computes_alike():
    """A tensor's own device is used, whichever is current; with one device, that one."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    x, states = torch.randn(32, 64), [torch.tensor([seed, 0]) for seed in (1, 2)]
    with torch.cuda.device(0):
        results = [step(network(device), x.to(device), [s.to(device) for s in states]) for device in ("cuda:0", last)]
    for a, b in zip(*results, strict=True):
        assert b.device == last and torch.equal(a.cpu(), b.cpu())
