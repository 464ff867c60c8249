"""A program as users write it, for the type checker alone: what editors and checkers know of the public names.

``make lint`` checks it strictly; nothing runs it.
"""

from collections.abc import Callable
from typing import Any, assert_type

import torch
from torch import Tensor

import fastreg
from fastreg import functional as F
from fastreg import nn


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, momentum=None, bias=False, device="cpu", dtype=torch.float64)
        self.fused = nn.BatchNormAct2d(8, act=("leaky_relu", 0.2), pre_act=None, drop=0.1)
        self.drop = nn.Dropout(0.5, scaling="test")
        self.path = nn.DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.path.forward(self.drop.forward(self.norm.forward(x)), x)


model = Network()
assert_type(fastreg.convert(model), Network)
assert_type(fastreg.revert(model), Network)
found = fastreg.report(model)
assert_type(found.replaced, dict[str, str])
assert_type(found.fused[0].parts, tuple[str, ...])
assert_type(nn.SyncBatchNorm.convert_sync_batchnorm(model), Network)
assert_type(model.fused.forward(torch.ones(1), torch.ones(1)), Tensor)

x = torch.ones(2, 8, 4, 4)
state = fastreg.draw_rng_state(x.device)
assert_type(state, Tensor)
assert_type(F.dropout(x, 0.5, rng_state=state), Tensor)
generator = torch.Generator().manual_seed(1)
assert_type(fastreg.draw_rng_state(generator=generator), Tensor)
assert_type(F.dropout(x, 0.5, generator=generator), Tensor)
assert_type(nn.Dropout(0.5, generator=generator).generator, torch.Generator | None)
assert_type(F.batch_norm(x, None, None, training=True), Tensor)
assert_type(F.batch_norm_act(x, None, None, training=True, act=F.Activation("elu", 0.5), residual=x), Tensor)
assert_type(F.act_dropout(x, "gelu", 0.1, drop_path=True), Tensor)
assert_type(fastreg.dropout_mask(x.shape, 0.5, state, dims=2), Tensor)
with fastreg.record_rng_states() as states, fastreg.sharded_batch([1, 1]):
    assert_type(states, list[Tensor])
with fastreg.replay_rng_states(states), fastreg.patch_torch(force=True):
    pass
first, second = fastreg.checkpoint_contexts()
assert_type(fastreg.explain(x, device_limits=90), dict[str, Any])
assert_type(fastreg.build_info(), dict[str, Any])
assert_type(fastreg.export_decompositions(), dict[Any, Callable[..., Any]])

# What a checker has to refuse. An ignore that is not needed is an error.
F.dropout(x, "0.5")  # pyright: ignore[reportArgumentType]
F.dropout(x, 0.5, scale="test")  # pyright: ignore[reportCallIssue]
nn.BatchNorm1d(8, momentum="0.1")  # pyright: ignore[reportArgumentType]
fastreg.convert("a model")  # pyright: ignore[reportArgumentType]
