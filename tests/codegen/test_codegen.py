"""What nvcc makes of the kernels (tests/codegen), and that the checks see mistakes in kernels made for that."""

import functools
from pathlib import Path

import pytest

from tests.codegen import measure, table, toolchain

pytest_plugins = ["pytester"]

EVERYDAY = (80, 90)

# ---- The kernels ----


def measure_all(compiled):
    return {key: value for each in compiled for key, value in measure.measure(each).items()}


@functools.cache
def compiled_with(gpu):
    """What is compiled together with gpu, so that all cores have work."""
    rest = [g for g in toolchain.SETUP["GPUS"] if g not in EVERYDAY and g in toolchain.known_gpus()]
    gpus = EVERYDAY if gpu in EVERYDAY else rest
    return toolchain.compile_all(toolchain.kernel_sources(), gpus)


@functools.cache
def measured(gpu):
    return measure_all([each for each in compiled_with(gpu) if each.gpu == gpu])


def assert_none(lines):
    assert not lines, "\n".join(lines)


@pytest.mark.nvcc
@pytest.mark.parametrize(
    "gpu", [pytest.param(g, marks=[] if g in EVERYDAY else pytest.mark.full) for g in toolchain.SETUP["GPUS"]]
)
class TestKernels:
    @pytest.fixture(autouse=True)
    def known(self, gpu):
        if gpu not in toolchain.known_gpus():
            pytest.skip(f"this nvcc does not compile for sm_{gpu}")

    def test_no_warnings(self, gpu):
        assert_none([line for each in compiled_with(gpu) if each.gpu == gpu for line in measure.warnings(each.log)])

    def test_resources(self, gpu):
        assert_none(table.resource_failures(measured(gpu), table.read()))

    def test_machine_code(self, gpu):
        if toolchain.find_disassembler() is None:
            pytest.skip(f"machine code of {len(measured(gpu))} kernels not checked: no cuobjdump")
        assert all(m.code is not None for m in measured(gpu).values())
        assert_none(table.code_failures(measured(gpu), table.read()))

    def test_numbers(self, gpu):
        assert_none(table.too_many(measured(gpu), toolchain.kernel_sources()))


# ---- The same on kernels with mistakes ----


@functools.cache
def planted(gpu=80):
    source = Path(toolchain.__file__).with_name("planted.cu")
    return toolchain.compile_for(source, gpu)


@pytest.mark.nvcc
class TestPlanted:
    def failures(self, kernel, check=table.resource_failures, gpu=80):
        own = {key: m for key, m in measure_all([planted(gpu)]).items() if key[0] == f"{kernel}<float, 4>"}
        assert len(own) == 1
        return check(own, table.updated({}, own))

    def code_failures(self, kernel, gpu=80):
        if toolchain.find_disassembler() is None:
            pytest.skip("machine code not checked: no cuobjdump")
        return self.failures(kernel, table.code_failures, gpu)

    @pytest.mark.parametrize("kernel", ["spilling_kernel", "local_memory_kernel"])
    def test_local_memory(self, kernel):
        (line,) = self.failures(kernel)
        assert (" 0 of spill stores" in line) is (kernel == "local_memory_kernel")

    @pytest.mark.parametrize("kernel", ["spilling_kernel", "local_memory_kernel"])
    def test_local_memory_accesses(self, kernel):
        (line,) = self.code_failures(kernel)
        assert "accesses to local memory" in line

    def test_warning(self):
        (line,) = measure.warnings(planted().log)
        assert '"unused" was declared but never referenced' in line

    def test_scalar(self):
        at = "scalar_kernel<float, 4> sm_80:"
        assert self.code_failures("scalar_kernel") == [f"{at} no 128-bit loads", f"{at} no 128-bit stores"]

    def test_one_scalar_access_in_the_loop(self):
        (line,) = self.code_failures("scalar_weight_kernel")
        assert "1 accesses of less than 128 bits in its main loop" in line

    @pytest.mark.parametrize(
        ("kernel", "expected"),
        [
            ("one_at_a_time_kernel", ["32.0 KB in flight"]),
            ("serial_tail_kernel", ["1.0 loads in flight in a sum", "1 divisions in loops", "no 128-bit loads"]),
            ("fence_kernel", ["1 fences of the whole GPU"]),
            ("eight_at_a_time_kernel", []),
        ],
    )
    def test_loops(self, kernel, expected):
        lines = self.code_failures(kernel, gpu=90)
        assert len(lines) == len(expected), lines
        assert all(f"sm_90: {start}" in line for line, start in zip(lines, expected, strict=True))

    def test_correct(self):
        assert self.failures("copy_kernel") == []

    def test_correct_machine_code(self):
        assert self.code_failures("copy_kernel") == []

    def test_compiled_once(self):
        assert planted().object.exists()
        before = planted().object.stat().st_mtime_ns
        planted.cache_clear()
        assert planted().object.stat().st_mtime_ns == before

    def test_compiled_again_when_changed(self, tmp_path):
        copy = tmp_path / "planted.cu"
        copy.write_bytes(planted().source.read_bytes())
        unchanged = toolchain.fingerprint(copy)
        assert unchanged == toolchain.fingerprint(planted().source)
        toolchain.fingerprint.cache_clear()
        copy.write_text(copy.read_text() + "\n")
        assert toolchain.fingerprint(copy) != unchanged

    def test_does_not_compile(self, tmp_path):
        (tmp_path / "broken.cu").write_text("__global__ void f() { g(); }")
        with pytest.raises(RuntimeError, match="broken.cu does not compile for sm_90:\n(.|\n)*undefined"):
            toolchain.compile_for(tmp_path / "broken.cu", 90, tmp_path)


@pytest.mark.parametrize("nvcc", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_what_is_left_out_is_counted(pytester, monkeypatch, nvcc, full):
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: Path("nvcc") if nvcc else None)
    pytester.makeconftest((toolchain.ROOT / "tests/conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n  nvcc: needs nvcc\n  full: takes long")
    pytester.makepyfile("""
        import pytest
        def test_anywhere(): pass
        @pytest.mark.nvcc
        def test_with_nvcc(): pass
        @pytest.mark.nvcc
        @pytest.mark.full
        def test_long_with_nvcc(): pass
    """)
    result = pytester.runpytest_inprocess(*["--full"] * full)
    passed = 1 + nvcc * (1 + full)
    result.assert_outcomes(passed=passed, deselected=3 - passed)
    assert ("2 tests need nvcc and have not run" in result.stdout.str()) is not nvcc
    assert ("1 tests take long and have not run" in result.stdout.str()) is (nvcc and not full)
