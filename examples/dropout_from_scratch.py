"""Dropout as textbooks teach it: written out, then by a layer; beside each, fastreg's functions.

pip install scikit-learn
python examples/dropout_from_scratch.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fastreg
from fastreg import functional as F

P1, P2, EPOCHS = 0.2, 0.5, 10


def dropout_layer(x, p):
    """Keep each element with probability 1 - p, and divide it by that: the expectation stays x."""
    assert 0 <= p <= 1
    if p == 1:
        return torch.zeros_like(x)
    mask = (torch.rand(x.shape) >= p).float()
    return mask * x / (1 - p)


def compare():
    """The same formula with a mask that can be had again."""
    x = torch.arange(16, dtype=torch.float32).reshape(2, 8)
    for p in (0.0, 0.5, 1.0):
        print(f"p = {p}: {dropout_layer(x, p)[0].tolist()}")
    state = fastreg.draw_rng_state()  # 16 bytes; the mask is a function of them
    mask = fastreg.dropout_mask(x.shape, 0.5, state)
    assert torch.equal(F.dropout(x, 0.5, rng_state=state), mask * x / (1 - 0.5))
    # Backward the same mask: nothing but the 16 bytes was kept.
    x.requires_grad_()
    F.dropout(x, 0.5, rng_state=state).sum().backward()
    assert torch.equal(x.grad, mask / (1 - 0.5))
    # In expectation nothing changes.
    many = F.dropout(torch.ones(1000000), 0.3)
    assert abs(many.mean().item() - 1) < 0.01 and abs((many == 0).float().mean().item() - 0.3) < 0.01


class FromScratch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.linear2, self.linear3 = nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 10)

    def forward(self, x):
        hidden = torch.relu(self.linear1(x))
        if self.training:  # only then
            hidden = dropout_layer(hidden, P1)
        hidden = torch.relu(self.linear2(hidden))
        if self.training:
            hidden = dropout_layer(hidden, P2)
        return self.linear3(hidden)


def concise():
    """The same by layers; fastreg.nn.ActDropout is relu and dropout in one pass over memory."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), fastreg.nn.Dropout(P1),
        nn.Linear(256, 256), fastreg.nn.ActDropout("relu", P2),
        nn.Linear(256, 10),
    )  # fmt: skip


def train(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


def main():
    compare()
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    for title, make in (("from scratch", FromScratch), ("concise", concise)):
        torch.manual_seed(0)
        model = make()
        train(model, x[:1400], y[:1400])
        with torch.no_grad():
            accuracy = (model.eval()(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
        print(f"{title:<14} test accuracy {accuracy:.1%}")
        assert accuracy > 0.8


if __name__ == "__main__":
    main()
