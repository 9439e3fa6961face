"""What a compiled program says of itself: its collectives, its loops and the compiler's estimates.

Read from the text of the optimised HLO, since no interface gives these: loops are walked as often
as they turn, which the compiler's own cost analysis does not do.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}
_ABSURD = 2**50  # cycles: the compiler's way to say that it does not know


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Args:
      name: without `%`.
      type: of the result, as text.
      opcode: such as `fusion`.
      rest: operands and attributes.
    """

    name: str
    type: str
    opcode: str
    rest: str

    def called(self, attribute: str) -> list[str]:
        """Returns the computations that an attribute names."""
        found = re.findall(attribute + r"=(?:\{([^}]*)\}|%?([\w.\-]+))", self.rest)
        return [
            name.strip().lstrip("%") for pair in found for name in (pair[0] or pair[1]).split(",")
        ]

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def cycles(self) -> int | None:
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match and int(match[1]) < _ABSURD else None


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind in a step, as a device sees them.

    Args:
      count: of them, each turn of a loop by itself.
      bytes: that each device sends.
      slow_bytes: of those, between slices.
    """

    count: int = 0
    bytes: float = 0.0
    slow_bytes: float = 0.0


@dataclasses.dataclass
class Program:
    """What `read` finds.

    Args:
      collectives: by kind.
      cycles: estimated, of everything that has an estimate.
      kernels: calls of Pallas kernels, which have none.
      unknown_loops: loops whose turns could not be read, and are counted as one.
      heaviest: `(cycles, times, type, op_name)` of the operations with most cycles, sorted.
    """

    collectives: dict[str, Traffic]
    cycles: int
    kernels: int
    unknown_loops: int
    heaviest: list[tuple[int, int, str, str]]


def read(text: str, *, slice_of: Sequence[int] | None = None) -> Program:
    """Walks a program from its entry, each loop as often as it turns.

    Args:
      text: of `compiled.as_text()`.
      slice_of: the slice of each device, in the order of the mesh; None if there is only one.
    """
    computations, entry = _computations(text)
    found = Program({}, 0, 0, 0, [])
    cycles: collections.Counter = collections.Counter()
    times: collections.Counter = collections.Counter()

    def collective(
        each: Instruction, where: str, turns: int, seen: dict[tuple, str], *, scattered: bool
    ) -> None:
        kind = each.opcode.removesuffix("-start")
        if kind not in KINDS:
            return
        # Where a collective runs beside other work its text is repeated in several computations.
        channel = re.search(r"channel_id=(\d+)", each.rest)
        key = (kind, channel[1] if channel else each.name)
        if seen.setdefault(key, where) != where:
            return
        sizes = list(sizes_of(each.type))
        size = (max(sizes) if each.opcode.endswith("-start") else sum(sizes)) if sizes else 0
        groups = groups_of(each.rest)
        members = len(groups[0]) if groups else 1
        if kind == "reduce-scatter":
            size *= members
        sent = size * (members - 1) / members if kind in KINDS[:5] else size
        if kind == "all-reduce" and scattered:
            kind = "reduce-scatter"  # each device keeps a part of the sum: half of it is not sent
        elif kind == "all-reduce":
            sent *= 2
        traffic = found.collectives.setdefault(kind, Traffic())
        traffic.count += turns
        traffic.bytes += sent * turns
        if slice_of and any(len({slice_of[at] for at in group}) > 1 for group in groups):
            traffic.slow_bytes += sent * turns

    def inside(name: str, turns: int, seen: dict[tuple, str], scattered: bool) -> None:
        for each in computations.get(name, ()):
            collective(each, name, turns, seen, scattered=scattered)
            if each.opcode in ("fusion", "call", "async-start"):
                for called in (*each.called("calls"), *each.called("to_apply")):
                    inside(called, turns, seen, scattered)

    def walk(name: str, turns: int) -> None:
        seen: dict[tuple, str] = {}
        for each in computations.get(name, ()):
            collective(each, name, turns, seen, scattered=False)
            if each.cycles is not None:
                cycles[each.type, each.op_name] += each.cycles * turns
                times[each.type, each.op_name] += turns
            elif each.opcode == "custom-call" and "tpu_custom_call" in each.rest:
                found.kernels += turns
            if each.opcode == "while":
                body, condition = each.called("body")[0], each.called("condition")[0]
                count = _turns(each, computations.get(condition, []))
                found.unknown_loops += count is None
                walk(body, turns * (count or 1))
            elif each.opcode in ("call", "conditional"):
                for attribute in ("to_apply", "calls", "branch_computations"):
                    for called in each.called(attribute):
                        walk(called, turns)
            elif each.opcode in ("fusion", "async-start"):
                for called in each.called("calls"):
                    inside(called, turns, seen, "all-reduce-scatter" in called)

    walk(entry, 1)
    found.cycles = sum(cycles.values())
    found.heaviest = [(n, times[key], *key) for key, n in cycles.most_common(50)]
    return found


def sizes_of(type_: str) -> Iterator[float]:
    """Yields the bytes of each array in an HLO type."""
    for kind, shape in re.findall(r"\b([a-z]\w*)\[([0-9,]*)\]", type_):
        digits = re.search(r"\d+", kind)
        bits = _BITS.get(kind) or (int(digits[0]) if digits else 0)
        yield math.prod(int(size) for size in shape.split(",") if size) * bits / 8


def groups_of(rest: str) -> list[list[int]]:
    """Returns which devices take part together, by their places in the mesh; `[]` if not said."""
    explicit = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest)
    if explicit:
        groups = re.findall(r"\{([\d,]*)\}", explicit[1])
        return [[int(at) for at in group.split(",") if at] for group in groups]
    compact = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if compact:
        shape, dims, order = (_numbers(part) for part in compact.groups())
        places = np.arange(math.prod(dims)).reshape(dims)
        return places.transpose(order or range(len(dims))).reshape(shape).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)
    return _groups_along_axes(named[1], named[2]) if named else []


def _groups_along_axes(mesh: str, axes: str) -> list[list[int]]:
    """Returns the groups of `'data'=4,'fsdp'=8` along `'fsdp'`, or along `'fsdp':(2)4`, a part."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    shape: list[int] = []
    inner: list[int] = []
    wanted = {name: (before, size) for name, before, size in _AXIS.findall(axes)}
    for name, size in sizes.items():
        before, part = wanted.get(name, ("", ""))
        if name in wanted and part:
            rest = size // int(before) // int(part)
            shape += [int(before), int(part), rest]
            inner.append(len(shape) - 2)
        else:
            shape.append(size)
            if name in wanted:
                inner.append(len(shape) - 1)
    outer = [at for at in range(len(shape)) if at not in inner]
    places = np.arange(math.prod(shape)).reshape(shape).transpose(outer + inner)
    return places.reshape(-1, math.prod(shape[at] for at in inner)).tolist()


_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in text.split(",")] if text else []


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    # What a Pallas kernel says of itself may be on lines of its own.
    for line in re.sub(r"\n(?=\"|\}\})", " ", text).splitlines():
        header = re.match(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$", line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (each := _instruction(line)) is not None:
            current.append(each)
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
    if not match:
        return None
    name, rest = match.groups()
    end = rest.find(" ")
    if rest.startswith("("):  # a tuple's type has spaces, and parentheses of tilings
        depths = itertools.accumulate((letter == "(") - (letter == ")") for letter in rest)
        end = next((at for at, depth in enumerate(depths) if depth == 0), len(rest) - 1) + 1
    opcode = re.match(r"\s*([a-z][\w\-]*)\(", rest[end:])
    return Instruction(name, rest[:end], opcode[1], rest[end:]) if opcode else None


def _turns(loop: Instruction, condition: Sequence[Instruction]) -> int | None:
    """Returns how often a loop turns: said outright, or the constant that its counter stays below.

    JAX's scans count from 0 in steps of 1.
    """
    known = re.search(r"known_trip_count\D+?(\d+)", loop.rest)
    if known:
        return int(known[1])
    constants = {
        each.name: int(match[1])
        for each in condition
        if each.opcode == "constant" and (match := re.match(r"\s*constant\((\d+)\)", each.rest))
    }
    for each in condition:
        if each.opcode == "compare" and "direction=LT" in each.rest:
            for name in re.findall(r"%([\w.\-]+)", each.rest.split(")")[0]):
                if name in constants:
                    return constants[name]
    return None
