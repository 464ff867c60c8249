"""How sure a network is: many passes with dropout (Gal and Ghahramani, ICML 2016), each of which can be had again.

python examples/monte_carlo_dropout.py
"""

import torch

import fastreg

PASSES = 50


def network():
    hidden = [torch.nn.Linear(1, 128), torch.nn.Tanh(), fastreg.nn.Dropout(0.1)]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(128, 128), torch.nn.Tanh(), fastreg.nn.Dropout(0.1),
                               torch.nn.Linear(128, 1))  # fmt: skip


def main():
    torch.manual_seed(0)
    x = torch.cat((torch.rand(200, 1) * 2 - 3, torch.rand(200, 1) * 2 + 1))  # nothing between -1 and 1
    y = torch.sin(2 * x) + 0.05 * torch.randn_like(x)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(600):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()

    # The model stays in training mode: dropout draws. Each pass is recorded: 16 bytes for each of its two dropouts.
    points = torch.tensor([[-2.0], [2.0], [0.0], [6.0]])  # two among the data, one between, one far away
    outputs, states = [], []
    with torch.no_grad():
        for _ in range(PASSES):
            with fastreg.record_rng_states() as drawn:
                outputs.append(model(points))
            states.append(drawn)
    outputs = torch.stack(outputs)
    for point, mean, deviation in zip(points.flatten(), outputs.mean(0), outputs.std(0), strict=True):
        print(f"x = {point:5.1f}: {mean.item():6.2f} ± {deviation.item():.2f}")
    assert outputs.std(0)[3] > outputs.std(0)[:2].max(), "less sure far away from the data"

    # The pass that said most for x = 6, again: bit for bit, now with a gradient.
    largest = int(outputs[:, 3].argmax())
    points.requires_grad_()
    with fastreg.replay_rng_states(states[largest]):
        again = model(points)
    assert torch.equal(again.detach(), outputs[largest])
    (slope,) = torch.autograd.grad(again.sum(), points)
    print(f"pass {largest} has slope {slope[3].item():.2f} there")

    # And the units that it had dropped in the second layer, for each point.
    mask = fastreg.dropout_mask((len(points), 128), 0.1, states[largest][1])
    print(f"of 128 units it dropped {(~mask).sum(1).tolist()}")


if __name__ == "__main__":
    main()
