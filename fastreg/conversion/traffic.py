"""What a fused site keeps for the backward pass, and how often it goes through memory."""

from fastreg.conversion.sites import OF_BITS

# Times that a tensor of a site's size is read or written, forward and backward, by PyTorch's single operations. Batch
# norm reads twice and writes; then reads input and gradient twice and writes. An activation reads and writes; then
# reads two and writes. A sum reads two and writes; its gradient is passed on. Dropout reads and writes each way (and
# moves a mask, not counted here).
NORM, ACTIVATION, ADDITION, DROPOUT = (3, 5), (2, 3), (3, 0), (2, 2)
NORM_IN_EVALUATION = 2  # forward
_OTHERS = ("batch norm", "add", "dropout", "drop path")  # than activations, as parts of a site are named


def accesses(norm: bool, activations: int, residual: bool, drop: bool, training: bool = True) -> tuple[int, int]:
    """Accesses to tensors of a site's size, of a training step or of a forward pass in evaluation: by single
    operations, and by one kernel each way.

    One kernel accesses what its first operation does alone. It reads the residual besides, and after a batch norm
    writes the residual's gradient, where that is not simply the gradient that it was given.
    """
    parts = (norm, NORM), (activations, ACTIVATION), (residual, ADDITION), (drop, DROPOUT)
    first = NORM if norm else ACTIVATION if activations else DROPOUT
    if not training:
        saved = norm * (NORM[0] - NORM_IN_EVALUATION)
        return sum(count * each[0] for count, each in parts) - saved, first[0] - saved + residual
    changed = norm and (activations > 0 or drop)
    return sum(count * sum(each) for count, each in parts), sum(first) + residual * (1 + changed)


def accesses_of(parts: tuple[str, ...], training: bool) -> tuple[int, int]:
    """Those of a site by the names of its parts."""
    activations = sum(part not in _OTHERS for part in parts)
    drop = "dropout" in parts or "drop path" in parts
    return accesses("batch norm" in parts, activations, "add" in parts, drop, training)


def kept(parts: tuple[str, ...]) -> list[str]:
    """What a site keeps for the backward pass, beside a few numbers per channel."""
    found = []
    acts = [part for part in parts if part not in _OTHERS]
    if acts or "batch norm" in parts:
        found.append("its input")
    if "batch norm" in parts and "add" in parts and acts and parts.index(acts[-1]) > parts.index("add"):
        found.append("a bit per element" if acts[-1] in OF_BITS else "the residual")
    if "dropout" in parts or "drop path" in parts:
        found.append("16 bytes")
    return found
