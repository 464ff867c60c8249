"""The best that there is for the CPU beside fastreg: torch's own oneDNN, oneDNN itself, inductor with other options."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.timings.cases import Case
from bench.timings.ops import P
from bench.timings.provider import Provider
from bench.timings.workloads import Workload

EPS, MOMENTUM = 1e-5, 0.1


def compiled(case: Case, **keywords) -> nn.Module:
    """torch's layers, compiled."""
    torch.compiler.reset()  # past some recompilations of the same code it would silently run uncompiled
    return torch.compile(case.definition.torch(case.shape), **keywords)


class _Functional(nn.Module):
    """Batch norm, relu and dropout as one function of tensors, compiled: no module is traced, and none counts calls."""

    def __init__(self, case: Case):
        super().__init__()
        channels = case.shape[1]
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.function = torch.compile(partial(_function, "relu" in case.op, P if "dropout" in case.op else 0.0))

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self.mean, self.variance, self.weight, self.bias, self.training)


def _function(relu: bool, p: float, input: Tensor, mean, variance, weight, bias, training: bool) -> Tensor:
    output = F.batch_norm(input, mean, variance, weight, bias, training, MOMENTUM, EPS)
    output = output.relu() if relu else output
    return F.dropout(output, p, training) if p else output


def _functional(case: Case) -> nn.Module:
    torch.compiler.reset()
    return _Functional(case)


def _functional_takes(case: Case, device: torch.device) -> bool:
    return case.op in ("batch_norm", "batch_norm_relu", "batch_norm_relu_dropout")


class _MkldnnBatchNorm(nn.BatchNorm2d):
    """torch.batch_norm of oneDNN's tensors, which F.batch_norm and the module refuse in parts."""

    def forward(self, input: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return torch.batch_norm(input, self.weight, self.bias, *statistics, self.training, MOMENTUM, EPS, False)


def _mkldnn_takes(case: Case, device: torch.device) -> bool:
    """What torch does not refuse."""
    return (
        device.type == "cpu"
        and case.op == "batch_norm"
        and len(case.shape) == 4
        and case.layout == "contiguous"
        and case.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    )


ONEDNN = "bench.timings.onednn"


def _onednn(name: str, takes: Callable[[Case], bool], blocked: bool = False, given: bool = False) -> Provider:
    """Its batch norm, with a relu, and dropout; in blocks of 16 channels, and without allocation."""

    def workload(case: Case, inputs: list) -> Workload:
        return importlib.import_module(ONEDNN).workload(case, inputs, blocked, given)

    return Provider(
        name,
        None,
        lambda case, device: device.type == "cpu" and _onednn_takes(case) and takes(case),
        module=ONEDNN,
        workload=workload,
    )


def _onednn_takes(case: Case) -> bool:
    known = case.op in ("batch_norm", "batch_norm_relu", "dropout")
    return known and case.dtype in (torch.float32, torch.bfloat16)


def _blocks(case: Case) -> bool:
    return case.op != "dropout" and case.layout == "contiguous" and len(case.shape) > 2 and case.shape[1] % 16 == 0


def _on_cpu(case: Case, device: torch.device) -> bool:
    return device.type == "cpu"


PEERS = (
    Provider("torch_mkldnn", lambda case: _MkldnnBatchNorm(case.shape[1]), _mkldnn_takes, own=Tensor.to_mkldnn),
    _onednn("onednn", lambda case: True),
    _onednn("onednn_given", lambda case: True, given=True),
    _onednn("onednn_blocked", _blocks, blocked=True),
    _onednn("onednn_blocked_given", _blocks, blocked=True, given=True),
)
INDUCTOR = (
    Provider("compile_functional", _functional, _functional_takes, by_name=True),
    Provider("compile_autotuned", partial(compiled, mode="max-autotune-no-cudagraphs"), by_name=True),
    Provider(
        "compile_256_bits",
        partial(compiled, options={"cpp.simdlen": 256}),
        _on_cpu,
        option="cpp.simdlen",
        by_name=True,
    ),
)
