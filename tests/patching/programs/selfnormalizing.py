"""SELU with alpha dropout."""

import sys

import torch
from torch import nn

p = float(sys.argv[1])
torch.manual_seed(0)
layers = [nn.Linear(8, 32), nn.SELU(), nn.AlphaDropout(p), nn.Linear(32, 32), nn.SELU(), nn.FeatureAlphaDropout(p)]
model = nn.Sequential(*layers, nn.Linear(32, 1))
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
x = torch.randn(64, 8)
for _ in range(3):

    def closure():
        optimizer.zero_grad()
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
        loss.backward()
        return loss

    print(optimizer.step(closure).item())
