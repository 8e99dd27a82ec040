"""Lower bound (floor) of the time of a training step, at the measured rates of this machine.

A matrix product or convolution takes at least the longer of its FLOPs at the peak rate and its
bytes at the copy rate. A step takes at least the sum of these, plus reading and writing the
training state (`osteojax.train.costs`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from osteojax.train.costs import PASSES, Product, StepCost


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured peak rates of a machine, all devices together.

    Attributes:
      flops_per_second: of a matrix product in the dtype of the computation.
      bytes_per_second: of a copy, read and written bytes both counted.
    """

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, flops: int, bytes_moved: int) -> float:
        return max(flops / self.flops_per_second, bytes_moved / self.bytes_per_second)


def floor_seconds(cost: StepCost, rates: Rates) -> float:
    """The sum of the floors of all products and of the time for the remaining bytes."""
    products = sum(rates.seconds(p.flops, p.bytes) for p in cost.products)
    return products + cost.state_and_batch_bytes / rates.bytes_per_second


def floor_rows(cost: StepCost, rates: Rates) -> list[dict[str, Any]]:
    """A row for each distinct layer, in the order of the forward pass, and one for the state.

    Layers with the same shapes in the same stage are one row.
    """
    groups: dict[tuple, list[Product]] = {}
    layers: dict[str, tuple] = {}
    for product in cost.products:
        if product.part == "forward":
            key = (_stage(product.layer), *product.operands)
            layers.setdefault(product.layer, key)
        # Gradients are grouped with their layer, although their shapes differ.
        groups.setdefault(layers.get(product.layer, (product.layer,)), []).append(product)
    rows = [_layer_row(products, rates) for products in groups.values()]
    moved = cost.state_and_batch_bytes
    rest = {"layer": "state, gradients, batch", "count": 1, "shape": ""}
    rest |= {"bytes": moved, "floor_seconds": moved / rates.bytes_per_second, "flops": 0}
    return [*rows, rest]


def _layer_row(products: list[Product], rates: Rates) -> dict[str, Any]:
    first = products[0]
    names = list(dict.fromkeys(product.layer for product in products))
    row: dict[str, Any] = {
        "layer": names[0] if len(names) == 1 else f"{_stage(names[0])}, {len(names)} alike",
        "count": len(names),
        "shape": f"{_times(first.operands[0])} * {_times(first.operands[1])}",
        "flops": sum(p.flops for p in products),
        "padded_flops": sum(p.padded_flops for p in products),
        "bytes": sum(p.bytes for p in products),
        "floor_seconds": sum(rates.seconds(p.flops, p.bytes) for p in products),
    }
    for part in PASSES:
        own = [p for p in products if p.part == part]
        row[f"{part}_flops"] = sum(p.flops for p in own)
        row[f"{part}_bytes"] = sum(p.bytes for p in own)
        row[f"{part}_floor_seconds"] = sum(rates.seconds(p.flops, p.bytes) for p in own)
    return row


def _stage(layer: str) -> str:
    """The layer's path without the block's number and the layer's name."""
    return re.sub(r"_block\d+/.*", "", layer)


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def floor_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown: GFLOP and MB of each pass, and the floor."""
    lines = [
        "| layers | input * kernel | GFLOP forward / input / kernel | MB | floor, ms |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        parts = " / ".join(f"{row.get(f'{part}_flops', 0) / 1e9:.3g}" for part in PASSES)
        lines.append(
            f"| {row['layer'] or 'outside a layer'} | {row['shape']} | {parts} | "
            f"{row['bytes'] / 1e6:.3g} | {1e3 * row['floor_seconds']:.3g} |"
        )
    return "\n".join(lines)
