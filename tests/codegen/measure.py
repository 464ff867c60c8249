"""What nvcc made of each kernel: one Measurement per kernel and architecture."""

import re
from dataclasses import dataclass, replace

from tests.codegen import loops, sass, toolchain

ELEMENT_BYTES = {"float": 4, "double": 8, "half": 2, "bfloat16": 2}
RESOURCES = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_\d+\w?'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<spill_stores>\d+) bytes spill stores, "
    r"(?P<spill_loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
SHARED = re.compile(r"(\d+) bytes smem")
INFORMATION = re.compile(r"^\.nv\.info\.(\w+)$", re.MULTILINE)
MOST_THREADS = re.compile(r"EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+(0x[0-9a-f]+) ")


@dataclass(frozen=True)
class MachineCode:
    local: int  # accesses to local memory
    wide_loads: int  # accesses of 128 bits
    wide_stores: int
    narrow: int | None  # narrower ones in the main loop; None: there is no loop with 128-bit accesses
    instructions: float | None  # in the main loop, per 8 elements that it stores; None: it stores none
    alu: float | None  # of these on the ALU pipe
    loops: loops.Loops


@dataclass(frozen=True)
class Measurement:
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    threads: int = 256  # of a block, at most
    code: MachineCode | None = None  # None: not disassembled


def parse_resources(log):
    """{mangled name: Measurement} from what `ptxas -v` says."""
    found = {}
    for match in RESOURCES.finditer(log):
        shared = SHARED.search(match["rest"])
        numbers = {key: int(match[key]) for key in ("registers", "stack", "spill_stores", "spill_loads")}
        found[match["name"]] = Measurement(shared=int(shared[1]) if shared else 0, **numbers)
    return found


def parse_threads(text):
    """{mangled name: threads of a block, at most} from what `cuobjdump -elf` writes, of kernels that say it."""
    pieces = INFORMATION.split(text)
    found = {name: MOST_THREADS.search(body) for name, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    return {name: int(match[1], 16) for name, match in found.items() if match}


def warnings(log):
    return [line for line in log.splitlines() if re.search(r"\bwarning( #| ?:)", line)]


def vector_width(kernel):
    """V of a kernel<T, V, ...>, else None."""
    match = re.match(r"\w+<(\w+), (\d+)[,>]", kernel)
    return int(match[2]) if match and match[1] in ELEMENT_BYTES else None


def has_wide_vectors(kernel):
    width = vector_width(kernel)
    return width is not None and width * ELEMENT_BYTES[kernel.split("<")[1].split(",")[0]] == 16


def narrow_accesses(loop, width):
    """How many of less than 128 bits a loop has, but for gates.

    The gates of a vector of eight or four elements are in one byte, and no element is: so many bytes as vectors are
    loaded count for nothing there. Whether the loop's path passes by them is the compiler's choice, a branch or a
    predicate.
    """
    gates = sum(i.streams == 8 for i in loop)
    vectors = sass.wide_accesses(loop, sass.LOADS) if width in (4, 8) else 0
    return sum(0 < i.streams < 128 for i in loop) - min(gates, vectors)


def examine(kernel, instructions):
    """MachineCode of a kernel."""
    counts = {
        "local": sum(i.name in sass.LOCAL for i in instructions),
        "wide_loads": sass.wide_accesses(instructions, sass.LOADS),
        "wide_stores": sass.wide_accesses(instructions, sass.STORES),
        "loops": loops.examine(instructions),
    }
    loop = sass.main_loop(instructions) if has_wide_vectors(kernel) else None
    if loop is None:
        return MachineCode(**counts, narrow=None, instructions=None, alu=None)
    narrow = narrow_accesses(loop, vector_width(kernel))
    stored = sass.wide_accesses(loop, sass.STORES) * vector_width(kernel)
    if not stored:
        return MachineCode(**counts, narrow=narrow, instructions=None, alu=None)
    alu = sum(bool(sass.ALU.fullmatch(i.name)) for i in loop)
    return MachineCode(**counts, narrow=narrow, instructions=8 * len(loop) / stored, alu=8 * alu / stored)


def measure(compiled):
    """{(kernel, gpu): Measurement} of what was compiled, its machine code included where there is a disassembler."""
    resources = parse_resources(compiled.log)
    kernels = dict(zip(resources, toolchain.demangle(resources), strict=True))
    code, threads = {}, {}
    if toolchain.find_disassembler():
        bodies = sass.parse(toolchain.disassemble(compiled))
        code = {name: examine(kernels[name], body) for name, body in bodies.items()}
        threads = parse_threads(toolchain.dump_information(compiled))
    return {
        (kernels[name], compiled.gpu): replace(
            found, code=code.get(name), threads=threads.get(name, Measurement.threads)
        )
        for name, found in resources.items()
    }
