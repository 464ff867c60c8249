"""A try of an installed fastreg, in the current folder: `make dist` runs it out of reach of the source folder."""

from pathlib import Path

import torch

import fastreg

folder = Path(fastreg.__file__).parent
assert folder == Path.cwd() / "fastreg", f"fastreg must be the one in this folder, got {folder}"
assert {"py.typed", "_C.pyi"} <= {path.name for path in folder.iterdir()}
assert "cpu" in fastreg.build_info()["backends"]

model = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.BatchNorm1d(100), torch.nn.ReLU(), torch.nn.Dropout(0.5))
fastreg.convert(model)
x = torch.randn(256, 64)
with fastreg.record_rng_states() as states:
    y = model(x)
y.sum().backward()
assert fastreg.report(model).fused and len(states) == 1
assert not y[~fastreg.dropout_mask(y.shape, 0.5, states[0])].any()
