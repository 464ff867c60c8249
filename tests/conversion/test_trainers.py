"""Converted models under what trains others' models: accelerate and Lightning."""

import copy
import types

import pytest
import torch
from torch import nn

import fastreg
from tests.conversion.test_other_tools import IMAGES, network

ROWS = (16, 6)


def mlp():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def assert_same(one, other, x):
    for training in (True, False):
        one.train(training), other.train(training)
        with fastreg.record_rng_states() as states:
            expected = other(x)
        with fastreg.replay_rng_states(states):
            torch.testing.assert_close(one(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.state_dict(), other.state_dict())


# A bound forward, as hooks of accelerate keep it, which was taken before the class was exchanged.


class Subclass(torch.Tensor):
    """What fastreg leaves to torch."""


LAYERS = [nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), nn.BatchNorm1d(4)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("kind", [torch.Tensor, Subclass], ids=lambda kind: kind.__name__)
def test_a_bound_forward_outlives_revert(layer, kind):
    layer = fastreg.convert(copy.deepcopy(layer))
    forward, x = layer.forward, torch.randn(3, 4, 5).as_subclass(kind)
    torch.manual_seed(1)
    expected = layer(x)
    fastreg.revert(layer)
    torch.manual_seed(1)
    assert layer.forward.__func__ is not forward.__func__
    torch.testing.assert_close(forward(x), expected)


def test_a_bound_forward_of_a_parent_outlives_revert():
    plain = mlp()
    model = fastreg.convert(copy.deepcopy(plain))
    forward = model.forward
    fastreg.revert(model)
    holder = types.SimpleNamespace(train=model.train, eval=model.eval, state_dict=model.state_dict)
    plain[5].p = model[5].p = 0.0
    x = torch.randn(ROWS)
    torch.testing.assert_close(forward(x), plain(x))
    assert holder.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.package("accelerate")
@pytest.mark.parametrize("order", ["hook convert", "convert hook", "convert hook revert", "hook convert revert"])
def test_accelerate_hooks(order):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubled(ModelHook):
        def post_forward(self, module, output):
            return 2 * output

    plain, model, x = network(), network(), torch.randn(IMAGES)
    hooked = [1, 3, 4]
    for i in hooked:
        plain[i].register_forward_hook(lambda module, args, output: 2 * output)
    for step in order.split():
        if step == "hook":
            for i in hooked:
                add_hook_to_module(model[i], Doubled())
        else:
            getattr(fastreg, step)(model)
    plain[3].p = model[3].p = 0.0
    assert_same(model, plain, x)
    if order == "hook convert":
        left = fastreg.report(model).left
        assert all("forward was set on the module itself" in left[str(i)] for i in (1, 3))
    for i in hooked:
        remove_hook_from_module(model[i])
        plain[i]._forward_hooks.clear()
    assert_same(model, plain, x)
    assert_same(fastreg.revert(model), plain, x)


@pytest.mark.package("accelerate")
def test_accelerate_prepares_and_offloads():
    from accelerate import Accelerator, cpu_offload

    plain, x = network(), torch.randn(IMAGES)
    model = fastreg.convert(copy.deepcopy(plain))
    plain[3].p = model[3].p = 0.0
    accelerator, prepared = Accelerator(cpu=True), []
    for m in (plain, model):
        m, optimizer = accelerator.prepare(m, torch.optim.SGD(m.parameters(), lr=0.1))
        accelerator.backward(m(x).square().sum())
        optimizer.step()
        prepared.append(accelerator.unwrap_model(m))
    torch.testing.assert_close(prepared[1].state_dict(), prepared[0].state_dict(), rtol=1e-4, atol=1e-5)
    model.eval(), plain.eval()
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(offloaded(x), plain(x), rtol=1e-4, atol=1e-5)


# Lightning.


def lit(model):
    from lightning.pytorch import LightningModule

    class Lit(LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.seen = model, []
            self.model[0].register_forward_hook(lambda module, args, output: self.seen.append(output.shape))

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Lit()


def fitted(model, tmp_path, **settings):
    from lightning.pytorch import Trainer, seed_everything

    seed_everything(0, verbose=False)
    data = torch.utils.data.TensorDataset(torch.randn(16, *ROWS[1:]), torch.arange(16) % 3)
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "default_root_dir": tmp_path, **settings}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": True}
    trainer = Trainer(**quiet, **settings)
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=8))
    return trainer


@pytest.mark.package("lightning")
@pytest.mark.filterwarnings("ignore")
def test_lightning_fits(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

    plain, model = lit(mlp()), lit(mlp())
    fastreg.convert(model)
    assert len(fastreg.report(model).fused) == 2
    plain.model[5].p = model.model[5].p = 0.0
    for m, name in ((plain, "plain"), (model, "ours")):
        callbacks = [ModelCheckpoint(tmp_path / name, save_last=True), WeightAveraging()]
        fitted(m, tmp_path, callbacks=callbacks)
    assert model.seen == plain.seen and len(plain.seen) >= 4
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    saved = torch.load(tmp_path / "ours" / "last.ckpt", weights_only=True)["state_dict"]
    plain.load_state_dict(saved)


@pytest.mark.package("lightning")
@pytest.mark.filterwarnings("ignore")
def test_lightning_synchronises_batch_norm(tmp_path):
    """By a plugin, as the README has it. sync_batchnorm=True takes torch's layers, which do not run on the CPU."""
    from lightning.pytorch.plugins import LayerSync

    class FastregSync(LayerSync):
        kinds = []

        def apply(self, model):
            fastreg.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.kinds += [type(module) for module in model.modules()]
            return model

        def revert(self, model):
            return fastreg.revert(model)

    plain, model = lit(mlp()), lit(mlp())
    fastreg.convert(model)
    plain.model[5].p = model.model[5].p = 0.0
    try:
        fitted(plain, tmp_path, strategy="ddp")
        fitted(model, tmp_path, strategy="ddp", plugins=[FastregSync()])
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert fastreg.nn.SyncBatchNorm in FastregSync.kinds and type(model.model[1]) is nn.BatchNorm1d
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def test_torchs_synchronised_batch_norm_in_a_converted_model():
    """What Lightning's sync_batchnorm=True does: torch's layers stand in for the converted ones, and run as such."""
    plain, model = network().eval(), fastreg.convert(network().eval())
    plain, model = map(nn.SyncBatchNorm.convert_sync_batchnorm, (plain, model))
    assert type(model[1]) is type(model[4].bn) is nn.SyncBatchNorm
    x = torch.randn(IMAGES)
    torch.testing.assert_close(model(x), plain(x))
    assert not fastreg.report(model).fused and "SyncBatchNorm" in fastreg.report(model).left["1"]
