"""Dropout and batch normalisation for PyTorch, fast on CUDA and CPU: drop-in functions and modules.

fastreg.nn          modules, in place of torch.nn's
fastreg.functional  functions, in place of torch.nn.functional's
fastreg.reference   the same in plain PyTorch

draw_rng_state, record_rng_states, replay_rng_states, dropout_mask: the random states of dropout, and their masks
checkpoint_contexts: the same masks again where a function is called again in the backward pass
sharded_batch: dropout of a batch that is spread over processes
export_decompositions: exported programs that need no fastreg
convert, report, revert: a model's layers to fastreg's, what that did, and back
patch_torch, unpatch_torch: torch's own dropout and batch norm, in any program, computed by fastreg
empty_cache: gives the memory kept for large results on the CPU back
"""

from fastreg import functional, nn, reference
from fastreg._extension import build_info, empty_cache
from fastreg.conversion import convert, report, revert
from fastreg.explanation import explain
from fastreg.export import export_decompositions
from fastreg.functional import dropout_mask
from fastreg.patching import patch_torch, unpatch_torch
from fastreg.rng_states import checkpoint_contexts, draw_rng_state, record_rng_states, replay_rng_states
from fastreg.sharding import sharded_batch

__version__ = "0.1.0"

__all__ = [
    "build_info",
    "checkpoint_contexts",
    "convert",
    "draw_rng_state",
    "dropout_mask",
    "empty_cache",
    "explain",
    "export_decompositions",
    "functional",
    "nn",
    "patch_torch",
    "record_rng_states",
    "reference",
    "replay_rng_states",
    "report",
    "revert",
    "sharded_batch",
    "unpatch_torch",
]
