"""What cannot be measured is left out and listed, and does not end the run."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator

import torch

DID_NOT_END = "did not end"
SECONDS_TO_HANG = 60.0  # of a layer on a GPU; it has hung then, and the process ends
ALL = "all"  # in place of a provider's name


class BrokenDevice(RuntimeError):
    """After an error from which no process recovers; another one can go on with the next case."""


def describe(failure: dict) -> str:
    """fastreg: batch_norm both 32x100 float32 contiguous: RuntimeError: no such kernel"""
    case = " ".join(str(value) for key, value in failure.items() if key not in ("provider", "error"))
    return f"{failure['provider']}: {case}: {failure['error']}"


def line(error: BaseException) -> str:
    """What an error says first."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


@contextlib.contextmanager
def listed(failed: list[dict], case: dict, device: torch.device, seconds: float = SECONDS_TO_HANG) -> Iterator[None]:
    """Around what is done with a case: it is listed while it lasts, as what did not end, so that a process that ends
    there leaves its name; after that only if it fails.

    Raises:
        BrokenDevice: nothing more runs on the GPU in this process.
    """
    running = case | {"provider": ALL, "error": DID_NOT_END}
    failed.append(running)
    before = len(failed)
    try:
        with _ended_when_hung(device, seconds):
            yield
    except Exception as error:
        if len(failed) == before:
            failed.append(case | {"provider": ALL, "error": line(error)})
    finally:
        failed.remove(running)
    if len(failed) == before and device.type == "cuda":
        _check(device, failed[-1])


def _check(device: torch.device, failure: dict) -> None:
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise BrokenDevice(f"{describe(failure)}; {line(error)}") from None


@contextlib.contextmanager
def _ended_when_hung(device: torch.device, seconds: float) -> Iterator[None]:
    """On a GPU: a call that waits for a kernel that never ends cannot be interrupted, so the process is ended."""
    if device.type == "cuda":
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
