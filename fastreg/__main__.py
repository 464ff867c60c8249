"""python -m fastreg: what is installed, what is compiled, and what to do where something is missing.

python -m fastreg explain MODULE:FACTORY: what ``fastreg.convert`` does to a model.
python -m fastreg run SCRIPT ARGUMENTS: a program whose dropout and batch norm are fastreg's.
"""

import argparse
import platform
import re
import sys

import torch

import fastreg
from fastreg import _extension


def runs_on(architectures, capability):
    """Whether code for architectures, such as "8.0 9.0+PTX", runs on a GPU of this capability, such as (9, 0)."""
    for major, minor, ptx in re.findall(r"(\d+)\.(\d)a?(\+PTX)?", architectures):
        built = (int(major), int(minor))
        if built <= capability and (ptx or built[0] == capability[0]):
            return True
    return re.search(r"\d", architectures) is None  # a family's name, "native": torch's to interpret


def advice(info, problem, torch_cuda, gpus):
    """What is missing and what to do about it, one sentence each.

    info, problem: build_info() and problem(); torch_cuda: torch.version.cuda; gpus: (name, capability) of each GPU.
    """
    if problem:
        return [problem]
    if torch_cuda and not info["cuda"]:
        return [
            f"torch is built for CUDA {torch_cuda}, fastreg without CUDA: CUDA tensors take slow fallbacks. "
            f"Install the toolkit of CUDA {torch_cuda} (nvcc). {_extension.REMEDY}"
        ]
    return [
        f"{name} (sm_{major}{minor}) is not among the architectures compiled for. "
        f'Set TORCH_CUDA_ARCH_LIST="{major}.{minor}". {_extension.REMEDY}'
        for name, (major, minor) in gpus
        if not runs_on(info["cuda_architectures"], (major, minor))
    ]


def next_steps(backends):
    """What to do now, a command or call and what it does."""
    if not backends:
        return {"docs/building.md": "the page of the manual that has each message with its remedy"}
    return {
        "python -m fastreg explain torchvision.models:resnet50": "what fastreg.convert does to a model",
        "fastreg.convert(model)": "does it, in place; fastreg.revert(model) undoes it",
        "python -m fastreg run train.py": "a program as it is, with fastreg's dropout and batch norm",
        "fastreg.nn, fastreg.functional": "layers and functions with the names of torch's",
    }


def report(info, problem, gpus):
    """The lines to print."""
    rows = {
        "fastreg": fastreg.__version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "GPUs": ", ".join(name for name, _ in gpus) or "none",
        "backends": ", ".join(info["backends"]) or "none: everything runs in PyTorch's own functions",
        "built for torch": info.get("torch"),
        "compiler": info.get("compiler"),
        "CPU kernels": info.get("instruction_set"),
        "nvcc": info.get("cuda"),
        "architectures": info.get("cuda_architectures"),
    }
    lines = [f"{name:<16} {value}" for name, value in rows.items() if value]
    lines += [f"\n! {sentence}" for sentence in advice(info, problem, torch.version.cuda, gpus)]
    return lines + ["\nNext:", *(f"    {step:<55} {what}" for step, what in next_steps(info["backends"]).items())]


def main(arguments):
    if arguments[:1] == ["explain"]:
        from fastreg.conversion import explain

        explain.main(arguments[1:])
        return
    if arguments[:1] == ["run"]:
        from fastreg import running

        running.main(arguments[1:])
        return
    argparse.ArgumentParser(
        "python -m fastreg", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    indices = range(torch.cuda.device_count())
    gpus = [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in indices]
    print("\n".join(report(_extension.build_info(), _extension.problem(), gpus)))


if __name__ == "__main__":
    main(sys.argv[1:])
