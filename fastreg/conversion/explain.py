"""python -m fastreg explain: what convert does to a model, and the memory traffic that its fused sites stand for."""

import argparse
import functools
import importlib
from collections.abc import Callable

import torch
from torch import nn

from fastreg.conversion import sites
from fastreg.conversion.convert import convert
from fastreg.conversion.report import report
from fastreg.conversion.traffic import accesses


def traffic(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that the fused sites of a converted model move in a training step: by single operations, and by one kernel
    each way. Calculated on the meta device, to which the model is moved."""
    total = [0, 0]

    def observe(input, *site):
        for i, count in enumerate(accesses(*site)):
            total[i] += count * input.numel() * input.element_size()

    with sites.observed_by(observe):
        model.to("meta", dtype).train()(torch.empty(shape, dtype=dtype, device="meta"))
    return total[0], total[1]


def find(name: str) -> nn.Module | Callable[[], nn.Module]:
    """What MODULE:FACTORY names: what makes a model without arguments, or a model."""
    module, _, factory = name.partition(":")
    if not factory:
        raise ValueError(f"model must be named MODULE:FACTORY, got {name}")
    return functools.reduce(getattr, factory.split("."), importlib.import_module(module))


def shape_of(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        message = f"shape must be whole numbers, such as 8,3,224,224, got {text}"
        raise argparse.ArgumentTypeError(message) from error


def dtype_of(text: str) -> torch.dtype:
    dtype = getattr(torch, text, None)
    if not isinstance(dtype, torch.dtype):
        raise argparse.ArgumentTypeError(f"dtype must be one of torch's, such as bfloat16, got {text}")
    return dtype


def size(bytes: int) -> str:
    return f"{bytes / 1e9:.3g} GB" if bytes >= 1e9 else f"{bytes / 1e6:.3g} MB"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m fastreg explain", description=__doc__.partition(": ")[2])
    parser.add_argument("model", help="MODULE:FACTORY, such as torchvision.models:resnet50")
    parser.add_argument("--input", type=shape_of, default="8,3,224,224", help="the input's shape; default 8,3,224,224")
    parser.add_argument(
        "--dtype", type=dtype_of, default="float32", help="the model's and the input's; default float32"
    )
    options = parser.parse_args(arguments)
    try:
        found = find(options.model)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(str(error))
    model = found() if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(model, nn.Module):
        parser.error(f"{options.model} must be or make a torch.nn.Module, got {type(model).__name__}")
    print(report(convert(model)))
    single, fused = traffic(model, options.input, options.dtype)
    of = f"input {list(options.input)}, {str(options.dtype).removeprefix('torch.')}"
    print(
        f"\nMemory traffic of the fused sites in a training step, {of}, calculated:\n"
        f"    {size(single)} by single operations\n"
        f"    {size(fused)} by one kernel each way, {size(single - fused)} less"
    )
