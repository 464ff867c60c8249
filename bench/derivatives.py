"""What a small call costs, forward and backward, by what differentiates the operators.

    python -m bench.derivatives

- cpp: the nodes in C++ (csrc/autograd), the default;
- registered: of dropout, a formula in Python by ``torch.library.register_autograd``, for comparison;
- python: the Functions of fastreg/autograd, as with FASTREG_AUTOGRAD=python.

On one thread of the CPU, in turn, in time of that CPU, so that other programs hardly matter; of each the median of the
rounds, and their 20 and 80 % quantiles.
"""

import statistics
import time
import timeit
import warnings

import torch
from torch.library import Library, register_autograd

from bench import environment
from fastreg import functional as F
from fastreg.autograd import operators

OPS = torch.ops.fastreg
SHAPE, ROUNDS, CALLS = (32, 100), 40, 200


def registered():
    """That of dropout as any program would register it. Operators that write, as batch norm does, are refused."""
    library = Library("fastreg", "IMPL")

    def keep_state(ctx, inputs, output):
        ctx.p, ctx.strides = inputs[1], output[0].stride()
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    def of_dropout(ctx, grad_output, _):
        return OPS.dropout(grad_output, ctx.p, *ctx.saved_tensors, ctx.strides), None, None, None

    warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
    register_autograd("fastreg::dropout_seeded", of_dropout, setup_context=keep_state, lib=library)
    return library


WAYS = {"cpp": lambda: None, "registered": registered, "python": operators.use_functions}


def cases():
    """Names, and calls of forward and backward."""
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in (SHAPE, SHAPE[1:], SHAPE[1:]))
    running, g = (torch.zeros(SHAPE[1]), torch.ones(SHAPE[1])), torch.randn(SHAPE)
    return {
        "dropout": lambda: torch.autograd.grad(F.dropout(x, 0.5), x, g),
        "batch norm": lambda: torch.autograd.grad(F.batch_norm(x, *running, weight, bias, True), (x, weight, bias), g),
    }


def microseconds(call):
    return timeit.timeit(call, timer=time.process_time, number=CALLS) / CALLS * 1e6


def main():
    torch.set_num_threads(1)
    results = {(way, case): [] for case in cases() for way in WAYS if (way, case) != ("registered", "batch norm")}
    for round_ in range(-1, ROUNDS):  # the first warms up
        for way, take in WAYS.items():
            library = take()
            for case, call in cases().items():
                if (way, case) in results:
                    took = microseconds(call)
                    results[way, case] += [took] if round_ >= 0 else []
            if library is not None:
                library._destroy()
    print(f"{environment.cpu_model()}, torch {torch.__version__}, {list(SHAPE)}, us per call")
    for (way, case), times in results.items():
        low, *_, high = statistics.quantiles(times, n=5)
        print(f"{case:12}{way:12}{statistics.median(times):8.1f}  ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
