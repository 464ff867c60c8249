"""What a report says that sites keep is what autograd keeps of them; and how often they access memory."""

import pytest
import torch
from torch import nn

import fastreg

N = 4096  # elements
SHAPE = (8, 16, 32)


LAYERS = {"relu": nn.ReLU, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}
LAYERS |= {"batch norm": lambda: nn.BatchNorm1d(16), "dropout": lambda: nn.Dropout(0.5)}


class Chain(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.layers = nn.Sequential(*(LAYERS[part]() for part in parts))

    def forward(self, x, r):
        return self.layers(x)


class Sum(nn.Module):
    """A layer, a sum, and perhaps an activation."""

    def __init__(self, parts):
        super().__init__()
        self.layer = LAYERS[parts[0]]()
        self.act = LAYERS[parts[2]]() if len(parts) > 2 else nn.Identity()

    def forward(self, x, r):
        return self.act(self.layer(x) + r)


def bytes_kept(model, *inputs):
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(*inputs)
    return sum(size for size in kept.values() if size > 300 or size == 16), y


BYTES = {"its input": 4 * N, "the residual": 4 * N, "a bit per element": N // 8, "16 bytes": 16}


@pytest.mark.parametrize(
    ("parts", "kept", "accesses"),
    [
        (("batch norm", "relu"), ["its input"], (13, 8)),
        (("batch norm", "silu"), ["its input"], (13, 8)),
        (("batch norm", "add"), ["its input"], (11, 9)),
        (("batch norm", "add", "relu"), ["its input", "a bit per element"], (16, 10)),
        (("batch norm", "add", "leaky_relu"), ["its input", "a bit per element"], (16, 10)),
        (("batch norm", "relu", "dropout"), ["its input", "16 bytes"], (17, 8)),
        (("silu", "batch norm"), ["its input"], (13, 8)),
        (("silu", "dropout"), ["its input", "16 bytes"], (9, 5)),
        (("dropout", "add"), ["16 bytes"], (7, 5)),
    ],
)
def test_kept_and_accessed(parts, kept, accesses):
    model = fastreg.convert((Sum if "add" in parts else Chain)(parts))
    (site,) = fastreg.report(model).fused
    assert site.parts == parts
    assert (site.kept, site.accesses) == (kept, accesses)
    line = f"(keeps {', '.join(kept)}; accesses memory {accesses[1]} times in place of {accesses[0]})"
    assert line in str(fastreg.report(model))
    first = nn.functional.dropout(torch.randn(SHAPE, requires_grad=True), 0.0)  # fresh, so that it may be kept
    size, y = bytes_kept(model, first, torch.randn(SHAPE, requires_grad=True))
    assert size == sum(BYTES[name] for name in kept)
    assert y.shape == SHAPE


def test_evaluation_keeps_nothing():
    model = fastreg.convert(nn.Sequential(nn.BatchNorm1d(16), nn.ReLU()))
    (site,) = fastreg.report(model).fused
    assert fastreg.report(model).fused == [site] and site.accesses == (13, 8)
    in_evaluation = type(site)(site.path, site.parts, site.parent, training=False)
    assert (in_evaluation.kept, in_evaluation.accesses) == ([], (4, 2))
