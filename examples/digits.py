"""Four dropouts of 0.5 and four batch norms in a network for scikit-learn's digits: torch's layers, then fastreg's.

pip install scikit-learn
python examples/digits.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastreg

EPOCHS, BATCH = 10, 64


def network(layers):
    """layers: torch.nn or fastreg.nn, which have the same names."""
    modules = []
    for inputs in (64, 100, 100, 100):
        modules += [torch.nn.Linear(inputs, 100), layers.BatchNorm1d(100), torch.nn.ReLU(), layers.Dropout(0.5)]
    return torch.nn.Sequential(*modules, torch.nn.Linear(100, 10))


def train(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model, x, y):
    return (model.eval()(x).argmax(1) == y).float().mean().item()


def main():
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.tensor(part) for part in parts[2:])
    for layers in (torch.nn, fastreg.nn):
        torch.manual_seed(0)
        model = network(layers)
        train(model, train_x, train_y)
        reached = accuracy(model, test_x, test_y)
        print(f"{layers.__name__:<12} test accuracy {reached:.1%}")
        assert reached > 0.9
    # The weights of one go into the other.
    other = network(torch.nn)
    other.load_state_dict(model.state_dict())
    assert accuracy(other, test_x, test_y) == reached


if __name__ == "__main__":
    main()
