"""A model that torch.jit compiles."""

import sys

import torch
from torch import nn

p = float(sys.argv[1])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(p), nn.Linear(32, 1))
model = torch.jit.script(model)
optimizer = torch.optim.SGD(model.parameters(), 0.05)
for _ in range(5):
    x = torch.randn(16, 8)
    loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
