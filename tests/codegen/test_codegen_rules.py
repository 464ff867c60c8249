"""The rules of tests/codegen, and its reading of what nvcc and cuobjdump write: on captured text, without nvcc."""

from dataclasses import replace

import pytest

from tests.codegen import loops, measure, sass, table, toolchain

# ---- The rules ----

GOOD_LOOPS = loops.Loops(loads=4, bytes=64, partials=None, divisions=0, fences=0)
GOOD_CODE = measure.MachineCode(
    0, wide_loads=4, wide_stores=4, narrow=0, instructions=100.0, alu=50.0, loops=GOOD_LOOPS
)
GOOD = measure.Measurement(registers=40, shared=0, stack=0, spill_stores=0, spill_loads=0, code=GOOD_CODE)
WIDE, OTHER, SUMS = (
    ("wide_kernel<half, 8>", 80),
    ("other_kernel<half, 1>", 80),
    ("batch_norm_moments_kernel<half, 8>", 80),
)


class TestRules:
    ALL = {WIDE: GOOD, OTHER: GOOD, SUMS: GOOD}
    TABLE = table.updated({}, ALL)

    def failures(self, kernel=WIDE, **changes):
        """What is said of one kernel when its numbers change."""
        code = replace(GOOD_CODE, **{name: changes.pop(name) for name in list(changes) if hasattr(GOOD_CODE, name)})
        now = {**self.ALL, kernel: replace(GOOD, **changes, code=code)}
        lines = table.resource_failures(now, self.TABLE) + table.code_failures(now, self.TABLE)
        assert all(line.startswith(f"{kernel[0]} sm_{kernel[1]}: ") for line in lines)
        return [line.split(": ", 1)[1] for line in lines]

    def test_nothing_to_say(self):
        assert self.failures() == []
        assert table.differences(self.ALL, self.TABLE) == []

    @pytest.mark.parametrize("kernel", [WIDE, OTHER, SUMS])
    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"registers": 65}, "65 registers, its budget is 64"),
            ({"stack": 8}, "8 bytes of stack, 0 of spill stores, 0 of spill loads"),
            ({"spill_stores": 4}, "0 bytes of stack, 4 of spill stores, 0 of spill loads"),
            ({"spill_loads": 4}, "0 bytes of stack, 0 of spill stores, 4 of spill loads"),
            ({"local": 2}, "2 accesses to local memory"),
        ],
    )
    def test_any_kernel(self, kernel, changes, line):
        assert self.failures(kernel, **changes) == [line]

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"wide_loads": 0}, "no 128-bit loads"),
            ({"wide_stores": 0}, "no 128-bit stores"),
            ({"narrow": 1}, "1 accesses of less than 128 bits in its main loop"),
            ({"instructions": 110.1}, "instructions per 8 elements were 100.0, now 110.1"),
            ({"instructions": None}, "instructions per 8 elements were 100.0, now not known"),
        ],
    )
    def test_kernel_with_16_byte_vectors(self, changes, line):
        assert self.failures(WIDE, **changes) == [line]
        if "instructions" not in changes:
            assert self.failures(OTHER, **changes) == []
            assert self.failures(SUMS, **changes) == ([] if "wide_stores" in changes else [line])

    def test_within_bounds(self):
        assert self.failures(registers=64, shared=1024, instructions=110.0) == []

    def test_kernel_without_row(self):
        rows = {key: row for key, row in self.TABLE.items() if key != WIDE}
        assert table.resource_failures(self.ALL, rows) == [f"{WIDE[0]} sm_80: not in the table"]

    def test_row_without_kernel(self):
        now = {WIDE: GOOD, SUMS: GOOD}
        line = f"{OTHER[0]} sm_80: in the table, but no such kernel was compiled"
        assert table.resource_failures(now, self.TABLE) == [line]

    def test_rows_of_other_gpus_do_not_matter(self):
        rows = self.TABLE | table.updated({}, {("gone_kernel", 120): GOOD})
        assert table.resource_failures(self.ALL, rows) == []

    def test_too_many(self):
        many = {(f"kernel_{n}", 80): GOOD for n in range(221)}
        assert table.too_many(many, ["a.cu"] * 13) == [
            "sm_80: 221 kernels, 220 are allowed",
            "13 .cu files, 12 are allowed",
        ]
        many[("kernel_0", 90)] = many.pop(("kernel_0", 80))
        assert table.too_many(many, ["a.cu"] * 12) == []

    def test_differences_are_told(self):
        now = {**self.ALL, WIDE: replace(GOOD, registers=41, code=replace(GOOD_CODE, instructions=99.0))}
        line = "wide_kernel<half, 8> sm_80: registers 40 -> 41, instructions 100.0 -> 99.0, kilobytes 96.0 -> 80.0"
        assert table.differences(now, self.TABLE) == [line]

    def test_not_disassembled_is_told(self):
        now = {key: replace(m, code=None) for key, m in self.ALL.items()}
        assert table.code_failures(now, self.TABLE) == []
        (line,) = table.summary(now)
        assert "MACHINE CODE OF 3 NOT CHECKED: no cuobjdump" in line

    def test_update_keeps_budgets_and_other_gpus(self):
        rows = {key: replace(row, budget=80) for key, row in self.TABLE.items()}
        rows |= table.updated({}, {("a_kernel", 120): GOOD})
        changed = replace(GOOD, registers=70)
        rows = table.updated(rows, {WIDE: changed, (WIDE[0], 90): GOOD, ("new_kernel", 80): GOOD})
        assert {key: (row.registers, row.budget) for key, row in rows.items()} == {
            WIDE: (70, 80),
            (WIDE[0], 90): (40, 80),
            ("new_kernel", 80): (40, 64),
            ("a_kernel", 120): (40, 64),
        }

    def test_file(self, tmp_path):
        table.write(self.TABLE, tmp_path / "table.tsv")
        assert table.read(tmp_path / "table.tsv") == self.TABLE
        assert table.read(tmp_path / "absent.tsv") == {}


# ---- Reading what nvcc and cuobjdump write ----


@pytest.mark.parametrize(
    ("demangled", "expected"),
    [
        (
            "void fastreg::dropout_kernel<float, 4, true>(float const*, fastreg::IndexMap)",
            "dropout_kernel<float, 4, true>",
        ),
        ("void fastreg::k<fastreg::half, (fastreg::Mode)1>(fastreg::half*)", "k<half, (Mode)1>"),
        ("fastreg::(anonymous namespace)::fill_kernel(int)", "fill_kernel"),
    ],
)
def test_short_name(demangled, expected):
    assert toolchain.short_name(demangled) == expected


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("k<float, 4, true>", True),
        ("k<bfloat16, 8>", True),
        ("k<double, 2>", True),
        ("k<half, 4>", False),
        ("k<double, 1, true>", False),
        ("k<true, 8>", False),
        ("k", False),
    ],
)
def test_has_wide_vectors(kernel, expected):
    assert measure.has_wide_vectors(kernel) is expected


PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4firstv' for 'sm_80'
ptxas info    : Function properties for _Z4firstv
    880 bytes stack frame, 872 bytes spill stores, 876 bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 4096 bytes smem, 456 bytes cmem[0]
ptxas info    : Compile time = 209.072 ms
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_90a'
ptxas info    : Function properties for _Z6secondv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_parse_resources():
    assert measure.parse_resources(PTXAS) == {
        "_Z4firstv": measure.Measurement(registers=62, shared=4096, stack=880, spill_stores=872, spill_loads=876),
        "_Z6secondv": measure.Measurement(registers=8, shared=0, stack=0, spill_stores=0, spill_loads=0),
    }


def test_warnings():
    lines = [
        'a.cu(5): warning #177-D: variable "a" was declared but never referenced',
        "a.cu:11:51: warning: comparison of integer expressions of different signedness",
        "ptxas warning : Value of threads per SM for entry f is out of range",
        "nvcc warning : incompatible redefinition",
    ]
    said = [*lines, 'Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"']
    assert measure.warnings(PTXAS + "\n".join(said)) == lines


# A loop (0x10 to 0xa0) with a tail that skips the wide accesses, an inner loop for it, and a slow path through a call;
# then another loop with one wide access, and a scalar one.
LISTING = """\
	code for sm_80
		Function : _Z1kv
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                        /* 0x00000a0000017a02 */
                                                                                 /* 0x000fe40000000f00 */
        /*0010*/                   ISETP.GE.AND P0, PT, R0, R2, PT ;             /* 0x1 */
        /*0020*/              @!P0 BRA 0x60 ;                                    /* 0x1 */
        /*0030*/                   LDG.E.U16 R4, [R2.64] ;                       /* 0x1 */
        /*0040*/               @P1 BRA 0x30 ;                                    /* 0x1 */
        /*0050*/                   BRA 0xa0 ;                                    /* 0x1 */
        /*0060*/               @P2 LDG.E.EF.128 R4, desc[UR6][R2.64+0x10] ;      /* 0x1 */
        /*0070*/              @!P3 BRA 0x90 ;                                    /* 0x1 */
        /*0080*/                   CALL.REL.NOINC 0x110 ;                        /* 0x1 */
        /*0090*/                   STG.E.EF.128 [R2.64], R4 ;                    /* 0x1 */
        /*00a0*/               @P4 BRA 0x10         &req={2}      ?trans5;       /* 0x1 */
        /*00b0*/                   LDG.E.128.STRONG.GPU R4, [R2.64] ;            /* 0x1 */
        /*00c0*/                   LDG.E.LTC128B R4, [R2.64] ;                   /* 0x1 */
        /*00d0*/                   STG.E.128 [R2.64], R4 &wr=0x0 ?WAIT5 ;        /* 0x1 */
        /*00e0*/              @!P0 BRA P1, 0xb0 ;                                /* 0x1 */
        /*00f0*/                   EXIT ;                                        /* 0x1 */
        /*0100*/                   BRA 0x100;                                    /* 0x1 */
        /*0110*/                   RET.REL.NODEC R2 0x0 ;                        /* 0x1 */
		Function : _Z1gv
        /*0000*/                   LDG.E R4, [R2.64] ;                           /* 0x1 */
        /*0010*/               @P0 BRA 0x0 ;                                     /* 0x1 */
        /*0020*/                   EXIT ;                                        /* 0x1 */
"""


class TestSass:
    KERNELS = sass.parse(LISTING)

    def test_parse(self):
        assert {name: len(body) for name, body in self.KERNELS.items()} == {"_Z1kv": 18, "_Z1gv": 3}
        load = self.KERNELS["_Z1kv"][6]
        assert load == sass.Instruction(0x60, "P2", "LDG.E.EF.128", "R4, desc[UR6][R2.64+0x10]")

    def test_blocks(self):
        graph = sass.blocks(self.KERNELS["_Z1kv"])
        starts = [block.instructions[0].address for block in graph]
        follow = [[starts[s] for s in block.successors] for block in graph]
        assert dict(zip(starts, follow, strict=True)) == {
            0x00: [0x10],
            0x10: [0x30, 0x60],
            0x30: [0x50, 0x30],
            0x50: [0xA0],
            0x60: [0x80, 0x90],
            0x80: [],
            0x90: [0xA0],
            0xA0: [0xB0, 0x10],
            0xB0: [0xF0, 0xB0],
            0xF0: [],
            0x100: [0x100],
            0x110: [],
        }

    def test_main_loop(self):
        loop = sass.main_loop(self.KERNELS["_Z1kv"])
        assert [i.address for i in loop] == [0x10, 0x20, 0x60, 0x70, 0x90, 0xA0]
        assert sass.main_loop(self.KERNELS["_Z1gv"]) is None

    def test_inner_loop_before_outer(self):
        inner = "LDG.E.128 R4, [R2.64]", "@P0 BRA 0x10", "@P1 BRA 0x0"
        lines = ["MOV R0, R1", *inner, "EXIT"]
        listing = "".join(f"/*{16 * at:04x}*/ {line} ;\n" for at, line in enumerate(lines))
        loop = sass.main_loop(sass.parse("Function : f\n" + listing)["f"])
        assert [i.address for i in loop] == [0x10, 0x20]

    def test_loop_left_by_a_call(self):
        lines = [
            "LDG.E.128 R4, [R2]",
            "@P0 CALL.REL.NOINC 0x30",
            "BRA 0x10",
            "STG.E.128 [R2], R4",
            "@P1 BRA 0x0",
            "EXIT",
        ]
        listing = "".join(f"/*{16 * at:04x}*/ {line} ;\n" for at, line in enumerate(lines))
        loop = sass.main_loop(sass.parse("Function : f\n" + listing)["f"])
        assert [i.address for i in loop] == [0x00, 0x10, 0x30, 0x40]

    def test_widths(self):
        kernel = self.KERNELS["_Z1kv"]
        streams = {i.address: i.streams for i in kernel if i.name in sass.LOADS | sass.STORES}
        assert streams == {0x30: 32, 0x60: 128, 0x90: 128, 0xB0: 0, 0xC0: 32, 0xD0: 128}

    def test_examine(self):
        code = measure.examine("k<half, 8>", self.KERNELS["_Z1kv"])
        assert replace(code, loops=None) == measure.MachineCode(
            0, 1, 2, narrow=0, instructions=6.0, alu=1.0, loops=None
        )
        # Not a kernel of 16-byte vectors: it is not asked for its main loop.
        assert measure.examine("k<half, 1>", self.KERNELS["_Z1kv"]).instructions is None

    @pytest.mark.parametrize(
        ("kernel", "narrow", "expected"),
        [
            ("k<half, 8>", ["@P1 LDG.E.U8 R8, [R6]"], 0),
            ("k<half, 8>", ["LDG.E.U8 R8, [R6]", "STG.E.U8 [R6], R8"], 1),
            ("k<half, 8>", ["LDG.E.U16 R8, [R6]"], 1),
            ("k<half, 8>", ["LDG.E R8, [R6]", "LDG.E.U8 R9, [R6]"], 1),
            ("k<float, 4>", ["LDG.E.U8 R8, [R6]"], 0),
            ("k<double, 2>", ["LDG.E.U8 R8, [R6]"], 1),
        ],
    )
    def test_gates_are_a_byte_for_eight(self, kernel, narrow, expected):
        lines = ["LDG.E.128 R4, [R2]", *narrow, "STG.E.128 [R2], R4", "@P0 BRA 0x0", "EXIT"]
        listing = "".join(f"/*{16 * at:04x}*/ {line} ;\n" for at, line in enumerate(lines))
        assert measure.examine(kernel, sass.parse("Function : f\n" + listing)["f"]).narrow == expected

    def test_local_memory(self):
        listing = LISTING.replace("LDG.E R4", "LDL R4")
        assert measure.examine("g", sass.parse(listing)["_Z1gv"]).local == 1
