"""The random states of dropout calls: drawing one, recording those that calls use, and using them again."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor
from torch.compiler import is_compiling
from torch.utils import checkpoint

from fastreg import ops, reference
from fastreg._extension import available, module
from fastreg._routing import has_operators

__all__ = ["checkpoint_contexts", "draw_rng_state", "record_rng_states", "replay_rng_states"]

# Within the contexts below: what gives a call that draws its rng_state, for a device, the call's own generator or None,
# and how many of the checkpoints around it give it again to a second call in the backward pass. None otherwise.
source = None
# Within checkpoint_contexts: the same for calls of draw_rng_state. None otherwise.
source_of_draws = None
# Within fastreg.sharded_batch: what draws a state that all processes have. None otherwise.
drawer = None


def draw_rng_state(device: torch.device | str = "cpu", generator: Generator | None = None) -> Tensor:
    """Draw a random state from a generator as a dropout call draws its own.

    ``state = draw_rng_state(x.device); y = dropout(x, rng_state=state)`` drops what ``dropout(x)`` would have dropped,
    and leaves the generator as that does: on the CPU after one draw of 64 bits, on CUDA advanced by 8. There is no
    synchronisation of the device. Under ``torch.compile`` and ``torch.func.vmap`` the state is drawn by
    ``torch.randint``, as the functions do there.

    Args:
        device (torch.device or str): "cpu" or a CUDA device. Default: "cpu".
        generator (torch.Generator, optional): one of this device. Default: the device's own.

    Returns:
        Tensor: int64[2] on the device, (seed, offset) read as unsigned.

    Raises:
        TypeError: generator is no torch.Generator.
        RuntimeError: torch knows no such device, or has none here; or generator is on another.
    """
    device = torch.device(device)
    if generator is not None:
        check_generator("draw_rng_state", generator, torch.empty(0, device=device).device)
    return (source_of_draws or draw_for_call)(device, generator)


def draw_own(device: torch.device, generator: Generator | None = None) -> Tensor:
    """:func:`draw_rng_state` of this process alone."""
    # A compiler leaves its graph to draw from a generator that is given, and goes on after it.
    if has_operators(device.type) and (generator is not None or not is_compiling()):
        return ops.dropout.draw_state(device, generator)
    return reference.dropout.draw_state(device, generator)


def draw_for_call(device: torch.device, generator: Generator | None, covered: int = 0) -> Tensor:
    """A state that the contexts below do not give. torch.utils.checkpoint restores the devices' own generators, and no
    others, for its second call, so that of another one none is drawn but within checkpoints that all keep it.

    covered: how many do.
    """
    if generator is not None and checkpoints() > covered:
        raise RuntimeError(
            "checkpoint: use_reentrant must be False and context_fn fastreg.checkpoint_contexts around dropout with a "
            "generator, of which the backward pass would draw another mask, got a checkpoint without"
        )
    return draw_own(device, generator) if drawer is None else drawer(device, generator)


def check_is_generator(name, generator):
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"{name}: generator must be a torch.Generator or None, got {type(generator).__name__}")


def check_generator(name, generator, device, rng_state=None):
    """Raise where a call with this rng_state, or none, on this device cannot draw from the generator."""
    check_is_generator(name, generator)
    if rng_state is not None:
        raise ValueError(f"{name}: generator must be None where rng_state is given, got both")
    if generator.device != device:
        raise RuntimeError(f"{name}: generator must be on {device}, got one on {generator.device}")


def use_source(give):
    """Let calls be given their states by this, or draw them where it is None. Returns what gave them before."""
    global source
    outer, source = source, give
    if available("cpu"):
        module().give_states_to_patched(give is not None)
    return outer


@contextmanager
def _use(give, give_draws=None) -> Iterator[None]:
    """give_draws: what gives calls of draw_rng_state theirs. Default: as before."""
    global source_of_draws
    outer, outer_of_draws = use_source(give), source_of_draws
    source_of_draws = give_draws or source_of_draws
    try:
        yield
    finally:
        use_source(outer)
        source_of_draws = outer_of_draws


def refuse_to_compile(name):
    if is_compiling():
        raise RuntimeError(f"{name}: dropout must not be compiled within it: call the model uncompiled")


@contextmanager
def record_rng_states() -> Iterator[list[Tensor]]:
    """Record the random state of every dropout call that draws one, in the order of the calls.

    Modules and functions of all threads are recorded. Calls draw what they would have drawn. Calls that draw nothing
    are not recorded: in evaluation, with p of 0 or 1, without elements, or with an ``rng_state`` of their own. Where
    checkpointing calls functions again in the backward pass, the second calls are not recorded.

    Code that ``torch.compile`` compiles draws inside its own graph: within the context it is refused.

    Yields:
        list[Tensor]: int64[2] each, filled as calls are made.

    Raises:
        RuntimeError: ``torch.compile`` compiles a dropout within the context.

    Example::

        with fastreg.record_rng_states() as states:
            y = model(x)
        with fastreg.replay_rng_states(states):
            assert torch.equal(other_model_with_the_same_weights(x), y)
    """
    states = []
    graph_task = torch._C._current_graph_task_id()  # -1 outside of backward passes

    def give(device, generator=None, covered=0):
        refuse_to_compile("record_rng_states")
        # Within checkpoint_contexts that were entered before, these keep what is drawn.
        draw = draw_for_call if covered or source_of_draws is None else source_of_draws
        state = draw(device, generator, covered)
        if torch._C._current_graph_task_id() == graph_task:
            states.append(state)
        return state

    with _use(give):
        yield states


@contextmanager
def replay_rng_states(states: Iterable[Tensor]) -> Iterator[None]:
    """Give the dropout calls that would draw a random state these ones instead, in the order of the calls.

    No generator is advanced, also none that is a call's own. As many calls must be made as there are states.

    A function that ``torch.utils.checkpoint`` calls again in the backward pass, then outside of the context or in
    another order, would see other masks: such a function is refused, unless it enters the context itself, or is given
    :func:`checkpoint_contexts`.

    Args:
        states (iterable of Tensor): int64[2] each, as :func:`record_rng_states` collects them.

    Raises:
        RuntimeError: more or fewer calls than states; ``torch.compile`` compiles a dropout within the context; or a
            call within a checkpointed function that did not enter the context.
    """
    states = list(states)
    used = 0
    depth = checkpoints()

    def give(device, generator=None, covered=0):
        nonlocal used
        refuse_to_compile("replay_rng_states")
        if checkpoints() - depth > covered:
            raise RuntimeError(
                "replay_rng_states: a checkpointed function must enter the context itself, or have "
                "context_fn=fastreg.checkpoint_contexts, got a dropout within torch.utils.checkpoint"
            )
        if used == len(states):
            raise RuntimeError(f"replay_rng_states: there must be a state for each call, got {used} states and a call")
        used += 1
        return states[used - 1]

    with _use(give):
        yield
    if used < len(states):
        raise RuntimeError(f"replay_rng_states: each state must be used, got {len(states)} states and {used} calls")


class _Repeatable(AbstractContextManager):
    """A context that can be entered again: one that make() makes anew, within another that is given."""

    def __init__(self, make, given):
        self._make, self._given = make, given

    def __enter__(self):
        with ExitStack() as stack:
            stack.enter_context(self._given)
            stack.enter_context(self._make())
            self._entered = stack.pop_all()

    def __exit__(self, *error):
        return self._entered.__exit__(*error)


@contextmanager
def _first_call(states):
    """States are drawn as they are outside, and kept."""

    def keeping(draw):
        def give(device, generator=None, covered=0):
            refuse_to_compile("checkpoint_contexts")
            states.append(draw(device, generator, covered + 1))
            return states[-1]

        return give

    states.clear()
    with _use(keeping(source or draw_for_call), keeping(source_of_draws or draw_for_call)):
        yield


@contextmanager
def _second_call(states):
    remaining = iter(states)

    def give(device, generator=None, covered=0):
        refuse_to_compile("checkpoint_contexts")
        state = next(remaining, None)
        if state is None:
            raise RuntimeError(
                f"checkpoint_contexts: the second call must draw what the first drew, got more than {len(states)} draws"
            )
        return state

    with _use(give, give):
        yield


def checkpoint_contexts(
    context_fn: Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]] | None = None,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Give dropout within ``torch.utils.checkpoint`` the masks of the first call when it is called again.

    ``checkpoint(function, x, use_reentrant=False, preserve_rng_state=False, context_fn=fastreg.checkpoint_contexts)``
    keeps the random state of each dropout, 16 bytes, in place of the states of all generators: without either, the
    second call draws other masks, and gradients are silently wrong. It holds for fastreg's dropouts, and for torch's
    while it is patched, and for :func:`draw_rng_state`; no generator is touched by the second call. Checkpoints may be
    nested, each with its own. For dropout with a ``generator`` of its own, which torch does not restore, there is no
    other way, and all checkpoints around it must have them.

    Args:
        context_fn (callable, optional): another pair of contexts, around these, such as
            ``functools.partial(create_selective_checkpoint_contexts, policy)``. Default: none.

    Returns:
        two contexts, for the first call and for those in the backward pass.

    Raises:
        RuntimeError: a second call makes more draws than the first, the function is compiled, or it has a dropout
            within a :func:`fastreg.sharded_batch` that it did not enter itself.

    Example::

        y = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=fastreg.checkpoint_contexts)
    """
    states = []
    first, second = (nullcontext(), nullcontext()) if context_fn is None else context_fn()
    make_first, make_second = functools.partial(_first_call, states), functools.partial(_second_call, states)
    return _Repeatable(make_first, first), _Repeatable(make_second, second)


def checkpoints():
    """How many functions of torch.utils.checkpoint are being called."""
    count, frame = 0, sys._getframe()
    while frame is not None:
        count += frame.f_code.co_filename == checkpoint.__file__
        frame = frame.f_back
    return count
