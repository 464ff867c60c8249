# The compiled extension, csrc/module.cpp. Its operators are at torch.ops.fastreg.
from collections.abc import Callable
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
    device: int | str | None,
    tier: str | None,
) -> dict[str, Any]: ...
def patch_torch(is_plain: Callable[..., bool]) -> None: ...
def unpatch_torch() -> None: ...
def observe_patched(observer: Callable[..., Any] | None) -> None: ...
def give_states_to_patched(given: bool) -> None: ...
