"""torch's own dropout and batch norm operators, computed by fastreg's: csrc/operators/torch_patch.cpp.

Where that asks Python: calls that are traced by a compiler, or within a context that gives random states.
"""

import os
import sys
import threading

import torch
from torch._subclasses.functional_tensor import FunctionalTensor

from fastreg import _extension, composed_patch
from fastreg._routing import PLAIN_TYPES
from fastreg.functional import _dropout, _dropout_calls

__all__ = ["patch_torch", "unpatch_torch"]

_KINDS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_OPERATORS = (*_KINDS, *(f"{name}_" for name in _KINDS), "batch_norm", "native_dropout")
_CACHE_TAG = "fastreg.patch_torch"  # in the keys under which torch.compile keeps what it compiled

_patches = 0
_lock = threading.RLock()
# A process that is forked while another thread patches has the lock for itself.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class _Patch:
    """What :func:`patch_torch` returns: a context that undoes it."""

    def __init__(self):
        self._ended = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self._ended:
            self._ended = True
            unpatch_torch()


def refusal(force: bool) -> str | None:
    """Why torch cannot be patched here, or only if that is forced; None where it can."""
    if _extension.available("cpu") or (force and not _extension.disabled()):
        return None
    if _extension.disabled():
        return f"{_extension.problem()} Everything is torch's own then"
    return (
        f"{_extension.problem()} Without compiled operators dropout would be far slower than torch's, so that nothing "
        "is patched unless it is forced"
    )


def patch_torch(force: bool = False) -> _Patch:
    """Let torch's own dropout and batch norm compute with fastreg, wherever a program calls them.

    Functions of ``torch.nn.functional``, modules of ``torch.nn``, dropout within ``nn.LSTM`` and other recurrent
    layers, ``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer`` and ``scaled_dot_product_attention``, programs of
    ``torch.jit``, and C++: all of these call the operators ``aten::dropout``, ``feature_dropout``, ``alpha_dropout``
    and ``feature_alpha_dropout``, their forms in place, ``batch_norm``, or ``native_dropout``, which torch's dispatcher
    then hands to fastreg. No other operator is touched, and nothing of Python's. Autograd, forward-mode AD,
    ``torch.func``, autocast and ``torch.compile`` work as with fastreg's own functions; their deliberate differences
    from torch's hold as well. What fastreg has no kernels for is torch's as before.

    Code that was compiled before is compiled again at its next call, and what is compiled meanwhile has fastreg's
    operators in it. Threads that are within such a call while it is patched get one or the other.

    It may be called several times, in any thread, and holds for the whole process and processes forked from it: as many
    calls of :func:`unpatch_torch` undo it.

    Not reached: dropout within cuDNN's recurrent layers and the fused attention kernels of CUDA, differentiated parts
    of ``torch.jit`` programs that were optimised, and what never calls these operators.

    Without the extension dropout would be composed of many of torch's operators, and far slower than torch's own: that
    is an error unless it is forced. Batch norm is torch's then, and so is dropout within ``torch.func``'s transforms.

    Args:
        force (bool): patch where no extension was built, too. Default: False.

    Returns:
        a context manager, whose end undoes this call: ``with fastreg.patch_torch(): ...``.

    Raises:
        RuntimeError: fastreg was built without the extension and force is False, or it is disabled.

    Example::

        with fastreg.patch_torch():
            y = torch.nn.functional.dropout(x)  # fastreg's: 16 bytes are kept for the backward pass
    """
    global _patches
    with _lock:
        if (why := refusal(force)) is not None:
            raise RuntimeError(f"patch_torch: {why}")
        if _patches == 0:
            if _extension.available("cpu"):
                _extension.module().patch_torch(_is_plain)
            else:
                composed_patch.patch()
            _forget(True)
        _patches += 1
    return _Patch()


def unpatch_torch() -> None:
    """Undo a call of :func:`patch_torch`; with the last, torch is exactly what it was.

    Raises:
        RuntimeError: torch is not patched.
    """
    global _patches
    with _lock:
        if _patches == 0:
            raise RuntimeError("unpatch_torch: torch must be patched, got no call of patch_torch before")
        _patches -= 1
        if _patches == 0:
            if _extension.available("cpu"):
                _extension.module().unpatch_torch()
            else:
                composed_patch.unpatch()
            _forget(False)


def observe(observer) -> None:
    """Tell a function of each call of a patched operator; None: nobody is told."""
    if _extension.available("cpu"):
        _extension.module().observe_patched(observer)
    else:
        composed_patch.observe(observer)


def _forget(patched):
    """What torch remembers of its operators' kernels, and of code that was compiled with them."""
    for name in _OPERATORS:
        getattr(torch.ops.aten, name).default._dispatch_cache.clear()
    config = torch.compiler.config
    tag = config.cache_key_tag
    config.cache_key_tag = tag + _CACHE_TAG if patched else tag.replace(_CACHE_TAG, "")
    # Whoever has compiled anything has imported it.
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()


def _is_plain(tensor):
    """Whether a tensor with a dispatch of its own only stands for a plain one, in what a compiler traces."""
    if type(tensor) is FunctionalTensor:  # what is inside may be a subclass
        tensor = torch._from_functional_tensor(tensor.elem)
    return type(tensor) in PLAIN_TYPES


def _patched_dropout(name, input, p, inplace, dims, alpha, traced):
    transform = _dropout.alpha_transform(p) if alpha else None
    return _dropout_calls.drop_patched(name, input, p, inplace, dims, transform, traced)


if _extension.available("cpu"):
    _library = torch.library.Library("fastreg", "IMPL")  # its registrations last as long as it
    for _key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
        _library.impl("patched_dropout", _patched_dropout, _key)
