"""What makes an eager call of an operator cheap."""

import torch

# A Function for eager tensors alone, without torch.autograd.Function's search for functorch wrappers in the arguments:
# 12 us a call instead of 15. The operators are not called so under functorch's transforms.
Function = torch.autograd.function._SingleLevelFunction

# Within it operators go straight to the device's kernel, past the autograd that is registered for them.
BelowAutograd = torch._C._AutoDispatchBelowAutograd


def needs_autograd(*tensors):
    """Whether an operation on these tensors (or None) has to be recorded."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False
