"""What the class of a parent with fused sites becomes."""

import functools
import inspect

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.jit import ScriptModule

from fastreg.conversion.layers import NormWithAct, Subclass
from fastreg.conversion.plans import Plan
from fastreg.conversion.tracing import TENSOR, kind
from fastreg.nn.derived import PLANS, Derived, derive, original_of

MOST_PLANS = 16  # of one module: forwards that are called with ever new numbers are left as they are


class Fused(Derived):
    """A parent that computes its forward by a plan, or by the original where there is none or it does not hold."""

    __slots__ = ()

    @staticmethod
    def make_forward(original):
        @functools.wraps(original.forward)
        def forward(self, *args, **kwargs):
            if len(args) == 1 and type(args[0]) is Tensor and not kwargs:
                plan, tensors = _plan(self, (TENSOR,), ()), args
            else:
                plan, tensors = _plan_for(self, args, kwargs)
            if plan is None or plan.function is None or not plan.holds(self):
                return original.forward(self, *args, **kwargs)
            return plan.function(self, *tensors)

        return forward


def _plan_for(module, args, kwargs):
    """The plan for any arguments, and those of them that it takes."""
    kinds = [kind(argument) for argument in (*args, *kwargs.values())]
    if None in kinds:
        return None, ()
    taken = [argument for argument, what in zip((*args, *kwargs.values()), kinds, strict=True) if what[0] != "constant"]
    return _plan(module, tuple(kinds[: len(args)]), tuple(zip(kwargs, kinds[len(args) :], strict=True))), taken


def _plan(module, arguments, keywords):
    plans = getattr(module, PLANS, None)
    key = module.training, arguments, keywords
    plan = None if plans is None else plans.get(key)
    if plan is None and not is_compiling() and (plans is None or len(plans) < MOST_PLANS):
        plan = module.__dict__.setdefault(PLANS, {})[key] = Plan(module, arguments, keywords)
    return plan


def plans_of(module: nn.Module) -> list[Plan]:
    """The plans for training and for evaluation, with tensors for the arguments that forward cannot do without."""
    if isinstance(module, ScriptModule) or not any(True for _ in module.children()):
        return []
    arguments = (TENSOR,) * _required_arguments(original_of(type(module)).forward)
    was_training, found = module.training, []
    try:
        for training in (True, False):
            module.training = training
            found.append(_plan(module, arguments, ()) if isinstance(module, Fused) else Plan(module, arguments))
    finally:
        module.training = was_training
    return found


def _required_arguments(forward) -> int:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return max(1, len(needed))


def fuse(module: nn.Module) -> None:
    """Make the module's class one that fuses, if there is anything to fuse in its forward."""
    if isinstance(module, Subclass | NormWithAct) or "forward" in module.__dict__:
        return
    plans = plans_of(module)
    if any(plan.sites for plan in plans):
        module.__class__ = derive(Fused, type(module))
        module.__dict__.pop(PLANS, None)
        plans_of(module)
