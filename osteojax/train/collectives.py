"""Bytes that devices exchange in one step: counted in the compiled program, and expected.

The count is of the program that runs, so it includes collectives that were added by accident. The
expected bytes follow from the method (docs/scaling.md). A test checks that the two are equal.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from osteojax.objectives import Objective

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"= (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
"""Dtype, its bits ("" for pred), and edges of an array in a program's text."""
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LOOP_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_GROUPS_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
      operand_bytes: size of each device's operand.
      group_size: number of devices that take part.
    """

    kind: str
    operand_bytes: int
    group_size: int

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends if the group is a ring, which is the minimum (Patarasuk &
        Yuan 2009)."""
        others = self.group_size - 1
        rounds = {
            "all-reduce": 2 * others / self.group_size,
            "all-gather": others,
            "reduce-scatter": others / self.group_size,
            "all-to-all": others / self.group_size,
            "collective-permute": 1,
        }
        return self.operand_bytes * rounds[self.kind]


def compiled_collectives(hlo_text: str, num_devices: int) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    Args:
      hlo_text: of `jax.jit(...).lower(...).compile().as_text()`.
      num_devices: devices that the program runs on; the size of a group whose members the text
        does not list.

    Returns:
      one entry for each operation among two or more devices. XLA joins several sums into one
      operation, whose bytes are their sum.

    Raises:
      ValueError: for a collective inside a loop, whose number of iterations the text may not say.
    """
    loops = set(_LOOP_BODY.findall(hlo_text))
    found, computation = [], ""
    for line in hlo_text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        if not (match := _COLLECTIVE.search(line)):
            continue
        if computation in loops:
            raise ValueError(f"{match['kind']} in the loop {computation}: count a single step")
        group_size = _group_size(line, match["kind"], num_devices)
        if group_size > 1:
            operand_bytes = _operand_bytes(match, group_size)
            found.append(Collective(match["kind"], operand_bytes, group_size))
    return found


def _group_size(line: str, kind: str, num_devices: int) -> int:
    if kind == "collective-permute":
        return 2  # a permutation sends between pairs
    if listed := _GROUPS_LISTED.search(line):
        return len(listed[1].split(","))
    if counted := _GROUPS_COUNTED.search(line):
        return int(counted[1])
    return num_devices


def _operand_bytes(match: re.Match[str], group_size: int) -> int:
    """Computed from the shapes of the result, because newer texts do not print the operands'."""
    result = shape_bytes(match["result"])
    kind = match["kind"]
    if kind == "all-gather":
        # The result of an asynchronous start includes the operands.
        return result // (1 + group_size if match["start"] else group_size)
    if kind == "reduce-scatter":
        return result * group_size
    if kind == "collective-permute" and match["start"]:
        return result // 2
    return result


def shape_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape's text, "(bf16[2,3]{1,0}, f32[])"."""
    return sum(_array_bytes(*array) for array in ARRAY.findall(shape))


def _array_bytes(dtype: str, bits: str, shape: str) -> int:
    """ "bf16", "16", "2,8" -> 32."""
    itemsize = 1 if dtype == "pred" else int(bits) // 8
    return itemsize * math.prod(int(size) for size in shape.split(",") if size)


def expected_bytes(
    objective: Objective, params: Any, model_state: Any, num_devices: int
) -> dict[str, int]:
    """Operand bytes of a training step's collectives on each device that the method needs.

    - gradients: of every parameter once, in float32 whatever the dtype of the computation.
    - batch_statistics: mean and mean square of each channel forward; backward the gradient of the
      mean. That of the variance is part of the gradient of the scale. None with group norm.
    - the objective's own (`Objective.exchanged_bytes`): losses, metrics, assignments.

    Args:
      params, model_state: of the objective; arrays, or their shapes and dtypes.
      num_devices: that share the batch, two or more.
    """
    return {
        "gradients": 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "batch_statistics": _statistics_bytes(model_state["batch_stats"]),
        **objective.exchanged_bytes(num_devices),
    }


def _statistics_bytes(batch_stats: Any) -> int:
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch_stats):
        if path[-1].key != "mean":
            continue
        if len(leaf.shape) == 1:
            total += 4 * 3 * leaf.shape[0]
        else:  # per map: forward also the number of samples; backward mean and variance
            num_maps = leaf.shape[0]
            total += 4 * (4 * math.prod(leaf.shape) + num_maps)
    return total
