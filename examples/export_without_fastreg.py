"""A model that was trained with fastreg, exported to a program that runs where there is none.

python examples/export_without_fastreg.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import fastreg

# What another machine would run: torch alone. The first line makes sure of it.
ELSEWHERE = """
import sys; sys.modules["fastreg"] = None
import torch
program = torch.export.load(sys.argv[1] + "/program.pt2")
x, expected = torch.load(sys.argv[1] + "/tensors.pt")
torch.testing.assert_close(program.module()(x), expected)
print("the same outputs without fastreg, up to rounding")
"""


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3), fastreg.nn.BatchNormAct2d(8, act="gelu"), fastreg.nn.Dropout2d(0.1),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10),
    )  # fmt: skip


def main():
    torch.manual_seed(0)
    model = fastreg.convert(network())
    for _ in range(3):  # so that the running statistics are not those of a new layer
        model(torch.randn(16, 3, 12, 12))
    model.eval()
    x = torch.randn(2, 3, 12, 12)

    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    print("fastreg's operators in the program:", "fastreg" in str(program.graph))
    program = program.run_decompositions(fastreg.export_decompositions())
    assert "fastreg" not in str(program.graph)

    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, Path(folder, "program.pt2"))
        with torch.no_grad():
            torch.save((x, model(x)), Path(folder, "tensors.pt"))
        subprocess.run([sys.executable, "-c", ELSEWHERE, folder], check=True)


if __name__ == "__main__":
    main()
