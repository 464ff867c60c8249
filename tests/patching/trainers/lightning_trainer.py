"""A small convolutional network in Lightning's Trainer: bfloat16 autocast, accumulation, clipping, validation."""

import logging
import sys
import tempfile
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    def __init__(self, p):
        super().__init__()
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(p), nn.Linear(8, 3)]
        body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(p)]
        self.model = nn.Sequential(*body, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), *head)
        self.losses = []

    def loss(self, batch):
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.loss(batch)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)]


def main(p, precision="32-true"):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 3)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "num_sanity_val_steps": 1}
    with tempfile.TemporaryDirectory() as directory:
        training = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "precision": precision}
        trainer = Trainer(default_root_dir=directory, **quiet, **settings, **training)
        model = Classifier(p)
        trainer.fit(model, DataLoader(data, 8, shuffle=True), DataLoader(data, 16))
    print(*model.losses, sep="\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
