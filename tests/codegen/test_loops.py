"""Loops over memory in machine code, and their rules: on short listings, without nvcc."""

import math
from dataclasses import replace

import pytest

from tests.codegen import loop_rules, loops, measure, sass, table


def parsed(*lines):
    """Of lines such as "LDG.E R4, [R2.64]"; a label's number stands for its line's address: "BRA #0"."""
    listing = "Function : f\n"
    for at, line in enumerate(lines):
        opcode, _, target = line.partition("#")
        listing += f"/*{16 * at:04x}*/ {opcode}{hex(16 * int(target)) if target else ''} ;\n"
    return sass.parse(listing)["f"]


def examined(*lines):
    return loops.examine(parsed(*lines, "EXIT"))


LOADS = [f"LDG.E.128 R{4 * i + 8}, [R2.64]" for i in range(4)]
USES = [f"FADD R0, R0, R{4 * i + 9}" for i in range(4)]  # of the second of each load's registers


class TestInFlight:
    @pytest.mark.parametrize(
        ("body", "loads", "size"),
        [
            ([*LOADS, *USES], 4, 64),
            ([line for pair in zip(LOADS, USES, strict=True) for line in pair], 1, 16),
            ([*LOADS[:3], *USES[:3], LOADS[3], USES[3]], 2, 32),  # two trips
            ([*USES, *LOADS], 4, 64),  # used in the next turn
            (LOADS[:1], 1, 16),  # overwritten by the next turn's
            (["LDG.E.U16 R4, [R2.64]", "LDG.E.U8 R5, [R2.64]", "LDG.E.64 R6, [R2.64]", "FADD R0, R4, R7"], 3, 11),
            # The address of the second is what the first loads.
            (["LDG.E.64 R4, [R2.64]", "LDG.E.64 R6, [R4.64]", "FADD R0, R0, R6"], 1, 8),
            # One of the two.
            (["@P0 LDG.E.128 R4, [R2.64]", "@!P0 LDG.E.EF.128 R4, [R2.64]", "FADD R0, R0, R4"], 1, 16),
            # Stored: all four registers.
            (["LDG.E.128 R4, [R2.64]", "LDG.E R9, [R2.64]", "STG.E.128 [R12.64], R4", "FADD R0, R0, R9"], 2, 20),
            (["LDGSTS.E.BYPASS.128 [R4], [R2.64]"] * 2, math.inf, math.inf),
            (["LDGSTS.E.BYPASS.128 [R4], [R2.64]"] * 2 + ["LDGDEPBAR", "DEPBAR.LE SB0, 0x0"], 2, 32),
        ],
    )
    def test_cycle(self, body, loads, size):
        found = examined(*body, "@P0 BRA #0")
        assert (found.loads, found.bytes) == (loads, size)

    def test_no_loop(self):
        assert examined(*LOADS, *USES) == loops.Loops(None, None, None, 0, 0)

    def test_the_loop_with_most_in_flight(self):
        tail = [LOADS[0], USES[0], "@P0 BRA #9"]
        assert examined(*LOADS, *USES, "@P0 BRA #0", *tail).loads == 4

    def test_not_the_loop_around_it(self):
        assert examined(*LOADS[1:], USES[1], LOADS[0], USES[0], "@P0 BRA #4", "@P1 BRA #0").loads == 1

    def test_nor_a_narrower_one_inside(self):
        assert examined(*LOADS, *USES, "LDG.E R4, [R2.64]", "FADD R0, R0, R4", "@P0 BRA #8", "@P1 BRA #0").loads == 2.5

    def test_way_that_loads_most(self):
        assert examined("@P1 BRA #5", *LOADS, "FADD R0, R0, R8", "@P0 BRA #0").loads == 4

    def test_jump_by_a_table(self):
        """To #3 and #5, which nothing else leads to."""
        body = [*LOADS[:2], "BRX R40 -0x30", "FADD R0, R0, R8", "BRA #6", "FADD R0, R0, R12", "@P0 BRA #0"]
        assert examined(*body).loads == 2


PARTIALS = [load.replace(".128", ".128.STRONG.GPU") for load in LOADS]


class TestSums:
    def test_ahead(self):
        found = examined(*PARTIALS, *USES, "@P0 BRA #0")
        assert found == loops.Loops(None, None, partials=4, divisions=0, fences=0)

    def test_one_at_a_time_with_a_division(self):
        assert examined(PARTIALS[0], "FCHK P0, R8, R9", USES[0], "@P0 BRA #0").partials == 1

    def test_fewest_count(self):
        other = [PARTIALS[0], USES[0], "@P0 BRA #9"]
        assert examined(*PARTIALS, *USES, "@P0 BRA #0", *other).partials == 1

    def test_asking_a_counter_is_none(self):
        assert (
            examined("NANOSLEEP 0x14", "LDG.E.STRONG.GPU R4, [R2.64]", "ISETP P0, R4, R5", "@P0 BRA #0").partials
            is None
        )


class TestDivisionsAndFences:
    @pytest.mark.parametrize(
        ("opcode", "divisions"),
        [
            ("FCHK P1, R4, R5", 1),
            ("MUFU.RCP64H R4, R5", 1),
            ("I2F.RP R4, R5", 1),
            ("I2F.U32.RP R4, R5", 1),
            ("MUFU.RCP R4, R5", 0),  # approximate
            ("I2F.S64 R4, R5", 0),
        ],
    )
    @pytest.mark.parametrize("loads", [LOADS, PARTIALS])
    def test_division(self, opcode, divisions, loads):
        assert examined(*loads, *USES, opcode, "@P0 BRA #0").divisions == divisions
        assert examined(*loads, *USES, "@P0 BRA #0", opcode).divisions == 0

    def test_division_in_a_branch(self):
        """Of an activation: not in the main loop's path. In sums it counts."""
        for loads, divisions in ((LOADS, 0), (PARTIALS, 1)):
            body = [*loads, "@P1 BRA #6", "FCHK P1, R4, R5", *USES, "@P0 BRA #0"]
            assert examined(*body).divisions == divisions

    @pytest.mark.parametrize(("opcode", "fences"), [("MEMBAR.ALL.GPU", 1), ("MEMBAR.SC.SYS", 1), ("MEMBAR.ALL.CTA", 0)])
    def test_fence(self, opcode, fences):
        assert examined(*LOADS, *USES, opcode, "@P0 BRA #0").fences == fences
        assert examined(*LOADS, *USES, "@P0 BRA #0", opcode, "@P1 BRA #0").fences == fences  # in the loop around it
        assert examined(*LOADS, *USES, "@P0 BRA #0", opcode).fences == 0


def test_most_threads():
    text = """\
.nv.info
\t<0x1>
\tAttribute:\tEIATTR_REGCOUNT
.nv.info._Z1fv
\t<0x4>
\tAttribute:\tEIATTR_MAX_THREADS
\tFormat:\tEIFMT_SVAL
\tValue:\t0x200 0x1 0x1\x20
.nv.info._Z1gv
\tAttribute:\tEIATTR_REGCOUNT
"""
    assert measure.parse_threads(text) == {"_Z1fv": 512}


@pytest.mark.parametrize(
    ("registers", "threads", "gpu", "resident"),
    [
        (128, 256, 90, 512),
        (129, 256, 90, 256),
        (32, 256, 90, 2048),
        (32, 256, 86, 1536),
        (32, 512, 75, 1024),
        (128, 512, 90, 512),
    ],
)
def test_resident_threads(registers, threads, gpu, resident):
    assert loop_rules.resident_threads(registers, threads, gpu) == resident


class TestRules:
    CODE = measure.MachineCode(0, 4, 4, narrow=0, instructions=1.0, alu=1.0, loops=loops.Loops(5, 80, 4, 0, 0))
    GOOD = measure.Measurement(128, 0, 0, 0, 0, threads=256, code=CODE)

    def failures(self, kernel="k<half, 8>", gpu=90, exceptions=(), **changes):
        changed = replace(self.CODE, loops=replace(self.CODE.loops, **changes))
        return loop_rules.failures(kernel, gpu, replace(self.GOOD, code=changed), exceptions)

    def test_good(self):
        assert self.failures() == []
        assert self.failures(bytes=math.inf) == []
        assert self.failures(bytes=None, loads=None, partials=None) == []

    def test_bytes(self):
        assert self.failures(bytes=64) == [
            "32.0 KB in flight on a multiprocessor in its main loop, at least 40 are wanted"
        ]
        assert self.failures(bytes=64, gpu=80) == self.failures("k<half, 1>", bytes=64) == []

    @pytest.mark.parametrize("gpu", [80, 90])
    def test_the_others(self, gpu):
        assert len(self.failures(partials=3, divisions=1, fences=1, gpu=gpu)) == 3

    def test_exceptions(self):
        allowed = [loop_rules.Allowed("k<", "fences", 2, "why"), loop_rules.Allowed("k<half", "partials", 2, "why")]
        assert self.failures(partials=2, fences=2, exceptions=allowed) == []
        assert len(self.failures(partials=1, fences=3, exceptions=allowed)) == 2
        assert len(self.failures("other<half, 8>", partials=2, fences=2, exceptions=allowed)) == 2

    @pytest.mark.parametrize("exception", loop_rules.EXCEPTIONS, ids=lambda e: f"{e.kernels}-{e.column}")
    def test_each_exception_is_needed(self, exception):
        """By a kernel of the table, which the exceptions before it do not let pass, and by none less."""
        values = [
            getattr(row, exception.column)
            for row in table.read().values()
            if loop_rules.allowed(row.kernel, exception.column, loop_rules.EXCEPTIONS)[:1] == [exception]
        ]
        values = [value for value in values if value is not None]
        worst = max if exception.column in {"divisions", "fences"} else min
        limits = {"divisions": 0, "fences": 0, "partials": loop_rules.LEAST_PARTIALS, "kilobytes": 40}
        assert worst([*values, limits[exception.column]]) != limits[exception.column]
