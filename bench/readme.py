"""`python -m bench.readme`: write the results in README and manual from the committed files. With --check, only tell
whether they are what the pages say (status 1 where they are not)."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import part, results
from bench.end_to_end.report import title
from bench.results import significant
from bench.timings import tensors
from bench.timings.ops import MODES
from bench.timings.providers import COMPILE
from bench.timings.speed_chart import best_ratios
from bench.timings.tensors import with_unit
from bench.training.data import TITLES
from bench.training.experiments import ALL, STUDIES
from bench.training.loop import EITHER, FASTREG, PROVIDERS, TORCH
from bench.training.report import SPEED

USERS_MODES = ("training", "evaluation")
NOT_SLOWER = 0.97  # a network's speed by which converting it is no loss

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "bench/results"
BEGIN, END = "<!-- {}: written by python -m bench.readme -->", "<!-- end of {} -->"
TRAINING_CHARTS = {
    "mnist-batchnorm.png": "Loss and accuracy by epoch, with and without batch norm",
    "init-scale.png": "Training accuracy by epoch for 16 scales of initial weights",
    "overfit.png": "Training and test accuracy by epoch, with and without dropout and weight decay",
}
PEERS = {
    "torch_mkldnn": "torch on oneDNN's tensors",
    "onednn": "oneDNN",
    "onednn_given": "oneDNN, results not allocated",
    "onednn_blocked": "oneDNN, nChw16c",
    "onednn_blocked_given": "oneDNN, nChw16c, results not allocated",
}


def timings(root: Path, folder: Path) -> list[str]:
    """Times PyTorch's speed, a line per tensor, a column per mode; of the short table where there is no other."""
    path = results.latest(root / folder, "timings") or results.latest(root / folder, "short")
    document = results.read_document(path)
    rows, chart = document["rows"], path.name.split(".")[0]
    ratios, compiled = best_ratios(rows), best_ratios(rows, [COMPILE.name])
    modes = [mode for mode in MODES if any(case[1] == mode for case in ratios)]
    lines = dict.fromkeys((row["op"], tensors.label(row)) for row in rows)
    header = ["", *(tensors.MODES.get(mode, mode) for mode in modes)]
    columns = [(ratios, mode) for mode in modes]
    for mode in ("both", "graph"):
        if any(case[1] == mode for case in compiled):
            header.append(f"{tensors.MODES[mode]}, `torch.compile`")
            columns.append((compiled, mode))
    table = [
        [
            f"{op.replace('_', ' ')} {' '.join(label.split())}",
            *(_ratio(among, op, mode, label) for among, mode in columns),
        ]
        for op, label in lines
    ]
    return [
        f"{_where(document, rows)}. Times the speed of PyTorch's fastest eager mode, or of `torch.compile` where the "
        "column names it; medians, both timed in turn in one process, above 1 is faster. With spread, bandwidth and "
        f"memory: [{path.name}]({folder}/{path.name}).",
        _markdown(header, table),
        *_peers(rows),
        *_images(root, folder, {f"{chart}.png": "Times PyTorch's speed, by layer, mode and size"}),
        *_images(root, folder, {"timings-overview.png": "Roofline, memory kept for backward, bandwidth by size"}),
    ]


def _peers(rows: list[dict]) -> list[str]:
    """Times the speed of other libraries for the CPU, where they were timed."""
    peers = [name for name in PEERS if any(row["provider"] == name for row in rows)]
    if not peers:
        return []
    ratios = {name: best_ratios(rows, [name]) for name in peers}
    lines = dict.fromkeys((op, mode, label) for own in ratios.values() for op, mode, label in own)
    table = [
        [
            f"{op.replace('_', ' ')} {' '.join(label.split())}, {tensors.MODES.get(mode, mode)}",
            *(_ratio(ratios[name], op, mode, label) for name in peers),
        ]
        for op, mode, label in lines
    ]
    return [
        "Times the speed of other libraries, in the same run. oneDNN is called without autograd.",
        _markdown(["", *(PEERS[name] for name in peers)], table),
    ]


def _ratio(ratios: dict, op: str, mode: str, label: str) -> str:
    found = ratios.get((op, mode, label))
    return significant(found[1], 2) if found else ""


# The tensors of the headline, by operator.
HEADLINE = {
    "dropout": ["1048576 fp32", "16777216 fp32"],
    "batch_norm": ["32x100 fp32", "32x64x56x56 fp32", "64x64x56x56 fp32 channels-last"],
    "batch_norm_add_relu": ["32x64x56x56 fp32"],
    "batch_norm_relu_dropout": ["1024x256 fp32", "32x64x56x56 fp32"],
}


def headline(root: Path, folder: Path) -> list[str]:
    """A few lines of the timings' table."""
    document = results.read_document(results.latest(root / folder, "timings"))
    rows = document["rows"]
    ratios = best_ratios(rows)
    labels = {(op, " ".join(label.split())): label for op, _, label in ratios}
    table = [
        [
            f"{op.replace('_', ' ')} {short}",
            *(_ratio(ratios, op, mode, labels[op, short]) for mode in ("forward", "both")),
        ]
        for op, chosen in HEADLINE.items()
        for short in chosen
        if (op, short) in labels
    ]
    return [
        f"{_where(document, rows)}. Times the speed of PyTorch's fastest eager mode, above 1 is faster. More, with "
        f"training steps of whole networks: [benchmarks](docs/benchmarks.md).",
        _markdown(["", "forward", "forward + backward"], table),
    ]


def end_to_end(root: Path, folder: Path) -> list[str]:
    """Steps per second and peak memory, a line per network and variant."""
    return _networks(root, folder, "end-to-end", "Training steps of whole networks")


def kernelbench(root: Path, folder: Path) -> list[str]:
    """The same of KernelBench's problems."""
    return _networks(root, folder, "kernelbench", "Training steps of KernelBench's problems with batch norm or dropout")


def _networks(root: Path, folder: Path, name: str, what: str) -> list[str]:
    path = results.latest(root / folder, name)
    document = results.read_document(path)
    rows = document["rows"]
    table = [
        [
            title(row),
            row["variant"],
            significant(row["steps_per_s"]),
            f"{row['speed_up']:.2f}",
            with_unit(row["peak_bytes"]),
        ]
        + ["" if row["share_layers"] is None else f"{row['share_layers']:.0%}"]
        for row in rows
    ]
    header = [
        "network",
        "variant",
        "steps/s",
        "times plain",
        "peak memory of a step",
        "share of batch norm, relu, sums, dropout",
    ]
    return [
        f"{_where(document, rows)}. {what}, all variants in turn in one process: [{path.name}]({folder}/{path.name}).",
        _markdown(header, table, words=2),
        *_images(root, folder, {f"{name}.png": "Steps per second, peak memory and shares of a step's time"}),
    ]


def users(root: Path, folder: Path) -> list[str]:
    """Times the plain network's speed, a line per network and batch, and what is slower than it."""
    path = results.latest(root / folder, "users")
    document = results.read_document(path)
    rows = document["rows"]
    cases: dict[tuple[str, str], dict[str, dict[str, dict]]] = {}
    for row in rows:
        cases.setdefault((row["op"], row["shape"]), {}).setdefault(row["mode"], {})[row["provider"]] = row
    table, slower = [], []
    for (op, shape), modes in cases.items():
        line = [f"{op} {shape}"]
        for mode in USERS_MODES:
            own = modes.get(mode)
            plain = own and own["torch"]
            line.append(f"{plain['ratio']:.2f} ({plain['ratio_20']:.2f}–{plain['ratio_80']:.2f})" if plain else "")
            line += [f"{plain['us'] / own[name]['us']:.2f}" if plain else "" for name in ("unfused", "patched")]
            if plain and plain["ratio"] < NOT_SLOWER:
                slower.append(f"{op} {shape} in {mode} {plain['ratio']:.3f}")
        table.append(line)
    header = ["", *(f"{mode}: {what}" for mode in USERS_MODES for what in ("converted", "not fused", "patched"))]
    return [
        f"{_where(document, rows)}. Small networks, times the plain one's speed by CPU time, with the 20 and 80 % "
        f"quantiles of the rounds for the converted one: [{path.name}]({folder}/{path.name}). Below {NOT_SLOWER}: "
        f"{', '.join(slower) or 'none'}.",
        _markdown(header, table),
    ]


def checks(root: Path, folder: Path) -> list[str]:
    """What `make gpu-check` found: the phases in one line, then each thing that failed."""
    document = json.loads((root / folder / "gpu_check.json").read_text())
    phases = document["phases"]
    counts = Counter(phase["status"] for phase in phases.values())
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    failed = [f"- {failure}" for phase in phases.values() for failure in phase["failed"]]
    return [
        f"**{document['device']}**: `make gpu-check`, phases: {summary}. "
        f"{'What failed there' if failed else 'Nothing failed there'}: [gpu_check.json]({folder}/gpu_check.json).",
        *(["\n".join(failed)] if failed else []),
    ]


def training(root: Path, folder: Path) -> list[str]:
    """Test accuracy with either kind of layers, a line per experiment and network."""
    documents = [json.loads(path.read_text()) for path in sorted((root / folder / "training").glob("*.json"))]
    experiments = [document for document in documents if document["experiment"] not in STUDIES]
    table = [line for document in experiments for line in _trained(document, f"{folder}/training")]
    runs = [run for document in documents for run in document["runs"]]
    header = [
        "experiment",
        "data",
        "network",
        "`torch.nn`",
        "`fastreg.nn`",
        "gap, `torch.nn`",
        "`fastreg.nn`",
        "times PyTorch's speed",
    ]
    return [
        f"{_where(documents[0], runs)}. Test accuracy in %, mean ± standard deviation over the seeds; its gap to the "
        "training accuracy in points; the median, over epochs that no other program disturbed, of PyTorch's seconds "
        "over fastreg's, both trained in turn. A network that has neither dropout nor batch norm is trained once.",
        _markdown(header, table, words=3),
        *_answers(documents, root, folder / "training"),
        *_images(root, folder / "training", TRAINING_CHARTS),
    ]


def _answers(documents: list[dict], root: Path, folder: Path) -> list[str]:
    """A line per question that the data answered."""
    lines = []
    for document in documents:
        if "answer" in document:
            name = document["experiment"]
            question = ALL[name].title
            found = {"numbers": f"{folder}/{name}.json", "chart": f"{folder}/{name}.png"}
            files = ", ".join(f"[{what}]({path})" for what, path in found.items() if (root / path).exists())
            text = f"- **{question}**: {document['answer']} {_runs(document)} ({files})"
            lines.append(
                textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            )
    return ["\n".join(lines)] if lines else []


def _runs(document: dict) -> str:
    """How often, and with whose layers."""
    layers = " and ".join(f"`{name}.nn`" for name in PROVIDERS if any(r["layers"] == name for r in document["runs"]))
    seeds = len({run["seed"] for run in document["runs"]})
    return f"{seeds} seed{'s' * (seeds > 1)}, {layers}"


def _trained(document: dict, folder: str) -> list[list[str]]:
    """A line per network that was judged on test data, in several trainings."""
    networks: dict[str, dict[str, dict]] = {}
    for line in document["summary"]:
        if "test_accuracy_deviation" in line:
            networks.setdefault(line["variant"], {})[line["layers"]] = line
    name = f"[{document['experiment']}]({folder}/{document['experiment']}.json)"
    table = []
    for variant, by_layers in networks.items():
        sides = [by_layers.get(layers) for layers in (TORCH.name, FASTREG.name)]
        if EITHER in by_layers:
            sides = [by_layers[EITHER], None]
        accuracies = [
            f"{_percent(s, 'test_accuracy')} ± {_percent(s, 'test_accuracy_deviation')}" if s else "" for s in sides
        ]
        gaps = [f"{100 * (s['train_accuracy'] - s['test_accuracy']):.1f}" if s else "" for s in sides]
        ratio = sides[1].get(SPEED) if sides[1] else None
        data = TITLES[document["data"]["name"]].removeprefix("scikit-learn's ")
        table.append([name, data, variant, *accuracies, *gaps, f"{ratio:.2f}" if ratio else ""])
    return table


def _percent(line: dict, column: str) -> str:
    return f"{100 * line[column]:.1f}"


def _wrapped(blocks: list[str]) -> list[str]:
    """The first, which is prose, in lines as long as the README's."""
    return [textwrap.fill(blocks[0], 120, break_long_words=False, break_on_hyphens=False), *blocks[1:]]


def _where(document: dict, rows: list[dict]) -> str:
    complete = "" if document["complete"] else part.PARTIAL
    return f"**{part.full_caption(document['environment'], rows)}**{complete}"


def _markdown(header: list[str], table: list[list[str]], words: int = 1) -> str:
    rule = ["---" if index < words else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *table])


def _images(root: Path, folder: Path, charts: dict[str, str]) -> list[str]:
    return [f"![{text}]({folder}/{name})" for name, text in charts.items() if (root / folder / name).exists()]


# By section: what makes its blocks, and the files of which it needs one.
SECTIONS: dict[str, list[tuple[Callable[[Path, Path], list[str]], list[str]]]] = {
    "headline": [(headline, ["timings.json"])],
    "timings": [
        (timings, ["timings.json", "timings.partial.json", "short.json", "short.partial.json"]),
        (end_to_end, ["end-to-end.json", "end-to-end.partial.json"]),
        (users, ["users.json", "users.partial.json"]),
        (kernelbench, ["kernelbench.json", "kernelbench.partial.json"]),
        (checks, ["gpu_check.json"]),
    ],
    "training": [(training, ["training"])],
}


# Where each stands.
PAGES = {"README.md": ["headline"], "docs/benchmarks.md": ["timings"], "docs/experiments.md": ["training"]}


def write(text: str, root: Path, sections: Sequence[str], up: str = "") -> str:
    """A page with these sections as the files under `root` say. up: the way to `root` from the page's folder.

    Raises:
        ValueError: a section's markers are not in the text, once and in order.
    """
    folders = sorted(path.relative_to(root) for path in (root / RESULTS).iterdir() if path.is_dir())
    for name in sections:
        begin, end = BEGIN.format(name), END.format(name)
        if len(re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.DOTALL)) != 1:
            raise ValueError(f"the page must have a section between {begin} and {end}")
        blocks = [
            block
            for folder in folders
            for make, files in SECTIONS[name]
            if any((root / folder / file).exists() for file in files)
            for block in _wrapped(make(root, folder))
        ]
        before, after = text.split(begin)[0], text.split(end)[1]
        text = "\n\n".join(
            [before + begin, *(block.replace(f"]({RESULTS}/", f"]({up}{RESULTS}/") for block in blocks), end + after]
        )
    return text


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(argv).check
    status = 0
    for page, sections in PAGES.items():
        path = ROOT / page
        before = path.read_text()
        after = write(before, ROOT, sections, up="../" * page.count("/"))
        if check and before != after:
            print(f"{page} does not say what the files say: run python -m bench.readme", file=sys.stderr)
            status = 1
        if not check:
            results.replace_file(path, after)
    return status


if __name__ == "__main__":
    sys.exit(main())
