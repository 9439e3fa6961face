"""Collectives, loops and the compiler's estimates of a compiled program.

Read from the text of the optimised HLO, the only source; loops count as often as they run, unlike
in the compiler's own cost analysis.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

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
_ABSURD = 2**50  # cycles: the compiler's way to mark unknown ones


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: name without `%`, the result's type, and operands with attributes."""

    name: str
    type: str
    opcode: str
    rest: str

    def called(self, *attributes: str) -> Iterator[str]:
        """Yields the computations in attributes."""
        for attribute in attributes:
            pattern = attribute + r"=(?:\{([^}]*)\}|%?([\w.\-]+))"
            for several, one in re.findall(pattern, self.rest):
                yield from (name.strip().lstrip("%") for name in (several or one).split(","))

    @property
    def op_name(self) -> str:
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def cycles(self) -> int | None:
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match and int(match[1]) < _ABSURD else None


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind: bytes sent by each device, `slow_bytes` of them between slices."""

    count: int = 0
    bytes: float = 0.0
    slow_bytes: float = 0.0


@dataclasses.dataclass
class Program:
    """Totals of a program.

    Args:
      collectives: by kind.
      cycles: estimated, of everything that has an estimate.
      kernels: calls of Pallas kernels, which have none.
      unknown_loops: loops of unknown trip count, counted as one.
      heaviest: `(cycles, times, type, op_name)` of the operations with most cycles, sorted.
    """

    collectives: dict[str, Traffic]
    cycles: int
    kernels: int
    unknown_loops: int
    heaviest: list[tuple[int, int, str, str]]


def read(text: str, *, slice_of: Sequence[int] | None = None) -> Program:
    """Walks a program from its entry, each loop as often as it runs.

    Args:
      text: of `compiled.as_text()`.
      slice_of: each device's slice, in the order of the mesh; None for a single slice.
    """
    computations, entry = _computations(text)
    walk = _Walk(computations, slice_of)
    walk.through(entry, 1)
    return walk.totals()


class _Walk:
    def __init__(
        self, computations: Mapping[str, list[Instruction]], slice_of: Sequence[int] | None
    ) -> None:
        self._computations, self._slice_of = computations, slice_of
        self._program = Program({}, 0, 0, 0, [])
        self._cycles: collections.Counter = collections.Counter()
        self._times: collections.Counter = collections.Counter()

    def totals(self) -> Program:
        self._program.cycles = sum(self._cycles.values())
        self._program.heaviest = [
            (cycles, self._times[key], *key) for key, cycles in self._cycles.most_common(50)
        ]
        return self._program

    def through(self, name: str, times: int) -> None:
        """Counts a computation that runs `times` times."""
        seen: dict[tuple, str] = {}
        for instruction in self._computations.get(name, ()):
            self._collective(instruction, name, times, seen, scattered=False)
            key, opcode = (instruction.type, instruction.op_name), instruction.opcode
            if instruction.cycles is not None:
                self._cycles[key] += instruction.cycles * times
                self._times[key] += times
            elif opcode == "custom-call" and "tpu_custom_call" in instruction.rest:
                self._program.kernels += times
            if opcode == "while":
                body, condition = *instruction.called("body"), *instruction.called("condition")
                count = _trip_count(instruction, self._computations.get(condition, []))
                self._program.unknown_loops += count is None
                self.through(body, times * (count or 1))
            elif opcode in ("call", "conditional"):
                for called in instruction.called("to_apply", "calls", "branch_computations"):
                    self.through(called, times)
            elif opcode in ("fusion", "async-start"):
                for called in instruction.called("calls"):
                    self._inside(called, times, seen, scattered="all-reduce-scatter" in called)

    def _inside(self, name: str, times: int, seen: dict[tuple, str], *, scattered: bool) -> None:
        """Counts the collectives of a fusion, whose cycles are those of its caller."""
        for instruction in self._computations.get(name, ()):
            self._collective(instruction, name, times, seen, scattered=scattered)
            if instruction.opcode in ("fusion", "call", "async-start"):
                for called in instruction.called("calls", "to_apply"):
                    self._inside(called, times, seen, scattered=scattered)

    def _collective(
        self,
        instruction: Instruction,
        computation: str,
        times: int,
        seen: dict[tuple, str],
        *,
        scattered: bool,
    ) -> None:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            return
        # Where a collective runs beside other work its text is repeated in several computations.
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        key = (kind, channel[1] if channel else instruction.name)
        if seen.setdefault(key, computation) != computation:
            return
        sizes = list(sizes_of(instruction.type)) or [0]
        size = max(sizes) if instruction.opcode.endswith("-start") else sum(sizes)
        groups = groups_of(instruction.rest)
        members = len(groups[0]) if groups else 1
        if kind == "reduce-scatter":
            size *= members
        sent = size * (members - 1) / members if kind in KINDS[:5] else size
        if kind == "all-reduce" and scattered:
            kind = "reduce-scatter"  # each device keeps a part of the sum: half of it is not sent
        elif kind == "all-reduce":
            sent *= 2
        traffic = self._program.collectives.setdefault(kind, Traffic())
        traffic.count += times
        traffic.bytes += sent * times
        slices = self._slice_of
        if slices and any(len({slices[device] for device in group}) > 1 for group in groups):
            traffic.slow_bytes += sent * times


def sizes_of(type_: str) -> Iterator[float]:
    """Yields the bytes of each array in an HLO type."""
    for kind, shape in re.findall(r"\b([a-z]\w*)\[([0-9,]*)\]", type_):
        digits = re.search(r"\d+", kind)
        bits = _BITS.get(kind) or (int(digits[0]) if digits else 0)
        yield math.prod(int(size) for size in shape.split(",") if size) * bits / 8


def groups_of(rest: str) -> list[list[int]]:
    """Returns the groups of devices, by position in the mesh, of a collective; `[]` for none."""
    explicit = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest)
    if explicit:
        groups = re.findall(r"\{([\d,]*)\}", explicit[1])
        return [[int(device) for device in group.split(",") if device] for group in groups]
    compact = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if compact:
        shape, dims, order = (_numbers(part) for part in compact.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return devices.transpose(order or range(len(dims))).reshape(shape).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)
    return _groups_along_axes(named[1], named[2]) if named else []


def _groups_along_axes(mesh: str, axes: str) -> list[list[int]]:
    """Returns the groups of `'data'=4,'fsdp'=8` along `'fsdp'`, or along `'fsdp':(2)4`, a part."""
    shape: list[int] = []
    inner: list[int] = []
    parts = {name: (before, size) for name, before, size in _AXIS.findall(axes)}
    for name, digits in re.findall(r"'(\w+)'=(\d+)", mesh):
        before, part = parts.get(name, ("", ""))
        sizes = int(before or 1), int(part or digits)
        shape += [*sizes, int(digits) // math.prod(sizes)]
        if name in parts:
            inner.append(len(shape) - 2)
    outer = [axis for axis in range(len(shape)) if axis not in inner]
    devices = np.arange(math.prod(shape)).reshape(shape).transpose(outer + inner)
    return devices.reshape(-1, math.prod(shape[axis] for axis in inner)).tolist()


_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in text.split(",")] if text else []


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    # The description of a Pallas kernel may continue on further lines.
    for line in re.sub(r"\n(?=\"|\}\})", " ", text).splitlines():
        header = re.match(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$", line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (instruction := _instruction(line)) is not None:
            current.append(instruction)
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


def _trip_count(loop: Instruction, condition: Sequence[Instruction]) -> int | None:
    """Returns a loop's trip count: annotated, or its counter's bound (JAX's scans: from 0 by 1)."""
    annotated = re.search(r"known_trip_count\D+?(\d+)", loop.rest)
    if annotated:
        return int(annotated[1])
    constants = {
        instruction.name: int(match[1])
        for instruction in condition
        if instruction.opcode == "constant"
        and (match := re.match(r"\s*constant\((\d+)\)", instruction.rest))
    }
    for instruction in condition:
        if instruction.opcode == "compare" and "direction=LT" in instruction.rest:
            for name in re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0]):
                if name in constants:
                    return constants[name]
    return None
