"""torch's own dropout operators, composed of torch's others as fastreg.reference has them: what ``patch_torch`` does
where no extension was built. csrc/operators/torch_patch.cpp is the compiled way.

Batch norm stays torch's, as fastreg's own is without the extension, and so does what torch.func's transforms are to
see: they take a composed operator apart before its kernel is asked.
"""

import torch
from torch import Tensor

from fastreg._routing import is_ours
from fastreg.functional import _dropout, _dropout_calls

NOTHING_DROPPED = "nothing is dropped"  # csrc/operators/torch_patch.cpp: evaluation, p = 0, no elements
_TORCHS = torch._C.DispatchKey.CompositeImplicitAutograd  # past what there is of Python's
_KEYS = ("AutogradCPU", "CPU", "AutogradCUDA", "CUDA")
# The operators: how many leading dimensions are counted, if any are, and whether they keep mean and variance.
_FORMS = {
    "dropout": (None, False),
    "feature_dropout": (2, False),
    "alpha_dropout": (None, True),
    "feature_alpha_dropout": (2, True),
}

_library: torch.library.Library | None = None
_observer = None


def patch() -> None:
    global _library
    _library = torch.library.Library("aten", "IMPL")
    for name, form in _FORMS.items():
        for op in (name, f"{name}_"):
            for key in _KEYS:
                _library.impl(op, _kernel(op, *form), key)


def unpatch() -> None:
    global _library
    assert _library is not None
    _library._destroy()
    _library = None


def observe(observer) -> None:
    """Tell a function of each patched call, as the extension's observe_patched does; None: nobody is told."""
    global _observer
    _observer = observer


def _kernel(name, dims, alpha):
    torchs, inplace = getattr(torch.ops.aten, name).default, name.endswith("_")

    def dropout(input: Tensor, p: float, train: bool) -> Tensor:
        why_left = _why_left(input, p, train, dims)
        if _observer is not None:
            draws = input.numel() if dims is None else input.shape[:dims].numel()
            records = torch.is_grad_enabled() and input.requires_grad
            dtype, device = str(input.dtype).removeprefix("torch."), str(input.device)
            _observer(name, str(list(input.shape)), dtype, input.element_size(), device, draws, records, why_left)
        if why_left is not None:
            return torchs._op_dk(_TORCHS, input, p, train)
        transform = _dropout.alpha_transform(p) if alpha else None
        return _dropout_calls.drop_patched(name.removesuffix("_"), input, p, inplace, dims, transform, False)

    return dropout


def _why_left(input, p, train, dims):
    """Why a call is left to torch; None where it is not."""
    if not train or p == 0.0:
        return NOTHING_DROPPED
    if not 0.0 <= p <= 1.0:
        return "p is not in [0, 1]"
    if not is_ours(input):
        return "a tensor that fastreg does not compute with"
    if dims is not None and input.dim() < dims:
        return "too few dimensions"
    return NOTHING_DROPPED if input.numel() == 0 else None
