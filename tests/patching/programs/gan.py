"""Two networks with batch norm, trained in turn."""

import sys

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

p = float(sys.argv[1])
torch.manual_seed(0)
up = [nn.ConvTranspose2d(8, 8, 4), nn.BatchNorm2d(8), nn.ReLU(True), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh()]
generator = nn.Sequential(*up)
down = [nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2, True), nn.Dropout2d(p), nn.Conv2d(8, 1, 4)]
discriminator = nn.Sequential(*down, nn.Flatten())
optimizers = [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (generator, discriminator)]
for _ in range(3):
    real, fake = torch.randn(8, 1, 8, 8), generator(torch.randn(8, 8, 1, 1))
    optimizers[1].zero_grad()
    ones, zeros = torch.ones(8, 1), torch.zeros(8, 1)
    loss = bce(discriminator(real), ones) + bce(discriminator(fake.detach()), zeros)
    loss.backward()
    optimizers[1].step()
    optimizers[0].zero_grad()
    bce(discriminator(fake), ones).backward()
    optimizers[0].step()
    print(loss.item())
