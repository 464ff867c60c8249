"""Dropout with a generator of the caller's where code is traced or transformed: as torch.rand has it, or an error."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg import functional as F

FUNCTIONS = [F.dropout, F.dropout1d, F.drop_path, F.act_dropout]
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
compiled = pytest.mark.not_on_kernels("what compilers see of them is what they see of the CPU's")


def own(seed=7):
    return torch.Generator().manual_seed(seed)


def ones():
    return torch.ones(40, 10, 3)


def assert_draws_from(generator, call, function):
    """Two calls of what was made of function are those of function itself."""
    generator.manual_seed(7)
    other, default = own(), torch.get_rng_state()
    for _ in range(2):
        assert torch.equal(call(ones()), function(ones(), generator=other))
    assert torch.equal(generator.get_state(), other.get_state()) and torch.equal(torch.get_rng_state(), default)


@compiled
@functions
def test_compiled(function):
    """Around a break of the graph, as torch.rand's: with eager's masks. With fullgraph=True an error."""
    torch._dynamo.reset()
    generator = own()
    call = torch.compile(lambda x: function(x * 1, generator=generator) * 1, backend="aot_eager")
    assert_draws_from(generator, call, function)
    x = ones().requires_grad_()
    y = call(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    whole = torch.compile(lambda x: function(x, generator=generator), backend="aot_eager", fullgraph=True)
    before = generator.get_state()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole(ones())
    assert torch.equal(generator.get_state(), before)


@compiled
def test_compiled_modules():
    torch._dynamo.reset()
    generator = own()
    layers = fastreg.nn.Dropout(generator=generator), fastreg.nn.BatchNormAct1d(10, drop=0.5, generator=generator)
    model = torch.nn.Sequential(*layers)
    expected = model(ones())
    generator.manual_seed(7)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(ones()), expected)


@compiled
def test_compiled_checkpoints():
    """As eager ones: refused without checkpoint_contexts, where the second call would see another mask."""
    torch._dynamo.reset()
    generator = own()

    def block(x):
        return F.dropout(x, generator=generator).square()

    @torch.compile(backend="aot_eager")
    def call(x):
        return checkpoint(block, x * 1, use_reentrant=False)

    before = generator.get_state()
    with pytest.raises(RuntimeError, match="context_fn fastreg.checkpoint_contexts around"):
        call(ones().requires_grad_()).sum().backward()
    assert torch.equal(generator.get_state(), before)


@functions
def test_traced(function):
    """The generator itself is a constant of the program: it draws from it, and not one mask for ever."""
    generator = own()
    traced = torch.jit.trace(lambda x: function(x, generator=generator), ones(), check_trace=False)
    assert_draws_from(generator, traced, function)


@functions
def test_make_fx(function):
    """Likewise, where torch's own graphs can hold a generator; nothing is frozen where they cannot."""
    generator = own()
    try:
        graph = make_fx(lambda x: function(x, generator=generator))(ones())
    except NotImplementedError as error:
        assert "Generator" in str(error)
        with pytest.raises(NotImplementedError, match="Generator"):
            make_fx(lambda x: x + torch.rand(3, generator=generator))(ones())
    else:
        assert_draws_from(generator, graph, function)


@compiled
@pytest.mark.parametrize("strict", [True, False])
def test_exported(strict):
    """As torch.rand: where a program can hold a generator it draws from it; else there is no program."""

    class Program(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function, self.generator = function, own()

        def forward(self, x):
            return self.function(x, generator=self.generator)

    ours, torchs = Program(F.dropout), Program(lambda x, generator: x + torch.rand(3, generator=generator))
    try:
        torch.export.export(torchs, (ones(),), strict=strict)
    except Exception as error:
        with pytest.raises(type(error)):
            torch.export.export(ours, (ones(),), strict=strict)
    else:
        program = torch.export.export(ours, (ones(),), strict=strict)
        assert_draws_from(ours.generator, program.module(), F.dropout)


@functions
def test_vmap(function):
    """All three kinds of randomness, as torch's functions of a generator."""
    x = torch.ones(3, 40, 10, 3)

    def run(randomness, generator):
        return torch.vmap(lambda x: function(x, generator=generator), randomness=randomness)(x)

    default = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="randomness"):
        run("error", own())
    same, different = run("same", own()), run("different", own())
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    masks = {tuple((sample != 0).flatten().tolist()) for sample in different}
    assert len(masks) == 3
    assert torch.equal(run("same", own()), same) and torch.equal(run("different", own()), different)
    assert torch.equal(torch.get_rng_state(), default)
    one, other = own(), own()
    run("same", one), function(x[0], generator=other)
    assert torch.equal(one.get_state(), other.get_state())


@functions
def test_grad_and_jvp(function):
    x = ones()
    y = function(x, generator=own())
    gradient = torch.func.grad(lambda x: function(x, generator=own()).sum())(x)
    output, tangent = torch.func.jvp(lambda x: function(x, generator=own()), (x,), (torch.ones_like(x),))
    assert torch.equal(gradient, y) and torch.equal(output, y) and torch.equal(tangent, y)
