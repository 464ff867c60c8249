"""What operators of PyTorch's easily get wrong without any other test noticing: tags, versions, views."""

import pytest
import torch

import fastreg
from fastreg import functional as F
from tests.common import DEVICES

OPS = torch.ops.fastreg
devices = pytest.mark.parametrize("device", DEVICES)


def operators():
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("fastreg::")}
    assert len(names) >= 12
    return [getattr(OPS, name.removeprefix("fastreg::")).default for name in sorted(names)]


def test_all_that_draw_say_so():
    """Else the compiler merges two calls, and checkpointing recomputes other masks; opcheck notices neither."""
    for op in operators():
        draws = "_seeded" in op.name() or "draw_" in op.name()
        assert (torch.Tag.nondeterministic_seeded in op.tags) == draws, op


def test_none_returns_what_it_is_given():
    """A result that shares memory with an argument fails under torch.compile."""
    for op in operators():
        assert all(result.alias_info is None for result in op._schema.returns), op


def test_none_casts_under_autocast():
    """A cast of arguments would lose what is written to them."""
    for op in operators():
        for key in ("AutocastCPU", "AutocastCUDA"):
            assert not torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key), op


def test_all_have_fake_kernels():
    """But for what is composed of the others."""
    for op in operators():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
            assert torch._library.simple_registry.singleton.find(op.name().split(".")[0]).fake_impl.kernel, op


@devices
def test_versions_of_what_is_written(device):
    """A tensor saved for a backward pass and written since must be noticed."""
    x = torch.randn(4, 3, device=device)
    module = fastreg.nn.BatchNorm1d(3, device=device)
    before = [b._version for b in module.buffers()]
    module(x)
    assert all(b._version > v for b, v in zip(module.buffers(), before, strict=True))
    before = [b._version for b in module.buffers()]
    module.eval()(x)
    assert [b._version for b in module.buffers()] == before
    for write in (
        lambda y: F.dropout(y, inplace=True),
        lambda y: F.alpha_dropout(y, training=True, inplace=True),
        lambda y: F.drop_path(y, inplace=True),
        lambda y: OPS.dropout_(y, 0.5, torch.tensor([1, 8])),
        lambda y: OPS.feature_dropout_(y, 1, 0.5, torch.tensor([1, 8])),
    ):
        leaf = x.clone().requires_grad_()
        y = leaf.sin()
        z = y.square()  # keeps y
        write(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


@devices
@pytest.mark.parametrize("given", [True, False])
def test_views_in_place(device, given):
    """Gradients reach the tensor that a view is of, of which the rest keeps its own."""
    x = torch.rand(4, 6, device=device).add(1).requires_grad_()
    y = x * 2
    state = torch.tensor([1, 8]) if given else None
    F.dropout(y[:, 2:4], 0.5, inplace=True, rng_state=state)
    F.drop_path(y[1:3], 0.5, inplace=True, rng_state=state)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach())
    assert (y == 0).any() and (y[0, :2] != 0).all()
    with pytest.raises(RuntimeError, match="leaf Variable"):
        F.dropout(x[:, 2:], inplace=True)


@devices
def test_direct_calls_in_exported_programs_differentiate(device):
    """The formula belongs to the operator, not to a function around it."""

    class Direct(torch.nn.Module):
        def forward(self, x, state):
            y = OPS.dropout(x, 0.5, state)
            return OPS.batch_norm_train(y, None, None, None, None, None, 0.1, 1e-5)[0].pow(3)

    x, state = torch.randn(6, 3, device=device, requires_grad=True), torch.tensor([1, 8])
    program = torch.export.export(Direct(), (x, state)).module()
    gradients = [torch.autograd.grad(f(x, state).sum(), x)[0] for f in (program, Direct())]
    torch.testing.assert_close(*gradients)
    traced = torch.fx.experimental.proxy_tensor.make_fx(Direct())(x, state)
    torch.testing.assert_close(torch.autograd.grad(traced(x, state).sum(), x)[0], gradients[0])
