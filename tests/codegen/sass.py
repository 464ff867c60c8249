"""Reading machine code: from the text of `cuobjdump -sass` to a kernel's main loop.

The main loop. A streaming kernel's loop holds more than what runs each time: tails, slow paths, a second random draw.
So its instructions are counted along a path. For each loop, take the cycles through its head with the most 128-bit
accesses, and of these the one with the fewest instructions: it passes by everything that moves no full vector. Leave
out loops around another one with such accesses; of the rest the main loop is the one with the most of them: the
unrolled loop, not the one for what is left over. No path leads through a call. Predicated instructions count: they
take their issue slot either way. What other blocks have written (.STRONG) is not part of a stream. Of two ways that
move the same vectors the shorter counts: in batch_norm_grad_input_kernel, whose loads of x are predicated, evaluation.
"""

import heapq
import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
# For the newest architectures scheduling hints follow: &req={2} ?trans5.
INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) +)?([A-Z][\w.]*)\s*(.*?)\s*(?: [&?][^;]*)?;", re.MULTILINE
)
TARGET = re.compile(r"0x([0-9a-f]+)$")

# Instructions of the ALU pipe: logic, shifts, comparisons, selection, integer addition, packing of 16-bit floats
# (Nsight Compute's documentation, "pipelines"). IMAD in its many uses, FP16 and FP32 arithmetic have another pipe,
# instructions that begin with U the uniform one.
ALU = re.compile(
    "BMSK|F2FP|FMNMX|FSEL|FSET|FSETP|I2IP|IABS|IADD3|IMNMX|ISETP|LEA|LOP3|MOV|P2R|PLOP3|PRMT|R2P|SEL|SGXT|SHF|VABSDIFF|"
    "VIADD|VIADDMNMX|VIMNMX|VIMNMX3"
)
LOADS = {"LDG", "LD", "LDGSTS"}
STORES = {"STG", "ST"}
LOCAL = {"LDL", "STL"}
ENDS = {"EXIT", "RET", "CALL", "BRX", "BRXU", "JMP", "JMX", "JMXU"}  # no path goes on from here


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str | None
    opcode: str  # with its modifiers, such as LDG.E.128
    operands: str

    @cached_property
    def name(self):
        return self.opcode.split(".")[0]

    @cached_property
    def target(self):
        """Where a branch goes, else None. A call of the next instruction but one is the way out of a loop (sm_80)."""
        target = TARGET.search(self.operands) if self.name in {"BRA", "CALL"} else None
        is_branch = target and (self.name == "BRA" or int(target[1], 16) == self.address + 0x20)
        return int(target[1], 16) if is_branch else None

    @cached_property
    def falls_through(self):
        if self.name == "BRA":
            return self.opcode != "BRA" or self.predicate is not None or "," in self.operands
        return self.name not in ENDS or self.predicate is not None

    @cached_property
    def streams(self):
        """Bits that it moves from or to global memory as part of a stream, at most 128; else 0."""
        modifiers = self.opcode.split(".")[1:]
        if self.name not in LOADS | STORES or "STRONG" in modifiers:
            return 0
        return next((width for width in (128, 64) if str(width) in modifiers), 8 if "U8" in modifiers else 32)


def parse(text):
    """{mangled name: [Instruction]}."""
    pieces = FUNCTION.split(text)
    return {
        name: [Instruction(int(m[1], 16), m[2], m[3], m[4]) for m in INSTRUCTION.finditer(body)]
        for name, body in zip(pieces[1::2], pieces[2::2], strict=True)
    }


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    instructions: list[Instruction]
    successors: list[int]


def blocks(instructions):
    """The basic blocks in the order of their addresses. After BSYNC threads go on behind it, where BSSY said.

    A jump by a table (BRX) leads to the blocks behind it, up to the next one's, that nothing else leads to, but for
    those that a call returns to.
    """
    addresses = [i.address for i in instructions]
    cuts = {0, len(instructions)}
    for at, instruction in enumerate(instructions):
        if instruction.target is not None:
            cuts |= {at + 1, bisect_left(addresses, instruction.target)}
        elif not instruction.falls_through:
            cuts.add(at + 1)
    cuts = sorted(cuts)
    result = []
    for number, (begin, end) in enumerate(pairwise(cuts)):
        last = instructions[end - 1]
        successors = [number + 1] if last.falls_through and end < len(instructions) else []
        if last.target is not None:
            successors.append(bisect_left(cuts, bisect_left(addresses, last.target)))
        result.append(Block(instructions[begin:end], successors))
    reached = {0, *(successor for block in result for successor in block.successors)}
    reached |= {number + 1 for number, block in enumerate(result) if block.instructions[-1].name == "CALL"}
    table = []  # successors of the last jump by a table
    for number, block in enumerate(result):
        if number not in reached:
            table.append(number)
        if block.instructions[-1].name in {"BRX", "BRXU"}:
            table = block.successors
    return result


def loops_of(graph):
    """{head: blocks} for each target of a branch back: those that lead to the branch without passing the target.

    Where a call is in between, the target leads to none of them, and there is no loop.
    """
    predecessors = [[] for _ in graph]
    for number, block in enumerate(graph):
        for successor in block.successors:
            predecessors[successor].append(number)
    loops = {}
    for number, block in enumerate(graph):
        for head in (s for s in block.successors if s <= number):
            body, queue = {head, number}, [number] if number != head else []
            while queue:
                new = set(predecessors[queue.pop()]) - body
                body |= new
                queue += new
            loops[head] = loops.get(head, set()) | body
    return loops


def cheapest_cycle(graph, head, body, worth):
    """Of the cycles from head through body whose blocks are worth most, the shortest: its blocks, none without one.

    A cycle passes no block twice: it does not go round a loop inside of it.
    """
    distance, previous = {}, {}

    def path_to(state):
        path = []
        while state is not None:
            path.append(state[0])
            state = previous[state]
        return path[::-1]

    best = (-1, 0, None)  # worth, minus length, last state
    queue = [(0, head, 0, None)]
    while queue:
        length, number, of_path, origin = heapq.heappop(queue)
        if number == head and origin is not None:
            best = max(best, (of_path, -length, origin), key=lambda cycle: cycle[:2])
            continue
        state = (number, of_path)
        if state in distance:
            continue
        distance[state], previous[state] = length, origin
        block = graph[number]
        passed = set(path_to(state)) - {head}
        for successor in body.intersection(block.successors) - passed:
            heapq.heappush(queue, (length + len(block.instructions), successor, of_path + worth[number], state))
    return path_to(best[2])


def main_loop(instructions):
    """The instructions of the main loop in the order of a pass, or None where no loop has 128-bit accesses."""
    graph = blocks(instructions)
    wide = [wide_accesses(block.instructions) for block in graph]
    loops = {frozenset(body): head for head, body in loops_of(graph).items() if any(wide[number] for number in body)}
    cycles = [
        [i for number in cheapest_cycle(graph, loops[body], body, wide) for i in graph[number].instructions]
        for body in innermost(loops)
    ]
    cycles = [cycle for cycle in cycles if wide_accesses(cycle)]
    return max(cycles, key=lambda cycle: (wide_accesses(cycle), -len(cycle)), default=None)


def innermost(bodies):
    """Of loops those without another one inside."""
    return [body for body in bodies if not any(other < body for other in bodies)]


def wide_accesses(instructions, kinds=LOADS | STORES):
    """How many of them stream 128 bits."""
    return sum(i.streams == 128 and i.name in kinds for i in instructions)
