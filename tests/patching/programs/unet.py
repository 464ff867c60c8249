"""Segmentation, in functions."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

p = float(sys.argv[1])
torch.manual_seed(0)


class Twice(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, padding=1), nn.BatchNorm2d(outer)

    def forward(self, x):
        x = F.dropout2d(F.relu(self.bn1(self.conv1(x))), p, self.training)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.middle = Twice(1, 8), Twice(8, 16), Twice(16, 16)
        self.up1, self.up2, self.last = Twice(32, 8), Twice(16, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = F.interpolate(self.middle(F.max_pool2d(two, 2)), scale_factor=2)
        x = F.interpolate(self.up1(torch.cat([x, two], 1)), scale_factor=2)
        return self.last(self.up2(torch.cat([x, one], 1)))


model = UNet().to(memory_format=torch.channels_last)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(3):
    x = torch.randn(4, 1, 16, 16).to(memory_format=torch.channels_last)
    loss = F.binary_cross_entropy_with_logits(model(x), (x > 0).float())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    print(loss.item())
model.eval()
print(model(torch.ones(1, 1, 16, 16)).mean().item())
