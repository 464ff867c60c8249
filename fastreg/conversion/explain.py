"""python -m fastreg explain: what convert does to a model, and the memory traffic that its fused sites stand for."""

import argparse
import importlib

import torch
from torch import nn

from fastreg.conversion import sites
from fastreg.conversion.convert import convert
from fastreg.conversion.report import report

# Times that a tensor of a site's size is read or written in a training step, forward plus backward, by PyTorch's single
# operations. Batch norm reads twice and writes; then reads input and gradient twice and writes. An activation reads and
# writes; then reads two and writes. A sum reads two and writes; its gradient is passed on. Dropout reads and writes
# each way (and moves a mask, not counted here).
NORM, ACTIVATION, ADDITION, DROPOUT = 3 + 5, 2 + 3, 3 + 0, 2 + 2


def accesses(norm: bool, activations: int, residual: bool, drop: bool) -> tuple[int, int]:
    """Accesses of a training step to tensors of a site's size: by single operations, and by one kernel each way.

    One kernel accesses what its first operation does alone. It reads the residual besides, and after a batch norm
    writes the residual's gradient, where that is not simply the gradient that it was given.
    """
    single = norm * NORM + activations * ACTIVATION + residual * ADDITION + drop * DROPOUT
    fused = NORM if norm else ACTIVATION if activations else DROPOUT
    changed = norm and (activations > 0 or drop)
    return single, fused + residual * (1 + changed)


def traffic(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that the fused sites of a converted model move in a training step: by single operations, and by one kernel
    each way. Calculated on the meta device, to which the model is moved."""
    total = [0, 0]

    def observe(input, *site):
        for i, count in enumerate(accesses(*site)):
            total[i] += count * input.numel() * input.element_size()

    with sites.observed_by(observe), torch.no_grad():
        model.to("meta", dtype).train()(torch.empty(shape, dtype=dtype, device="meta"))
    return total[0], total[1]


def load(name: str) -> nn.Module:
    """The model that a factory, MODULE:FACTORY, makes without arguments; or the model itself."""
    module, _, factory = name.partition(":")
    if not factory:
        raise ValueError(f"explain: the model must be named MODULE:FACTORY, got {name}")
    value = importlib.import_module(module)
    for attribute in factory.split("."):
        value = getattr(value, attribute)
    model = value if isinstance(value, nn.Module) else value()
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: the factory must make a torch.nn.Module, got {type(model).__name__}")
    return model


def size(bytes: int) -> str:
    return f"{bytes / 1e9:.3g} GB" if bytes >= 1e9 else f"{bytes / 1e6:.3g} MB"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m fastreg explain", description=__doc__.partition(": ")[2])
    parser.add_argument("model", help="MODULE:FACTORY, such as torchvision.models:resnet50")
    parser.add_argument("--input", default="8,3,224,224", help="the input's shape; default 8,3,224,224")
    parser.add_argument("--dtype", default="float32", help="the model's and the input's; default float32")
    options = parser.parse_args(arguments)
    model = convert(load(options.model))
    print(report(model))
    shape = tuple(int(number) for number in options.input.split(","))
    single, fused = traffic(model, shape, getattr(torch, options.dtype))
    print(
        f"\nMemory traffic of the fused sites in a training step, input {list(shape)}, {options.dtype}, calculated:\n"
        f"    {size(single)} by single operations\n"
        f"    {size(fused)} by one kernel each way, {size(single - fused)} less"
    )
