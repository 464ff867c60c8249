"""A Transformer of torch alone that learns to sort; fastreg gets into it from outside.

python examples/transformer.py
python -m fastreg run examples/transformer.py     # the same program with fastreg's dropout, attention's too
"""

import sys

import torch
from torch import nn

SYMBOLS, LENGTH, WIDTH, STEPS = 16, 8, 64, 300


class Sorter(nn.Module):
    """For each place of the sorted sequence, which symbol stands there."""

    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) / 10)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=128, dropout=0.05, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, sequence):
        return self.head(self.encoder(self.symbols(sequence) + self.places))


def main():
    torch.manual_seed(0)
    model = Sorter()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        sequence = torch.randint(SYMBOLS, (64, LENGTH))
        logits = model(sequence)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), sequence.sort(1).values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    model.eval()
    sequence = torch.randint(SYMBOLS, (500, LENGTH))
    with torch.no_grad():
        right = (model(sequence).argmax(2) == sequence.sort(1).values).float().mean().item()
    print(f"{right:.1%} of the symbols in their places; {'with' if 'fastreg' in sys.modules else 'without'} fastreg")
    assert right > 0.7


if __name__ == "__main__":
    main()
