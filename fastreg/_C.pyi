# The compiled extension, csrc/module.cpp. Its operators are at torch.ops.fastreg.
from typing import Any

def build_info() -> dict[str, Any]: ...
def empty_cache() -> None: ...
def plan_batch_norm(
    planes: int,
    channels: int,
    size: int,
    rows: bool,
    element_bytes: int,
    aligned: bool,
    training: bool,
    backward: bool,
    act: str | None,
    residual: bool,
    compute_capability: int | None,
    tier: str | None,
) -> dict[str, Any]: ...
