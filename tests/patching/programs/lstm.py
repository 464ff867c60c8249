"""A language model of characters."""

import sys

import torch
from torch import nn

p = float(sys.argv[1])
torch.manual_seed(0)
text = "the quick brown fox jumps over the lazy dog " * 8
vocabulary = sorted(set(text))
data = torch.tensor([vocabulary.index(c) for c in text])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(len(vocabulary), 32)
        self.drop = nn.Dropout(p)
        self.rnn = nn.LSTM(32, 32, 2, dropout=p)
        self.decoder = nn.Linear(32, len(vocabulary))

    def forward(self, x, hidden=None):
        output, hidden = self.rnn(self.drop(self.encoder(x)), hidden)
        return self.decoder(self.drop(output)), hidden


model, hidden = Model(), None
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
batches = data[: len(data) // 4 * 4].view(4, -1).t()
for i in range(0, 60, 10):
    output, hidden = model(batches[i : i + 10], hidden)
    hidden = tuple(h.detach() for h in hidden)
    loss = nn.functional.cross_entropy(output.flatten(0, 1), batches[i + 1 : i + 11].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    optimizer.step()
    print(loss.item())
