"""The table of what was measured, kept in the repository, and the rules for what is measured now."""

import csv
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tests.codegen import loop_rules
from tests.codegen.measure import has_wide_vectors

PATH = Path(__file__).with_name("table.tsv")
BUDGET = (
    64  # registers, for a kernel new to the table: four blocks of 256 threads a multiprocessor; 80: three, 128: two
)
MOST_KERNELS, MOST_SOURCES = 220, 12
MOST_GROWTH = 1.1  # of instructions per 8 elements
REDUCTIONS = {"batch_norm_moments_kernel", "batch_norm_grad_sums_kernel"}  # they need no 128-bit stores


@dataclass(frozen=True)
class Row:
    kernel: str
    gpu: int
    registers: int
    budget: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    instructions: float | None  # per 8 elements, in the main loop
    alu: float | None
    # See loop_rules.py.
    loads: float | None
    kilobytes: float | None
    partials: float | None
    divisions: float | None
    fences: float | None


OF_CODE = [field for field in fields(Row)[1:] if field.type is not int]


def read(path=PATH):
    """{(kernel, gpu): Row}."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [
            Row(
                record["kernel"],
                *(int(record[field.name]) for field in fields(Row)[1:] if field.type is int),
                *(float(record[field.name]) if record.get(field.name) else None for field in OF_CODE),
            )
            for record in csv.DictReader(file, delimiter="\t")
        ]
    return {(row.kernel, row.gpu): row for row in rows}


def write(rows, path=PATH):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)], delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(rows[key]) for key in sorted(rows))


def updated(table, measured):
    """table with what was measured in place of all rows of the same GPUs. Each kernel keeps its budget."""
    gpus = {gpu for _, gpu in measured}
    budgets = {row.kernel: row.budget for row in table.values()}
    rows = {key: row for key, row in table.items() if row.gpu not in gpus}
    for (kernel, gpu), m in measured.items():
        resources = (m.registers, budgets.get(kernel, BUDGET), m.shared, m.stack, m.spill_stores, m.spill_loads)
        of_code = [None] * len(OF_CODE)
        if m.code:
            of_code = [m.code.instructions, m.code.alu, *loop_rules.measured(m, gpu).values()]
        of_code = [None if value is None else round(value, 1) for value in of_code]
        rows[kernel, gpu] = Row(kernel, gpu, *resources, *of_code)
    return rows


def too_many(measured, sources):
    """What is wrong with the numbers of kernels and files."""
    counts = Counter(gpu for _, gpu in measured)
    wrong = [
        f"sm_{gpu}: {n} kernels, {MOST_KERNELS} are allowed" for gpu, n in sorted(counts.items()) if n > MOST_KERNELS
    ]
    if len(sources) > MOST_SOURCES:
        wrong.append(f"{len(sources)} .cu files, {MOST_SOURCES} are allowed")
    return wrong


def resource_failures(measured, table):
    """What breaks a rule for kernels, registers, stack and spills: one line each."""
    gpus = {gpu for _, gpu in measured}
    missing = [key for key in sorted(table) if key[1] in gpus and key not in measured]
    wrong = [f"{kernel} sm_{gpu}: in the table, but no such kernel was compiled" for kernel, gpu in missing]
    for (kernel, gpu), m in sorted(measured.items()):
        at = f"{kernel} sm_{gpu}:"
        row = table.get((kernel, gpu))
        if row is None:
            wrong.append(f"{at} not in the table")
        budget = row.budget if row else BUDGET
        if m.registers > budget:
            wrong.append(f"{at} {m.registers} registers, its budget is {budget}")
        if m.stack or m.spill_stores or m.spill_loads:
            wrong.append(
                f"{at} {m.stack} bytes of stack, {m.spill_stores} of spill stores, {m.spill_loads} of spill loads"
            )
    return wrong


def code_failures(measured, table):
    """What breaks a rule for the machine code, of kernels that were disassembled: one line each."""
    wrong = []
    for (kernel, gpu), m in sorted(measured.items()):
        at, code = f"{kernel} sm_{gpu}:", m.code
        if code is None:
            continue
        wrong += [f"{at} {line}" for line in loop_rules.failures(kernel, gpu, m)]
        if code.local:
            wrong.append(f"{at} {code.local} accesses to local memory")
        if not has_wide_vectors(kernel):
            continue
        if not code.wide_loads:
            wrong.append(f"{at} no 128-bit loads")
        if not code.wide_stores and kernel.split("<")[0] not in REDUCTIONS:
            wrong.append(f"{at} no 128-bit stores")
        if code.narrow:
            wrong.append(f"{at} {code.narrow} accesses of less than 128 bits in its main loop")
        row = table.get((kernel, gpu))
        before = row.instructions if row else None
        if before and (code.instructions is None or code.instructions > MOST_GROWTH * before):
            now = "not known" if code.instructions is None else f"{code.instructions:.1f}"
            wrong.append(f"{at} instructions per 8 elements were {before}, now {now}")
    return wrong


def differences(measured, table):
    """Numbers that differ from the table's: one line each. They are no failure."""
    lines = []
    for key, m in sorted(measured.items()):
        row = table.get(key)
        now = {"registers": m.registers, "shared": m.shared}
        if m.code and m.code.instructions:
            now["instructions"] = round(m.code.instructions, 1)
        if m.code:
            now |= {name: n and round(n, 1) for name, n in loop_rules.measured(m, key[1]).items()}
        changes = [f"{name} {getattr(row, name)} -> {n}" for name, n in now.items() if row and getattr(row, name) != n]
        if changes:
            lines.append(f"{key[0]} sm_{key[1]}: {', '.join(changes)}")
    return lines


def summary(measured):
    """One line for each GPU: how much was examined."""
    lines = []
    for gpu in sorted({gpu for _, gpu in measured}):
        own = {kernel: m for (kernel, of), m in measured.items() if of == gpu}
        line = f"sm_{gpu}: {len(own)} kernels, at most {max(m.registers for m in own.values())} registers"
        codes = [m.code for kernel, m in own.items() if has_wide_vectors(kernel)]
        undone = sum(m.code is None for m in own.values())
        found = sum(code is not None and code.narrow is not None for code in codes)
        line += f"; {len(codes)} with 16-byte vectors, main loop found in {found}"
        lines.append(line + (f"; MACHINE CODE OF {undone} NOT CHECKED: no cuobjdump" if undone else ""))
    return lines
