"""Whose layers are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench.timings import cpu_peers, others
from bench.timings.cases import Case
from bench.timings.cpu_peers import compiled
from bench.timings.provider import Provider


def _inductor(name: str, option: str, takes: Callable[[Case], bool]) -> Provider:
    """What torch.compile gives with an option on; of a GPU."""
    return Provider(
        name,
        lambda case: compiled(case, options={option: True}),
        lambda case, device: device.type == "cuda" and takes(case),
        option=option,
        by_name=True,
    )


def _normalises(case: Case) -> bool:
    return case.op.startswith("batch_norm")


FASTREG = Provider("fastreg", lambda case: case.definition.fastreg(case.shape))
TORCH = Provider("torch", lambda case: case.definition.torch(case.shape))
TORCH_WITHOUT_CUDNN = Provider(
    "torch_without_cudnn",
    TORCH.layer,
    lambda case, device: device.type == "cuda" and _normalises(case),  # cuDNN can only matter there
    settings=lambda: torch.backends.cudnn.flags(enabled=False),
)
COMPILE = Provider("compile", compiled)
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        TORCH,
        TORCH_WITHOUT_CUDNN,
        COMPILE,
        Provider("apex", others.apex, others.apex_takes, "apex.contrib.groupbn"),
        Provider("inplace_abn", others.inplace_abn, others.inplace_abn_takes, "inplace_abn", in_place=True),
        Provider("triton", others.triton, others.triton_takes, "triton"),
        _inductor("compile_cooperative", "triton.cooperative_reductions", _normalises),
        _inductor("compile_aligned_random", "align_random_eager", lambda case: "dropout" in case.op),
        Provider("cudnn", others.cudnn, others.cudnn_takes, "cudnn"),
        Provider("flag_gems", TORCH.layer, others.flag_gems_takes, "flag_gems", others.flag_gems_settings),
        Provider("helion", others.helion, others.helion_takes, "helion", by_name=True),
        *cpu_peers.INDUCTOR,
        *cpu_peers.PEERS,
        FASTREG,
    )
}
EAGER = (TORCH.name, TORCH_WITHOUT_CUDNN.name)


def choose(names: Sequence[str] | None) -> tuple[list[Provider], dict[str, str]]:
    """(the providers, the absent ones and why); fastreg is always among them, as what the others are compared with.

    None: all that are there. Raises ValueError where one that was asked for is absent."""
    asked = [
        provider
        for name, provider in PROVIDERS.items()
        if (names is None and not provider.by_name) or name in (*(names or ()), FASTREG.name)
    ]
    absent = {provider.name: reason for provider in asked if (reason := provider.absence())}
    if names and absent:
        raise ValueError("--providers must be installed: " + "; ".join(f"{n}: {why}" for n, why in absent.items()))
    return [provider for provider in asked if provider.name not in absent], absent


def of_case(case: Case, device: torch.device, chosen: Sequence[Provider], everything: bool) -> list[Provider]:
    """Who is timed. Without `everything` only forward + backward of batch norms is compiled: compiling takes long."""
    compiled = everything or (_normalises(case) and case.mode in ("both", "graph"))
    return [provider for provider in chosen if provider.takes(case, device) and (compiled or provider is not COMPILE)]
