"""What all tests share: tests that need a GPU, nvcc or much time are left out, and counted, where there is none.

After each test of a GPU the device is synchronised, so that an error is that of the test that made it; where nothing
runs on the device after it, the run ends there.

With FASTREG_TEST_KERNELS=host-executor the tests of operators, functions and modules run, and no others: what they do
on the CPU the CUDA kernels do instead, in the host executor. Those marked not_on_kernels are left out, and counted by
their reasons.
"""

import importlib.util
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.host_executor import EXECUTED, use_kernels

use_kernels()

from fastreg import _extension  # noqa: E402
from fastreg.conversion import held  # noqa: E402

# No test asserts a time; a failure prints what reproduces it.
hypothesis.settings.register_profile("fastreg", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fastreg")

# Folders of tests of what the kernels have to do as the CPU backend does.
FOLDERS_OF_KERNELS = {"cuda", "distributed", "functional", "nn", "ops", "transforms"}

LEFT_OUT = pytest.StashKey[dict[str, int]]()
LEFT_OUT_FILES = pytest.StashKey[set[str]]()


def has_nvcc():
    from tests.codegen import toolchain

    return toolchain.find_nvcc() is not None


def has_zoo():
    return has("torchvision") and has("timm")


def has_onednn():
    from bench.timings.cpu_peers import ONEDNN, PEERS

    return all(peer.absence() is None for peer in PEERS if peer.module == ONEDNN)


def has(name):
    return importlib.util.find_spec(name) is not None


# Markers of tests that cannot run everywhere: whether they can here, and what the summary says where they cannot.
NEEDS = {
    "cuda": (lambda config: torch.cuda.is_available(), "need a GPU and have not run: there is none here"),
    "executor": (lambda config: EXECUTED, "need the host executor and have not run: make kernel-test runs them"),
    "nvcc": (lambda config: has_nvcc(), "need nvcc and have not run: there is none here"),
    "triton": (lambda config: has("triton"), "need Triton and have not run: there is none here"),
    "helion": (lambda config: has("helion"), "need Helion and have not run: there is none here"),
    "onednn": (lambda config: has_onednn(), "need oneDNN and have not run: there is none here"),
    "zoo": (
        lambda config: has_zoo(),
        "need torchvision and timm (the extra zoo) and have not run: there are none here",
    ),
    "full": (lambda config: config.getoption("--full"), "take long and have not run: --full runs them"),
}


@pytest.fixture(autouse=True)
def fused_at_any_size(monkeypatch):
    """Tests of converted models have tensors so small that nothing would be fused."""
    monkeypatch.setattr(held, "SMALL", -1)


def kinds_of_derivatives():
    """Those of this session: FASTREG_AUTOGRAD=python leaves no nodes in C++; an extension may be lacking altogether."""
    in_python = pytest.param("python", marks=pytest.mark.not_on_kernels("Functions are tested over the CPU's kernels"))
    if not _extension.available("cpu"):
        return ["composed"]
    return [in_python] if _extension.differentiates_in_python() else ["cpp", in_python]


@pytest.fixture(params=kinds_of_derivatives())
def derivatives(request):
    """What differentiates the operators: the nodes in C++, or, as with FASTREG_AUTOGRAD=python, fastreg.autograd."""
    if request.param != "python" or _extension.differentiates_in_python():
        yield request.param
        return
    from fastreg.autograd import operators

    library = operators.use_functions()
    yield request.param
    library._destroy()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the tests marked full, too")


def pytest_report_header():
    return f"torch {torch.__version__}, fastreg {_extension.build_info()}"


class LeftOutFile(pytest.Module):
    """One that is not even imported."""

    def collect(self):
        return []


def pytest_pycollect_makemodule(module_path, parent):
    """torch's own databases of inputs import expecttest, which users of torch need not have."""
    if not module_path.name.endswith("_databases.py") or has("expecttest"):
        return None
    parent.config.stash.setdefault(LEFT_OUT_FILES, set()).add(module_path.name)
    return LeftOutFile.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test of a GPU ends when the device has done what it was given."""
    try:
        return (yield)
    finally:
        if item.get_closest_marker("cuda") and torch.cuda.is_initialized():
            synchronize(item)


def synchronize(item):
    """Raises what the device reports; where it does so again, nothing runs on it any more, and the session ends."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            item.session.shouldfail = f"the device is broken after {item.nodeid}: {str(error).splitlines()[0]}"
        raise


def pytest_collection_modifyitems(config, items):
    if EXECUTED:
        leave_out_what_is_not_of_kernels(config, items)
    for name in sorted({marker.args[0] for item in items for marker in item.iter_markers("package")}):
        marked = [item for item in items if name in {marker.args[0] for marker in item.iter_markers("package")}]
        if not has(name):
            leave_out(config, items, marked, f"need {name} (the extra tools) and have not run: there is none here")
    for marker, (available, what) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available(config):
            leave_out(config, items, marked, what)


def leave_out_what_is_not_of_kernels(config, items):
    folders = {item: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
    others = [item for item in items if folders[item] not in FOLDERS_OF_KERNELS]
    leave_out(config, items, others, "are of other things than the kernels and have not run: make py-test runs them")
    reasons = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("not_on_kernels"))}
    for reason in Counter(reasons.values()):
        of_this = [item for item, of in reasons.items() if of == reason]
        leave_out(config, items, of_this, f"have not run on the kernels: {reason}")


def leave_out(config, items, left_out, what):
    """Deselect tests, and have the summary say how many and what of them."""
    if left_out:
        config.stash.setdefault(LEFT_OUT, {})[what] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        kept = set(items).difference(left_out)
        items[:] = [item for item in items if item in kept]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Tells what was left out to the process whose worker this is, if it is one (pytest-xdist)."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, {})
        output["left_out_files"] = sorted(session.config.stash.get(LEFT_OUT_FILES, set()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Each worker leaves the same out."""
    output = getattr(node, "workeroutput", {})
    node.config.stash.setdefault(LEFT_OUT, {}).update(output.get("left_out", {}))
    node.config.stash.setdefault(LEFT_OUT_FILES, set()).update(output.get("left_out_files", []))


def pytest_terminal_summary(terminalreporter, config):
    for what, count in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(f"{count} tests {what}", yellow=True)
    if files := config.stash.get(LEFT_OUT_FILES, set()):
        line = f"{len(files)} files need expecttest and have not run: there is none here: {', '.join(sorted(files))}"
        terminalreporter.write_line(line, yellow=True)
