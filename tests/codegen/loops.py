"""What a kernel's loops over memory wait for: loads in flight, divisions and fences.

In flight. A thread issues loads one after the other and stops at the first instruction that names a register of one
that has not arrived. What is in flight then arrives during that one wait: a trip. Along the cycle through a loop that
loads most (the shortest of these), bytes and loads in flight are the average of its trips. Copies to shared memory
(LDGSTS) have no register; where their loop does not wait for them, as many are in flight as shared memory holds.

The main loop here is the one with most in flight, of those with the widest loads and without such a loop inside. Loops
that ask a counter until it has a value (with a NANOSLEEP) are not over memory. Those that sum what other blocks have
written (.STRONG) are judged apart: the one with the fewest loads in flight counts.

Divisions. Of fp32 by the check for operands that need the slow path (FCHK), of fp64 and of integers by the reciprocal
that they begin with. Activations divide, too, in branches: in the main loop its path counts, in sums all of the loop.

Fences. Those of the whole GPU: they wait until all that the thread has written has reached L2. They count in every
loop that loads from memory, or that has such a loop inside.
"""

import math
import re
from dataclasses import dataclass

from tests.codegen import sass

REGISTER = re.compile(r"\bR(\d+)(\.64)?")
DIVISION = re.compile(r"FCHK|MUFU\.RCP64H|I2F\.\w*\.?RP")
FENCE = re.compile(r"MEMBAR\.(\w+\.)?(GPU|SYS)")
GENERAL_WAITS = {"DEPBAR", "LDGDEPBAR", "ARRIVES"}  # for copies to shared memory


@dataclass(frozen=True)
class Loops:
    loads: float | None  # in flight in the main loop; None: no loop loads
    bytes: float | None  # the same in bytes, of a thread
    partials: float | None  # loads in flight in sums of what other blocks wrote; None: there are none
    divisions: int
    fences: int


@dataclass(frozen=True)
class Trips:
    loads: float
    bytes: float


def width_of(load):
    """Bytes that a load moves."""
    modifiers = load.opcode.split(".")[1:]
    widths = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[modifier] for modifier in modifiers if modifier in widths), 4)


def is_load(instruction):
    return instruction.name in sass.LOADS


def is_strong(instruction):
    return "STRONG" in instruction.opcode.split(".")


def registers(text, width=4):
    """Numbers of the registers that are named, of the first as many as hold `width` bytes."""
    found = set()
    for match in REGISTER.finditer(text):
        first = int(match[1])
        found |= set(range(first, first + (2 if match[2] else 1)))
    first = REGISTER.match(text)
    return found | set(range(int(first[1]), int(first[1]) + max(1, width // 4))) if first else found


def trips_of(cycle):
    """Trips of a cycle in its steady state: it is walked twice, and the second time counts."""
    flying, trips = {}, []  # first register: load
    copies = [i for i in cycle if i.name == "LDGSTS"]
    if copies and not any(i.name in GENERAL_WAITS for i in cycle):
        return Trips(math.inf, math.inf)
    for number, instruction in enumerate(2 * cycle):
        loads = instruction.name in {"LDG", "LD"}
        destination, _, rest = instruction.operands.partition(",")
        named = registers(rest if loads else instruction.operands)
        written = registers(destination, width_of(instruction)) if loads else set()
        taken = {r for first, load in flying.items() for r in registers(f"R{first}", width_of(load))}
        # Two loads under predicates into the same register: one or the other.
        either = loads and instruction.predicate and min(written, default=None) in flying
        if flying and (named & taken or (written & taken and not either)):
            if number >= len(cycle):
                trips.append(list(flying.values()))
            flying = {}
        if loads and written:
            flying[min(written)] = instruction
        elif instruction.name == "LDGSTS":
            flying[-1 - number] = instruction
        elif instruction.name in GENERAL_WAITS and any(first < 0 for first in flying):
            if number >= len(cycle):
                trips.append(list(flying.values()))
            flying = {}
    if not trips:
        trips = [list(flying.values())]
    return Trips(
        sum(len(trip) for trip in trips) / len(trips),
        sum(width_of(load) for trip in trips for load in trip) / len(trips),
    )


def examine(instructions):
    """Loops of a kernel."""
    graph = sass.blocks(instructions)

    def in_order(numbers):
        return [i for number in numbers for i in graph[number].instructions]

    bodies = {frozenset(body): head for head, body in sass.loops_of(graph).items()}
    loaded = [sum(width_of(i) for i in block.instructions if is_load(i)) for block in graph]
    asking = [body for body in bodies if any(i.name == "NANOSLEEP" for i in in_order(body))]
    over_memory = [body for body in bodies if body not in sass.innermost(asking) and any(loaded[n] for n in body)]
    sums = [in_order(sorted(body)) for body in sass.innermost(over_memory)]
    sums = [body for body in sums if any(is_load(i) and is_strong(i) for i in body)]
    streams = {body: [i for i in in_order(body) if is_load(i) and not is_strong(i)] for body in over_memory}
    widest = max((width_of(i) for loads in streams.values() for i in loads), default=0)
    streams = sass.innermost([body for body, loads in streams.items() if any(width_of(i) == widest for i in loads)])
    cycles = [in_order(sass.cheapest_cycle(graph, bodies[body], body, loaded)) for body in streams]
    # Where every way round leads through a call, there is no cycle.
    trips, main = max(((trips_of(cycle), cycle) for cycle in cycles if cycle), key=most_in_flight, default=(None, []))
    return Loops(
        loads=trips and trips.loads,
        bytes=trips and trips.bytes,
        partials=min((trips_of(body).loads for body in sums), default=None),
        divisions=sum(bool(DIVISION.match(i.opcode)) for loop in [main, *sums] for i in loop),
        fences=len({i.address for body in over_memory for i in in_order(body) if FENCE.fullmatch(i.opcode)}),
    )


def most_in_flight(loop):
    trips, cycle = loop
    return trips.bytes, -len(cycle)
