"""A penalty on the gradient of the loss by the input: backward through backward, through dropout and batch norm too.

pip install scikit-learn
python examples/gradient_penalty.py
"""

import torch
from sklearn.datasets import load_digits

import fastreg

EPOCHS, BATCH = 6, 64


def network():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), fastreg.nn.BatchNormAct1d(128, act="silu"), fastreg.nn.Dropout(0.2),
        torch.nn.Linear(128, 128), fastreg.nn.BatchNormAct1d(128, act="silu"), fastreg.nn.Dropout(0.2),
        torch.nn.Linear(128, 10),
    )  # fmt: skip


def loss_and_slope(model, x, y, create_graph):
    """The loss, and the mean squared length of its gradient by each sample (Drucker and Le Cun, 1992)."""
    x = x.detach().requires_grad_()
    losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), x, create_graph=create_graph)
    return losses.mean(), slope.square().sum(1).mean()


def train(model, x, y, weight):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            loss, slope = loss_and_slope(model, x[rows], y[rows], create_graph=True)
            optimizer.zero_grad()
            (loss + weight * slope).backward()
            optimizer.step()


def main():
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    slopes = {}
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        model = network()
        train(model, x[:1400], y[:1400], weight)
        model.eval()
        loss, slopes[weight] = loss_and_slope(model, x[1400:], y[1400:], create_graph=False)
        accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
        print(f"penalty {weight}: loss {loss:.3f}, squared slope {slopes[weight]:.3f}, test accuracy {accuracy:.1%}")
        assert accuracy > 0.8
    assert slopes[0.3] < slopes[0.0]


if __name__ == "__main__":
    main()
