"""Dropout under torch.func and forward-mode AD: functions, and direct calls of the operators."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import fastreg
from fastreg import functional as F
from tests.common import DEVICES, LAYOUTS, channels_last, in_layout, sliced, transposed
from tests.functional.dropout_family import KINDS
from tests.known_answers import rng_state

OPS = torch.ops.fastreg
pytestmark = pytest.mark.usefixtures("derivatives")
STATE = torch.tensor([2, 8])
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@devices
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "dropout1d", "drop_path"])
@pytest.mark.parametrize("inplace", [False, True])
def test_derivatives(device, name, inplace):
    """First and second ones, forward and reverse and both, and batches of them."""
    kind = KINDS[name]
    x = torch.randn(4, 3, 2, dtype=torch.float64, device=device, requires_grad=True)

    def f(x):
        return kind(x * 1, 0.4, STATE, inplace=inplace)

    assert gradcheck(f, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@devices
def test_derivatives_with_residual(device):
    inputs = [torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)]

    def f(x, residual):
        return F.drop_path(x, 0.4, residual=residual, rng_state=STATE)

    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)
    for one in (0, 1):  # a tangent of one of them alone
        others = [t.detach() for t in inputs]
        tangent = torch.randn_like(others[one])
        with dual_level():
            others[one] = make_dual(others[one], tangent)
            y, t = unpack_dual(f(*others))
        assert torch.equal(t, kept(device, 6, 1) * tangent if one == 0 else tangent)
        assert torch.equal(y, f(*inputs))


def kept(device, *shape):
    """What dropout with p = 0.4 and this state multiplies by."""
    return F.dropout(torch.ones(shape, dtype=torch.float64, device=device), 0.4, rng_state=STATE)


@devices
def test_function_transforms(device):
    x = torch.randn(5, 6, dtype=torch.float64, device=device)
    scale = kept(device, 5, 6)

    def f(x):
        return (F.dropout(x, 0.4, rng_state=STATE) ** 2).sum()

    slope = 2 * scale**2 * x
    close = torch.testing.assert_close
    close(grad(f)(x), slope)
    close(vjp(f, x)[1](torch.tensor(3.0, dtype=torch.float64, device=device))[0], 3 * slope)
    close(jvp(f, (x,), (x,)), ((scale * x).square().sum(), (slope * x).sum()))
    close(linearize(f, x)[1](x), (slope * x).sum())
    close(grad(lambda x: jvp(f, (x,), (x,))[1])(x), 2 * slope)
    close(jvp(grad(f), (x,), (x,))[1], slope)
    close(grad(lambda x: grad(f)(x).sum())(x), 2 * scale**2)
    close(hessian(f)(x[0]), torch.diag(2 * kept(device, 6) ** 2))
    for jacobian in (jacrev, jacfwd):
        close(jacobian(lambda x: F.dropout(x, 0.4, rng_state=STATE))(x[0]), torch.diag(kept(device, 6)))
    close(vmap(grad(f))(x), 2 * kept(device, 6) ** 2 * x)


@devices
@all_kinds
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vmap_is_a_loop(device, kind, layout):
    """With one state for all samples or one for each, whatever dimension is batched and in whatever layout."""
    states = torch.stack([rng_state(n, 8 * n, device) for n in range(4)])
    sample = in_layout(torch.randn(kind.shape, device=device), layout)
    for dim in (0, 2):
        batch = torch.stack([sample + n for n in range(4)], dim)
        loop = torch.stack([kind(sample + n, 0.3, states[1]) for n in range(4)], dim)
        vmapped = vmap(lambda x: kind(x, 0.3, states[1]), dim, dim)(batch)
        assert torch.equal(vmapped, loop) or layout is not LAYOUTS[0]  # in the order that samples have in the batch
        each = vmap(lambda x, state: kind(x, 0.3, state), (dim, 0))(batch, states)
        assert torch.equal(each, torch.stack([kind(x, 0.3, s) for x, s in zip(batch.unbind(dim), states, strict=True)]))
        expected = torch.stack([kind(x, 0.3, states[1]) for x in batch.unbind(dim)], dim)
        assert torch.equal(vmapped, expected)
    alone = vmap(lambda state: kind(sample, 0.3, state))(states)
    assert torch.equal(alone, torch.stack([kind(sample, 0.3, state) for state in states]))


@devices
@pytest.mark.parametrize("layout", [channels_last, transposed, sliced])
def test_vmap_numbers_elements_in_the_samples_memory_order(device, layout):
    batch = torch.stack([in_layout(torch.randn(2, 3, 4, 5, device=device), layout)] * 2)
    assert torch.equal(vmap(lambda x: F.dropout(x, rng_state=STATE))(batch)[1], F.dropout(batch[1], rng_state=STATE))
    nested = vmap(vmap(lambda x: F.dropout(x, rng_state=STATE)))(batch.expand(3, *batch.shape))
    assert torch.equal(nested[2, 1], F.dropout(batch[1], rng_state=STATE))
    leaf = batch.clone().requires_grad_()
    vmap(lambda x: F.dropout(x, rng_state=STATE))(leaf).sum().backward()
    assert torch.equal(leaf.grad[1], F.dropout(torch.ones_like(leaf[1]), rng_state=STATE))


@devices
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.dropout(x, 0.5),
        lambda x: F.alpha_dropout(x, 0.5, True),
        lambda x: F.dropout1d(x, 0.5),
        lambda x: F.drop_path(x, 0.5, residual=x),
        lambda x: OPS.dropout_seeded(x, 0.5)[0],
        lambda x: OPS.feature_dropout_seeded(x, 2, 0.5)[0],
        lambda x: F.dropout(x, 0.5, rng_state=fastreg.draw_rng_state(x.device)),
        lambda x: fastreg.dropout_mask(x.shape, 0.5, fastreg.draw_rng_state(x.device)),
        lambda x: F.act_dropout(x + 1, "relu", 0.5, residual=x),
        lambda x: OPS.act_dropout_seeded(x, None, "relu", 0.0, 0.5, None, None)[0],
        fastreg.nn.Dropout(),
    ],
)
def test_randomness(device, batched, call):
    """vmap's three modes, also where the input is not batched: as torch's dropout."""
    ones = torch.ones(30, 16, 3, device=device)

    def f(x, zero):
        return call(x if batched else ones[0]) + zero

    arguments = ones, torch.zeros(30, 1, 1, device=device)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        vmap(f)(*arguments)
    same = vmap(f, randomness="same")(*arguments)
    assert (same == same[0]).all() and same[0].unique().numel() == 2
    different = vmap(f, randomness="different")(*arguments)
    assert len({tuple(sample) for sample in different.flatten(1).tolist()}) > 20
    assert not torch.equal(different, vmap(f, randomness="different")(*arguments))


def test_nested_randomness():
    ones = torch.ones(20, 30, 40)
    both = vmap(vmap(F.dropout, randomness="same"), randomness="different")(ones)
    assert (both == both[:, :1]).all() and not torch.equal(both[0], both[1])
    both = vmap(vmap(F.dropout, randomness="different"), randomness="same")(ones)
    assert (both == both[:1]).all() and not torch.equal(both[0, 0], both[0, 1])
    with pytest.raises(RuntimeError, match="randomness error mode"):
        vmap(vmap(F.dropout, randomness="different"))(ones)


def test_nothing_is_drawn_for_certain():
    """No error where no number is drawn."""
    x = torch.ones(3, 4)
    before = torch.get_rng_state()
    assert torch.equal(vmap(lambda x: F.dropout(x, 1.0))(x), torch.zeros(3, 4))
    assert torch.equal(vmap(lambda x: F.dropout(x, 0.5, training=False))(x), x)
    assert torch.equal(vmap(lambda x: F.dropout(x, 0.0))(x), x)
    assert torch.equal(vmap(lambda x: F.dropout(x, 0.5, rng_state=STATE))(x)[0], F.dropout(x[0], 0.5, rng_state=STATE))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_of_samples_with_masks_of_their_own():
    """Backward finds the mask of each sample again."""
    x = torch.randn(50, 8)

    def f(x):
        y = F.dropout(x, 0.5)
        return y.sum(), y

    gradients, outputs = vmap(grad(f, has_aux=True), randomness="different")(x)
    assert torch.equal(gradients, torch.where(outputs == 0, 0.0, 2.0))
    assert len({tuple(row) for row in gradients.tolist()}) > 25


def test_draws_as_without_transforms():
    """grad, vjp and jvp draw what plain calls draw."""
    x = torch.ones(100)
    torch.manual_seed(5)
    expected = F.dropout(x, 0.5)
    for call in (
        lambda: grad(lambda x: F.dropout(x, 0.5).sum())(x),
        lambda: vjp(lambda x: F.dropout(x, 0.5), x)[0],
        lambda: jvp(lambda x: F.dropout(x, 0.5), (x,), (x,))[1],
    ):
        torch.manual_seed(5)
        assert torch.equal(call(), expected)


def test_recorded_states_replay_under_transforms():
    x = torch.ones(100)
    with fastreg.record_rng_states() as states:
        slope = grad(lambda x: F.dropout(x, 0.5).sum())(x)
    with fastreg.replay_rng_states(states):
        assert torch.equal(F.dropout(x, 0.5), slope)


@pytest.mark.parametrize("inplace", [False, True])
def test_modules_without_state_of_their_own(inplace):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), fastreg.nn.Dropout(0.5, inplace), torch.nn.Linear(8, 1))
    parameters = dict(model.named_parameters())
    x = torch.randn(20, 6)

    def loss(parameters, x):
        return functional_call(model, parameters, x).sum()

    gradients = vmap(grad(loss), (None, 0), randomness="different")(parameters, x)
    dropped = gradients["1.weight" if "1.weight" in gradients else "2.weight"].squeeze(1) == 0
    assert dropped.any() and len({tuple(row) for row in dropped.tolist()}) > 10
    assert torch.equal(gradients["0.bias"] == 0, dropped)


# ---- in place


@devices
@pytest.mark.parametrize(
    "op, arguments", [(OPS.dropout_, (0.5, STATE)), (OPS.feature_dropout_, (2, 0.5, STATE))], ids=["dropout", "feature"]
)
def test_in_place_operators(device, op, arguments):
    x = torch.randn(4, 3, 5, device=device)

    def f(x):
        y = x * 1
        op(y, *arguments)
        return y

    expected = torch.stack([f(sample) for sample in x])
    assert torch.equal(vmap(f)(x), expected)
    scale = torch.stack([f(torch.ones_like(sample)) for sample in x])
    assert torch.equal(vmap(grad(lambda x: f(x).sum()))(x), scale)
    assert torch.equal(vmap(lambda x: jvp(f, (x,), (x,))[1])(x), scale * x)
    with dual_level():
        y = make_dual(x[0].clone(), x[0].clone())
        op(y, *arguments)
        assert torch.equal(unpack_dual(y).tangent, scale[0] * x[0])
    with pytest.raises(RuntimeError, match="input must be batched, as it is written in place"):
        vmap(lambda state: op(x[0], *arguments[:-1], state))(torch.stack([STATE, STATE]))


@devices
def test_in_place_with_a_state_of_its_own(device):
    x = torch.ones(30, 40, device=device)

    def f(x):
        y = x * 1
        OPS.dropout_seeded_(y, 0.5)
        return y

    assert len({tuple(row) for row in vmap(f, randomness="different")(x).tolist()}) == 30
    with pytest.raises(RuntimeError, match="randomness error mode"):
        vmap(f)(x)
    gradients = vmap(grad(lambda x: f(x).sum()), randomness="different")(x)
    assert len({tuple(row) for row in gradients.tolist()}) == 30


def test_in_place_bumps_versions_under_transforms():
    def f(x):
        y = x.sin()
        z = y.square()  # keeps y
        F.dropout(y, 0.5, inplace=True, rng_state=STATE)
        return z.sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(f)(torch.randn(8))


def test_index_maps_and_batches():
    """Maps that already start rows again go by the loop."""
    x = torch.randn(3, 40)
    for arguments in ((0.5, STATE, None, (8, 8, 16)), (0.5, STATE, None, (8, 8, 16), (0.9, 0.5, -0.7))):
        expected = torch.stack([OPS.dropout(row, *arguments) for row in x])
        assert torch.equal(vmap(lambda x, a=arguments: OPS.dropout(x, *a))(x), expected)
    x = torch.randn(3, 4, 5, 2)
    for residual, dims in ((x.cos(), (0, 0)), (x[0].cos(), (0, None))):
        expected = torch.stack(
            [
                OPS.feature_dropout(sample, 1, 0.5, STATE, None, None, residual[n] if residual.dim() == 4 else residual)
                for n, sample in enumerate(x)
            ]
        )
        result = vmap(lambda x, residual: OPS.feature_dropout(x, 1, 0.5, STATE, None, None, residual), dims)(
            x, residual
        )
        assert torch.equal(result, expected)


def test_empty_batches_of_elements():
    assert vmap(lambda x: F.dropout(x, 0.5, rng_state=STATE))(torch.ones(3, 0)).shape == (3, 0)
    assert vmap(lambda x: OPS.dropout(x, 0.5, STATE))(torch.ones(3, 0)).shape == (3, 0)
    assert vmap(lambda x: OPS.feature_dropout(x, 1, 0.5, STATE))(torch.ones(3, 0, 2)).shape == (3, 0, 2)


def test_fused_operators_refuse_tangents():
    """And are not silent about it; the functions take them."""
    x = torch.randn(4, 3)
    for call in (
        lambda x: OPS.act_dropout(x, None, "relu", 0.0, 0.5, STATE, None, None),
        lambda x: OPS.batch_norm_act_eval(
            x, None, None, x[0], x[0], 1e-5, "", 0.0, None, "relu", 0.0, None, False, 0.0, None
        ),
    ):
        with pytest.raises(NotImplementedError, match="must not have tangents"):
            jvp(call, (x,), (x,))
    state = STATE
    y, t = jvp(lambda x: F.act_dropout(x, "relu", 0.5, residual=x, rng_state=state), (x,), (torch.ones_like(x),))
    assert torch.equal(t, 1 + 2.0 * ((y - x) > 0))
