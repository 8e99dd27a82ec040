"""The figures of a compiled step as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from launch.compiled.chips import chip_of

CUDNN = "peak memory: at least this is needed; cuDNN's workspace is not counted"


def tables_of(result: dict[str, Any]) -> Iterator[Table | str]:
    """What is printed of one compiled step."""
    figures, program = result["figures"], result["program"]
    head = (
        f"{program['topology']}, {program['devices']} device(s), {program['config']}, "
        f"{program['size']}^3, batch {program['batch']}, {program['dtype']}"
    )
    table = Table(title=head, show_header=False)
    for name, value in summary(figures):
        table.add_row(name, value)
    yield table
    if chip_of(program["topology"]).platform == "cuda":
        yield CUDNN
    yield _lines("kernels that move most", figures["largest"])
    yield _layers(figures["layers"])
    for title, lines in (
        ("large copies and transposes", figures["large_copies"]),
        ("without the compiler's estimate: bytes over bandwidth", figures["without_estimate"][:10]),
    ):
        if lines:
            yield _lines(title, lines)


def compared(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Table]:
    """The figures of two steps beside one another."""
    table = Table("", "before", "after")
    for key in ("topology", "config", "overrides", "size", "batch", "dtype"):
        if before["program"][key] != after["program"][key]:
            table.add_row(key, str(before["program"][key]), str(after["program"][key]))
    rows = zip(summary(before["figures"]), summary(after["figures"]), strict=True)
    for (name, old), (_, new) in rows:
        table.add_row(name, old, new)
    yield table
    yield _layers(before["figures"]["layers"], "before")
    yield _layers(after["figures"]["layers"], "after")


def summary(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the figures that are one number, for one device."""
    peak, room = figures["peak_bytes"], figures["room_bytes"]
    estimate, without = figures["estimate_ms"], figures["without_estimate"]
    waiting = sum(line["ms"] for line in without)
    return [
        ("peak memory", f"{peak / 2**30:.2f} of {room / 2**30:.1f} GiB"),
        ("arguments", f"{figures['argument_bytes'] / 2**30:.2f} GiB"),
        ("bytes moved", f"{figures['bytes_moved'] / 1e9:.2f} GB"),
        ("least bytes, by our own count", f"{figures['least_bytes'] / 1e9:.2f} GB"),
        ("FLOPs, by our own count", f"{figures['flops'] / 1e12:.3f} TFLOP"),
        ("bound by FLOPs", f"{figures['flop_bound_ms']:.2f} ms"),
        ("bound by bytes", f"{figures['byte_bound_ms']:.2f} ms"),
        (
            "the compiler's estimate",
            "none"
            if estimate is None
            else f"{estimate:.1f} ms, of which {waiting:.1f} ms by bytes alone",
        ),
        ("collectives", _collectives(figures["collectives"])),
        ("convolutions", ", ".join(f"{n} in {k}" for k, n in figures["convolutions"].items())),
        ("64-bit arrays", str(figures["wide_arrays"])),
        ("compiled in", f"{figures['compile_seconds']:.0f} s"),
    ]


def _collectives(rows: list[dict[str, Any]]) -> str:
    return (
        "; ".join(
            f"{row['count']} {row['kind']}, {row['bytes'] / 1e6:.1f} MB, "
            f"{row['overlapped_bytes'] / 1e6:.1f} of them behind other work"
            for row in rows
        )
        or "none"
    )


def _lines(title: str, lines: list[dict[str, Any]]) -> Table:
    table = Table("layer", "pass", "operation", "MB", title=title)
    for line in lines:
        table.add_row(
            line["layer"] or line["name"], line["pass"], line["operation"],
            f"{line['bytes'] / 1e6:.0f}",
        )  # fmt: skip
    return table


def _layers(rows: list[dict[str, Any]], title: str = "bytes by part") -> Table:
    table = Table("part", "convolutions, MB", "between them, MB", title=title)
    for row in rows:
        table.add_row(
            row["layer"], f"{row['convolutions'] / 1e6:.0f}", f"{row['between'] / 1e6:.0f}"
        )
    return table
