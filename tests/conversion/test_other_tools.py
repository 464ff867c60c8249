"""Other people's tools on converted models: each works, or says to revert first. The README has the table."""

import copy
import io
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import fastreg

IMAGES = (4, 3, 8, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)) + x)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1), Block()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    with torch.no_grad():
        for bn in (model[1], model[4].bn):
            bn.running_mean.uniform_(-1, 1), bn.running_var.uniform_(0.5, 2), bn.bias.uniform_(-1, 1)
    return model


def pair():
    """A model in evaluation, as it is and converted, and an input."""
    plain = network().eval()
    converted = fastreg.convert(copy.deepcopy(plain))
    assert len(fastreg.report(converted).fused) == 2
    return plain, converted, torch.randn(IMAGES)


def test_report_says_to_revert_first():
    plain, converted, _ = pair()
    line = "exact type do not find these: fastreg.revert(model) first"
    assert line in str(fastreg.report(converted)) and line not in str(fastreg.report(plain))


# Opacus.

PRIVATE = """
    import torch
    from torch import nn
    import fastreg
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator
    from opacus.validators.errors import UnsupportedModuleError
    from tests.conversion.test_other_tools import network

    def make_private(model):
        data = torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 5)
        loader = torch.utils.data.DataLoader(data, batch_size=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
        )

    class Named(nn.BatchNorm2d):
        pass

    norms = [nn.BatchNorm1d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm3d(4), Named(4)]
    norms = [fastreg.convert(norm) for norm in norms]
    norms += [fastreg.nn.BatchNorm2d(4), fastreg.nn.SyncBatchNorm(4), fastreg.nn.BatchNormAct2d(4)]
    norms.append(fastreg.nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(4)))
    for norm in [*norms, fastreg.nn.DropConnectLinear(4, 4)]:
        assert not ModuleValidator.is_valid(nn.Sequential(norm)) and not ModuleValidator.is_valid(norm), norm
    assert ModuleValidator.is_valid(nn.Sequential(nn.Linear(4, 4), fastreg.nn.Dropout(0.5)))

    model = fastreg.convert(network())
    assert len(ModuleValidator.validate(model)) == 2
    try:
        make_private(model)
    except UnsupportedModuleError as error:
        assert "BatchNorm cannot support" in str(error)
    else:
        raise AssertionError("a batch norm was made private")

    model, optimizer, loader = make_private(ModuleValidator.fix(model))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


@pytest.mark.package("opacus")
@pytest.mark.parametrize("first", ["opacus", "fastreg"])
def test_opacus_refuses_batch_norm(first):
    first = "import opacus" if first == "opacus" else "import fastreg; list(fastreg.nn.BatchNorm2d(4).parameters())"
    script = f"{first}\n{textwrap.dedent(PRIVATE)}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# captum.


@pytest.mark.package("captum")
def test_captum_deep_lift():
    from captum.attr import DeepLift

    plain, converted, x = pair()
    one, other = (DeepLift(model).attribute(x, torch.zeros_like(x), target=1) for model in (converted, plain))
    assert plain[2](torch.tensor(-1.0)) == 0 and other.abs().max() > 1e-4
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.package("captum")
def test_captum_lrp_refuses_until_reverted():
    from captum.attr import LRP

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
            self.pool, self.linear = nn.AvgPool2d(6), nn.Linear(6, 5)

        def forward(self, x):
            return self.linear(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))

    plain = Flat().eval()
    converted, x = fastreg.convert(copy.deepcopy(plain)), torch.randn(IMAGES)
    with pytest.raises(TypeError, match="fastreg.nn.batch_norm.BatchNorm2d"):
        LRP(converted).attribute(x, target=1)
    of_reverted, of_plain = (LRP(model).attribute(x, target=1) for model in (fastreg.revert(converted), plain))
    torch.testing.assert_close(of_reverted, of_plain)


# Counts of operations.


@pytest.mark.package("thop")
def test_thop_counts_what_is_reverted():
    import thop

    plain, converted, x = pair()
    counts = [thop.profile(model, (x,), verbose=False) for model in (plain, fastreg.revert(converted))]
    assert counts[0] == counts[1] and counts[0][0] > 0


@pytest.mark.package("torchinfo")
def test_torchinfo():
    import torchinfo

    plain, converted, x = pair()
    one, other = (torchinfo.summary(model, input_data=x, verbose=0) for model in (converted, plain))
    assert str(one) == str(other) and one.total_mult_adds == other.total_mult_adds > 0


@pytest.mark.package("fvcore")
def test_fvcore():
    from fvcore.nn import FlopCountAnalysis

    plain, converted, x = pair()
    one, other = (FlopCountAnalysis(model, x).unsupported_ops_warnings(False) for model in (converted, plain))
    assert one.by_operator() == other.by_operator() and other.by_operator()["batch_norm"] > 0
    assert one.by_module() == other.by_module()


# Quantisation, of torch itself.


def test_graph_mode_quantisation_refuses_until_reverted():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    plain, converted, x = pair()
    mapping = get_default_qconfig_mapping("x86")
    with pytest.raises(RuntimeError, match=r"fastreg.revert\(model\) first"):
        prepare_fx(converted, mapping, (x,))
    quantised = []
    for model in (plain, fastreg.revert(converted)):
        prepared = prepare_fx(model, mapping, (x,))
        prepared(x)
        quantised.append(convert_fx(prepared)(x))
    assert torch.equal(*quantised)


def test_fuse_modules_refuses_until_reverted():
    from torch.ao.quantization import fuse_modules

    plain, converted, x = pair()
    with pytest.raises((AssertionError, NotImplementedError), match="fastreg.nn.batch_norm.BatchNorm2d"):
        fuse_modules(converted, [["0", "1", "2"]])
    fused = fuse_modules(fastreg.revert(converted), [["0", "1", "2"]])
    assert isinstance(fused[1], nn.Identity)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)


def test_folding_of_batch_norm_into_convolutions():
    plain, converted, x = pair()
    conv = torch.nn.utils.fusion.fuse_conv_bn_eval(converted[0], converted[1])
    torch.testing.assert_close(conv(x), plain[:2](x), rtol=1e-4, atol=1e-5)


# ONNX.


@pytest.mark.package("onnxscript")
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("shapes", ["fixed", "dynamic"])
def test_onnx_export(dynamo, shapes, tmp_path):
    import onnx
    from onnx.reference import ReferenceEvaluator

    plain, converted, x = pair()
    path, settings = str(tmp_path / "model.onnx"), {"dynamo": dynamo, "verbose": False}
    if shapes == "dynamic":
        batch = torch.export.Dim("batch", min=2)
        settings |= {"dynamic_shapes": ({0: batch},)} if dynamo else {"dynamic_axes": {"x": [0]}, "input_names": ["x"]}
    torch.onnx.export(converted, (x,), path, **settings)
    program = onnx.load(path)
    assert {opset.domain for opset in program.opset_import} == {""}
    x = torch.randn(7, *IMAGES[1:]) if shapes == "dynamic" else x
    (y,) = ReferenceEvaluator(program).run(None, {program.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), plain(x).detach(), rtol=1e-4, atol=1e-5)
    # And computes with fastreg again.
    assert any("fastreg" in str(node.target) for node in torch.export.export(converted, (x,)).graph.nodes)


@pytest.mark.package("onnxscript")
def test_onnx_export_of_a_program(tmp_path):
    """One that was exported before is to be decomposed before."""
    plain, converted, x = pair()
    program = torch.export.export(converted, (x,)).run_decompositions(fastreg.export_decompositions())
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert {opset for opset in exported.model.opset_imports} == {""}


# torch.save and torch.load.


def test_weights_only():
    """As a plain model where layers are only replaced; a model with fused parents is to be reverted first."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    classes = [nn.Sequential, nn.Linear, fastreg.nn.BatchNorm1d, fastreg.nn.Dropout]
    model = fastreg.convert(layers, fuse=False)
    file = io.BytesIO()
    torch.save(model, file)
    with torch.serialization.safe_globals(classes):
        loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert [type(module) for module in loaded.modules()] == [type(module) for module in model.modules()]
    assert fastreg.revert(loaded)[1].__class__ is nn.BatchNorm1d

    model, file = fastreg.convert(network()), io.BytesIO()
    torch.save(model, file)
    with pytest.raises(Exception, match="fastreg.nn.derived._new"):
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    state.seek(0)
    network().load_state_dict(torch.load(state, weights_only=True))
