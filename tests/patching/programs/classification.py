"""A residual network, in the style of torchvision's training references: loader, autocast, scheduler, evaluation."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class BasicBlock(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.conv1 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def evaluate(model, loader):
    model.eval()
    with torch.inference_mode():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)


def main(args):
    torch.manual_seed(0)
    x = torch.randn(48, 3, 8, 8)
    loader = DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), 16, num_workers=1)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(args.p), nn.Linear(8, 2)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), BasicBlock(8), BasicBlock(8), *head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for _ in range(args.epochs):
        model.train()
        for image, target in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.amp):
                loss = nn.functional.cross_entropy(model(image), target, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(loss.item())
        scheduler.step()
    evaluate(model, loader)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("p", type=float)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--amp", action="store_true")
    main(parser.parse_args())
