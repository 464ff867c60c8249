"""Dropout of tensors that are parts of larger ones: each part gets the mask that the whole would get on one device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fastreg import rng_states

__all__ = ["sharded_batch"]

# Within sharded_batch: this process's part of the batch. None otherwise.
current = None


def index_map(sizes: Sequence[int], whole: Sequence[int], starts: Sequence[int]) -> tuple[int, int, int] | None:
    """Where the elements of a block stand in a tensor: (first, row, row_stride), as the operators take it.

    Element j of the block is element first + (j div row) * row_stride + j mod row. None where no such map exists.

    Args:
        sizes, whole (sequence of int): shapes of the block and of the tensor, outermost dimension in memory first.
        starts (sequence of int): the block's first index in each dimension.
    """
    if 0 in sizes:
        return 0, 1, 0
    stride, first = 1, 0
    row, row_stride, innermost = 1, 0, True
    before = [1]
    for size in sizes:
        before.append(before[-1] * size)
    for d in reversed(range(len(sizes))):
        first += starts[d] * stride
        stride *= whole[d]
        if innermost:
            row *= sizes[d]
        if sizes[d] != whole[d]:
            if innermost:
                row_stride, innermost = stride, False
            elif before[d] != 1:  # rows that are not all the same distance apart
                return None
    return first, row, row_stride if before[-1] > row else 0


def memory_order(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The dimensions of ``torch.empty_like`` of a tensor, outermost first."""
    strides = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    return sorted(range(len(shape)), key=lambda d: (-strides[d], d))


@contextmanager
def sharded_batch(
    rows: int | Sequence[int], group: "torch.distributed.ProcessGroup | None" = None, *, dim: int = 0
) -> Iterator[None]:
    """Within, dropout treats this process's tensors as its rows of a batch that is spread over a group of processes.

    Every process of the group enters the context and calls the same dropouts in the same order. The batch is the rows
    of the ranks, one after the other. Each call draws one mask for the whole batch, of which each process applies its
    rows': the results are those of one process with the whole batch, which enters the context alone. Parameters, such
    as the weights that DropConnect drops, are the same everywhere, and so is their mask.

    The first dropout within costs a collective of three numbers per process, and where ``rows`` is a number and the
    input on a GPU a synchronisation with it. The others cost none. Rank 0 draws one random state, whose offset grows by
    8 with each call.

    Args:
        rows (int or sequence of int): how many rows this process has, or how many each rank has. A tensor may have a
            multiple of them, such as those of a sequence that was flattened into the batch.
        group (ProcessGroup, optional): the processes. Default: all; this one where torch.distributed is not
            initialised.
        dim (int): the dimension of the rows. Default: 0.

    Raises:
        ValueError: rows is negative, or not one number per rank; or a tensor's size is no multiple of this rank's.
        RuntimeError: a call within a function of ``torch.utils.checkpoint`` that did not enter the context itself, in
            code that ``torch.compile`` compiles, or with a ``generator``.

    Example::

        with fastreg.sharded_batch(x.shape[0]):
            loss = criterion(model(x), target)  # model: DistributedDataParallel
    """
    global current
    outer, current = current, _Batch(rows, group, dim)
    drawer, rng_states.drawer = rng_states.drawer, current.draw
    source = rng_states.use_source(rng_states.source or current.draw)
    try:
        yield
    finally:
        current, rng_states.drawer = outer, drawer
        rng_states.use_source(source)


class _Batch:
    """This process's part of a batch, and the random states of the calls."""

    group: Any  # None without torch.distributed
    state: torch.Tensor  # of the next call, from _start on

    def __init__(self, rows, group, dim):
        self.group, self.dim = group, dim
        self.distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.distributed and group is None:
            self.group = torch.distributed.group.WORLD
        size = self.group.size() if self.distributed else 1
        self.rank = self.group.rank() if self.distributed else 0
        self.rows: list[int] | None = None  # of the ranks; a number of each until _start
        if isinstance(rows, int):
            self.own: int = rows
        else:
            self.rows = list(rows)
            if len(self.rows) != size:
                raise ValueError(f"sharded_batch: rows must be a number, or one for each of {size} ranks, got {rows}")
            self.own = self.rows[self.rank]
        if self.own < 0 or any(row < 0 for row in self.rows or []):
            raise ValueError(f"sharded_batch: rows must not be negative, got {rows}")
        self.started = False
        self.checkpoints = rng_states.checkpoints()

    def _start(self, device) -> list[int]:
        """Take the state of rank 0, and give the rows of all: one collective."""
        self.state, rows = rng_states.draw_own(device), [self.own]
        if self.distributed:
            own = torch.cat((self.state, torch.tensor([self.own], device=device)))
            parts = [torch.empty_like(own) for _ in range(self.group.size())]
            torch.distributed.all_gather(parts, own, group=self.group)
            self.state = parts[0][:2]
            rows = self.rows or torch.stack(parts)[:, 2].tolist()
        self.started, self.rows = True, rows
        self.step = torch.tensor([0, 8], device=device)
        return rows

    def draw(self, device, generator=None, covered=0):
        """The state of the next call, the same on all ranks."""
        if generator is not None:
            raise RuntimeError(
                "sharded_batch: generator must be None within, where all processes have the states of one, got "
                "a torch.Generator"
            )
        rng_states.refuse_to_compile("sharded_batch")
        if rng_states.checkpoints() != self.checkpoints:
            raise RuntimeError(
                "sharded_batch: a checkpointed function must enter the context itself, got a dropout within "
                "torch.utils.checkpoint"
            )
        if not self.started:
            self._start(device)
        state = self.state.to(device)
        self.state = state + self.step.to(device)
        return state

    def map(self, name, input, dims):
        """The index map of input's elements, or of its leading dims dimensions."""
        if isinstance(input, torch.nn.Parameter) or input.numel() == 0:
            return None
        rows = self._start(input.device) if self.rows is None else self.rows
        sizes, dim = list(input.shape), self.dim
        if dim >= (len(sizes) if dims is None else dims) or self.own == 0 or sizes[dim] % self.own:
            raise ValueError(
                f"{name}: input must have a multiple of {self.own} rows in dimension {dim} within sharded_batch, "
                f"got shape {sizes}"
            )
        whole, starts = sizes.copy(), [0] * len(sizes)
        each = sizes[dim] // self.own
        whole[dim], starts[dim] = sum(rows) * each, sum(rows[: self.rank]) * each
        order = memory_order(sizes, input.stride()) if dims is None else list(range(dims))
        if sizes[dim] == 1 and dim == 0:  # its stride says nothing
            order = [0, *(d for d in order if d != 0)]
        found = index_map(*([values[d] for d in order] for values in (sizes, whole, starts)))
        assert found is not None  # there is one dimension that is cut
        return found
