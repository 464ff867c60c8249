"""The results in README and manual are what their files say, and the charts can be drawn from them."""

import json

import pytest

from bench import readme, redraw, results
from bench.end_to_end.shares import SHARES
from bench.timings.cases import Case
from tests.bench.bench_fixtures import rows_of

ENVIRONMENT = {"device": "Abacus", "backend": "cpu", "torch": "2.0", "threads": 2, "instruction_set": "beads"}
ENVIRONMENT |= {"fastreg": "1", "fastreg_kernels": True}
SECTIONS = ["timings", "training"]
EMPTY = "\n".join(marker.format(name) for name in SECTIONS for marker in (readme.BEGIN, readme.END))


@pytest.fixture
def root(tmp_path):
    """A repository with the results of one device."""
    folder = tmp_path / readme.RESULTS / "abacus"
    (folder / "training").mkdir(parents=True)
    rows = rows_of(Case("batch_norm", "both", (2, 3)), torch=[3.0], compile=[2.0], onednn=[1.5])
    rows += rows_of(Case("batch_norm", "evaluation", (2, 3)), torch=[0.5])
    results.write_results(folder, "timings", ENVIRONMENT, [row | {"contention": 0.0} for row in rows], complete=True)
    step = {"network": "mlp", "source": "bench", "batch": 2, "input": "7", "dtype": "float32", "devices": 1}
    step |= {"speed_up": 1.25, "steps_per_s": 12.0, "peak_bytes": 3 << 20, "contention": 0.5}
    step |= dict.fromkeys(SHARES, 0.25) | {"variant": "converted"}
    results.write_results(folder, "end-to-end", ENVIRONMENT, [step], complete=True)
    line = {"variant": "dropout 0.5", "test_accuracy": 0.9, "test_accuracy_deviation": 0.01, "train_accuracy": 0.95}
    document = {"complete": True, "experiment": "digits-dropout", "data": {"name": "digits", "stands_in_for": None}}
    document |= {"environment": ENVIRONMENT, "runs": [{"contention": 0.0, "seed": 0, "layers": "torch"}]}
    document |= {"answer": "All is well."}
    document["summary"] = [line | {"layers": "torch"}, line | {"layers": "fastreg", readme.SPEED: 1.5}]
    (folder / "training/digits-dropout.json").write_text(json.dumps(document))
    return tmp_path


def test_a_gpu_has_one_table_one_chart_and_what_failed(root):
    """The short table where there is no other, also of a run that was cut short."""
    folder = root / readme.RESULTS / "gpu"
    folder.mkdir()
    gpu = ENVIRONMENT | {"device": "Gauge", "backend": "cuda", "cuda": "13", "cudnn": 9}
    rows = [row | {"contention": 0.0} for row in rows_of(Case("dropout", "forward", (7,)), torch=[2.0])]
    results.write_results(folder, "short", gpu, rows, complete=False, suffixes=["json"])
    phases = {"tests": {"status": "failed", "failed": ["test_cuda.py: 1 failed: test_a"]}}
    phases |= {"bench": {"status": "done", "failed": ["cudnn: dropout"]}, "build": {"status": "done", "failed": []}}
    (folder / "gpu_check.json").write_text(json.dumps({"device": "Gauge", "phases": phases}))
    assert [path.name for path in redraw.redraw(folder)] == ["short.png"]
    text = readme.write(EMPTY, root, SECTIONS)
    assert "| dropout 7 fp32 | 2.0 |" in text and f"]({readme.RESULTS}/gpu/short.png)" in text
    assert "**Gauge · CUDA 13, cuDNN 9 · torch 2.0 · fastreg 1** (partial: interrupted)" in " ".join(text.split())
    assert "phases: 1 failed, 2 done. What failed there: [gpu_check.json]" in " ".join(text.split())
    assert "- test_cuda.py: 1 failed: test_a\n- cudnn: dropout\n" in text
    results.write_results(folder, "timings", gpu, [row | {"shape": "8"} for row in rows], complete=True)
    assert [path.name for path in redraw.redraw(folder)] == ["timings.png"]
    text = readme.write(EMPTY, root, SECTIONS)
    assert "| dropout 8 fp32 | 2.0 |" in text and "dropout 7" not in text


def test_the_pages_are_up_to_date(capsys):
    assert readme.main(["--check"]) == 0, "run python -m bench.readme"


def test_every_figure_is_of_a_file(root):
    text = readme.write(f"before\n{EMPTY}\nafter", root, SECTIONS)
    assert text.startswith("before\n") and text.endswith("\nafter")
    assert "|  | forward + backward | evaluation | forward + backward, `torch.compile` |" in text
    assert "| batch norm 2x3 fp32 | 3.0 | 0.50 | 2.0 |" in text
    assert "| mlp (bench), 2x7, float32 | converted | 12.0 | 1.25 | 3 MiB | 25% |" in text
    assert "| digits | dropout 0.5 | 90.0 ± 1.0 | 90.0 ± 1.0 | 5.0 | 5.0 | 1.50 |" in text
    assert "- **Four dropouts of 0.5**: All is well. 1 seed, `torch.nn` ([numbers](" in " ".join(text.split())
    assert "| batch norm 2x3 fp32, forward + backward | 1.5 |" in text
    for name in ("timings.json", "end-to-end.json", "training/digits-dropout.json"):
        assert f"]({readme.RESULTS}/abacus/{name})" in text
    assert text.count("**Abacus · 2 threads, beads · torch 2.0 · fastreg 1**") == 2
    assert "NOT ALONE: other programs took 50% of the" in " ".join(text.split())
    assert "png" not in text
    (root / readme.RESULTS / "abacus/timings.png").touch()
    assert f"]({readme.RESULTS}/abacus/timings.png)" in readme.write(text, root, SECTIONS)
    assert readme.write(text, root, SECTIONS).count("| batch norm 2x3 fp32 |") == 1


@pytest.mark.parametrize("text", ["", EMPTY.replace("end of", "End of"), EMPTY + EMPTY], ids=["none", "open", "twice"])
def test_a_readme_without_its_sections_is_refused(text, root):
    with pytest.raises(ValueError, match="the page must have a section between <!-- timings"):
        readme.write(text, root, SECTIONS)


def test_the_headline_has_some_lines_of_the_table(root, monkeypatch):
    monkeypatch.setattr(readme, "HEADLINE", {"dropout": ["1 fp32"], "batch_norm": ["2x3 fp32", "4x5 fp32"]})
    text = readme.write(
        "<!-- headline: written by python -m bench.readme -->\n<!-- end of headline -->", root, ["headline"]
    )
    assert "| batch norm 2x3 fp32 |  | 3.0 |" in text and "dropout 1" not in text and "4x5" not in text
    assert "**Abacus · 2 threads, beads · torch 2.0 · fastreg 1**" in text


def test_links_lead_from_a_page_to_the_files(root):
    text = readme.write(EMPTY, root, SECTIONS, up="../")
    assert f"](../{readme.RESULTS}/abacus/timings.json)" in text and f"]({readme.RESULTS}" not in text


def test_kernelbench_has_a_table_like_the_networks(root):
    folder = root / readme.RESULTS / "abacus"
    document = json.loads((folder / "end-to-end.json").read_text())
    document["rows"][0] |= {"network": "2-33", "source": "KernelBench"}
    (folder / "kernelbench.json").write_text(json.dumps(document))
    assert "| 2-33 (KernelBench), 2x7, float32 | converted | 12.0 | 1.25 |" in readme.write(EMPTY, root, SECTIONS)


def test_check_finds_a_changed_figure(root, monkeypatch, capsys):
    monkeypatch.setattr(readme, "ROOT", root)
    monkeypatch.setattr(readme, "PAGES", {"one.md": SECTIONS[:1], "two.md": SECTIONS[1:]})
    for page in ("one.md", "two.md"):
        (root / page).write_text(EMPTY)
    assert readme.main([]) == 0 and readme.main(["--check"]) == 0
    (root / "one.md").write_text((root / "one.md").read_text().replace("| 3.0 |", "| 3.1 |"))
    assert readme.main(["--check"]) == 1
    assert capsys.readouterr().err == "one.md does not say what the files say: run python -m bench.readme\n"


def test_charts_are_drawn_from_the_files(root):
    folder = root / readme.RESULTS / "abacus"
    (folder / "training/digits-dropout.json").unlink()
    committed = next((readme.ROOT / readme.RESULTS).glob("*/training/overfit.json"))
    (folder / "training/overfit.json").write_text(committed.read_text())
    names = {"timings.png", "timings-overview.png", "end-to-end.png", "training/overfit.png"}
    assert {str(path.relative_to(folder)) for path in redraw.redraw(folder)} == names
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_redraw_tells_what_is_wrong(tmp_path, capsys):
    assert redraw.main([str(tmp_path)]) == 0
    assert f"no results in {tmp_path}" in capsys.readouterr().err
    (tmp_path / "timings.json").write_text("[]")
    assert redraw.main([str(tmp_path)]) == 2
    assert "must be a JSON file of results" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["timings.json"]
