"""python -m fastreg run with the training loops of other libraries."""

import sys
from pathlib import Path

import pytest
import torch

from tests.patching.test_run import RUN, losses, run

TRAINERS = Path(__file__).parent / "trainers"
bert = pytest.mark.package("transformers")
lit = pytest.mark.package("lightning")


@pytest.mark.parametrize(
    ("program", "taken", "tolerance"),
    [
        pytest.param(["hugging_face.py"], ["dropout"], 1e-3, marks=bert, id="transformers"),
        pytest.param(["hugging_face.py", "--checkpointing"], ["dropout"], 1e-3, marks=bert, id="checkpointing"),
        pytest.param(
            ["lightning_trainer.py"], ["dropout", "feature_dropout", "batch_norm"], 1e-3, marks=lit, id="lightning"
        ),
        # Activations of 8 bits: what is rounded otherwise once differs by 2**-8.
        pytest.param(["lightning_trainer.py", "bf16-mixed"], ["dropout", "batch_norm"], 2e-2, marks=lit, id="bfloat16"),
    ],
)
def test_trainer(program, taken, tolerance):
    """With p = 0 the losses that it has without, but for rounding; with p = 0.5 those of other masks."""
    script, *arguments = TRAINERS / program[0], *program[1:]
    plain = losses(run(sys.executable, script, 0.0, *arguments))
    assert len(plain) >= 7
    for options in ([], ["--convert"]):
        found = losses(run(*RUN, *options, script, 0.0, *arguments))
        torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance / 10)
    dropped = run(*RUN, "--report", script, 0.5, *arguments)
    found = losses(dropped)
    assert found.isfinite().all() and not torch.allclose(found, plain)
    assert "left to torch:" not in dropped.stderr
    for op in taken:
        assert f"  {op} [" in dropped.stderr
