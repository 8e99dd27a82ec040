"""Reads the text of a compiled program: its kernels in the order in which they run.

The text is that of XLA's scheduled HLO (`jax.stages.Compiled.as_text`). A kernel is an operation of
the entry computation that moves bytes: a fusion, a library call, a copy, a collective. Each reads
its operands and writes its results in full, once; where a kernel reads only a slice of an operand,
the count is too high. A loop counts as often as it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator

from osteojax.train.collectives import ARRAY, KINDS, shape_bytes

WIDE = ("f64", "s64", "u64")
NO_BYTES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call"),
}
ONLY_MOVES = {"copy", "transpose", "reverse", "bitcast", "reshape", "convert"}
LARGE_BYTES = 10_000_000
"""From here on a copy is worth a line."""

OPERATION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One operation that moves bytes, as often as it runs.

    Attributes:
      name: in the program.
      operation: of HLO: "fusion", "custom-call", "copy", "all-reduce-start", ...
      layer: path of the Linen module ("backbone/stage1_block1/conv1"); of a fusion that of its
        result; "optimiser" for what reads its moments; "" for anything else.
      backward: whether it is of the backward pass.
      convolution: whether it is one, or holds one.
      moves_only: whether it only copies, transposes or casts.
      bytes: read and written, all runs.
      read_bytes: of these, read.
      runs: how often.
      cycles: the compiler's estimate for all runs; None without one.
      overlapped: of a collective, whether another kernel runs until it is done.
      wide: whether it writes an array of 64-bit numbers; scalars do not count.
    """

    name: str
    operation: str
    layer: str
    backward: bool
    convolution: bool
    moves_only: bool
    bytes: int
    read_bytes: int
    runs: int
    cycles: int | None
    overlapped: bool
    wide: bool

    @property
    def collective(self) -> str:
        """Which collective it is; "" for none."""
        return next((kind for kind in KINDS if self.operation.startswith(kind)), "")


def kernels(text: str) -> list[Kernel]:
    """The kernels of a program, in their order."""
    bodies = _computations(text)
    return list(_walk(bodies, next(name for name in bodies if name.startswith("ENTRY ")), 1))


def convolution_dtypes(text: str) -> dict[str, int]:
    """Dtypes of the results of all convolutions, with their number. A TPU's matrix products are
    convolutions without a window and are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        called = " convolution(" in line or '"__cudnn$conv' in line
        if called and " = " in line and re.search(r"window={size=\d+x", line):
            dtype = ARRAY.findall(line)[0][0]
            found[dtype] = found.get(dtype, 0) + 1
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines; that of the entry begins with "ENTRY "."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            entry = "ENTRY " if line.startswith("ENTRY") else ""
            name = entry + line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            found[name] = []
        elif line.startswith("}"):
            name = ""
        elif name:
            found[name].append(line)
    return found


def _walk(bodies: dict[str, list[str]], name: str, runs: int) -> Iterator[Kernel]:
    lines = bodies[name]
    shapes: dict[str, str] = {}
    moments: set[str] = set()
    for place, line in enumerate(lines):
        if not (found := OPERATION.match(line)):
            continue
        name, shape, operation, rest = found.groups()
        shapes[name] = shape
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        if operation == "parameter" and "opt_state" in line:
            moments.add(name)
        if operation == "while":
            yield from _walk(bodies, _named(line, "body"), runs * _trips(line))
        elif operation == "call":
            yield from _walk(bodies, _named(line, "to_apply"), runs)
        elif operation == "conditional":  # one branch runs; that which moves most is counted
            branches = [list(_walk(bodies, branch, runs)) for branch in _branches(line)]
            yield from max(branches, key=lambda found: sum(k.bytes for k in found))
        if operation in NO_BYTES or operation.endswith("-done") or operation.endswith("-update"):
            continue
        fused = bodies.get(_named(line, "calls"), [])
        inside = _opcodes(fused) or {operation}
        read = sum(shape_bytes(shapes.get(operand, "")) for operand in operands)
        started = operation.endswith("-start")  # its shape has the operands in it, too
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        layer, backward = _layer([line]) if _layer([line])[0] else _layer(fused)
        yield Kernel(
            name=name,
            operation=operation,
            layer="optimiser" if moments.intersection(operands) else layer,
            backward=backward,
            convolution="convolution" in inside or '"__cudnn$conv' in line,
            moves_only=bool(inside - {"parameter"}) and inside <= ONLY_MOVES | {"parameter"},
            bytes=runs * (2 * read if started else read + shape_bytes(shape)),
            read_bytes=runs * read,
            runs=runs,
            cycles=runs * int(cycles[1]) if cycles else None,
            overlapped=started and _works_until_done(lines[place + 1 :], name),
            wide=any(edges and dtype in WIDE for dtype, _, edges in ARRAY.findall(shape)),
        )


def _opcodes(lines: list[str]) -> set[str]:
    """Operations of a computation."""
    return {match[3] for match in map(OPERATION.match, lines) if match}


def _named(line: str, what: str) -> str:
    found = re.search(rf"\b{what}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _branches(line: str) -> list[str]:
    listed = re.search(r"branch_computations=\{(.*?)\}", line)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [_named(line, "true_computation"), _named(line, "false_computation")]


def _trips(line: str) -> int:
    """How often a loop runs; 1 where the compiler does not know."""
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
    return int(found[1]) if found else 1


def _works_until_done(later: list[str], name: str) -> bool:
    """Whether a convolution or fusion runs between an operation's start and its end."""
    for line in later:
        found = OPERATION.match(line)
        if not found:
            continue
        if found[3].endswith("-done") and re.search(rf"%{re.escape(name)}\b", found[4]):
            return False
        if found[3] in ("fusion", "custom-call", "convolution"):
            return True
    return False


def _layer(lines: list[str]) -> tuple[str, bool]:
    """(path of the Linen module, whether backward) that most of some operations name; ("", False)
    where none does."""
    named = (path for line in lines for path in re.findall(r'op_name="([^";]*)', line))
    found = collections.Counter(module for path in named if (module := _module(path)))
    return found.most_common(1)[0][0] if found else ("", False)


def _module(path: str) -> tuple[str, bool] | None:
    """ "jit(steps)/transpose(jvp(Model))/backbone/stem/conv" -> ("backbone/stem", True)."""
    if re.search(r"jvp\(vmap\(", path):
        return "augmentation", False
    found = re.search(r"(?:^|/)((?:\w+\()*jvp\(\w*\)+)/(.*)", path)
    if not found:
        return None
    inside = re.split(r"/(?=cond/|while/|jit\(|closed_call/|checkpoint/|rematted)", found[2])[0]
    module = inside if inside != found[2] else inside.rpartition("/")[0]
    return (module.removesuffix("/norm"), "transpose(" in found[1]) if module else None
