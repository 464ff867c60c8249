"""What all charts have in common: colours, names, type."""

from __future__ import annotations

from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart under every common colour blindness, and the first two in grey as well.
COLOURS = {
    "torch": "#D55E00",
    "fastreg": "#0072B2",
    "compile": "#009E73",
    "torch_without_cudnn": "#E69F00",
    "apex": "#CC79A7",
    "inplace_abn": "#56B4E9",
    "triton": "#B8A800",
    "copy": "#888888",
}
LABELS = {
    "torch": "PyTorch",
    "fastreg": "fastreg",
    "compile": "torch.compile",
    "torch_without_cudnn": "PyTorch without cuDNN",
    "triton": "Triton",
    "copy": "a copy",
}
INK, MUTED, GRID = "#222222", "#666666", "#dddddd"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "savefig.dpi": 110,
}


def inscribe(figure: Figure, title: str, note: str) -> None:
    """The title above all panels, the note below."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(note, x=0.01, ha="left", color=MUTED, fontsize=9)
