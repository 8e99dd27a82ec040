"""The Markdown page of `osteojax benchmark gpu`: what was measured beside bounds and PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

COMPILED = Path(__file__).resolve().parents[2] / "benchmarks" / "compiled"
"""Figures of steps that were compiled for cards that were not attached."""
FLOPS_DTYPE = "bfloat16"

Row = dict[str, Any]
Rows = list[Row]


def page(results: dict[str, Any]) -> str:
    """The page of what was measured so far."""
    return "\n".join([*_head(results), *_parts(results["parts"]), *_sections(results["rows"]), ""])


def committed(card: str, step: Row) -> dict[str, Any] | None:
    """The committed result of the compiler (`osteojax compile --json`) for the same card and the
    same step on one device; None without one.

    Args:
      card: `jax.Device.device_kind`.
      step: a row with image_size, region, batch_size, dtype.
    """
    asked = step["image_size"], step["region"], step["batch_size"], step["dtype"], 1
    for result in _compiled_for(card):
        program = result["program"]
        if "swav" in program.get("config", ""):
            region = "box" if program["config"].endswith(":paper") else "body"
            same = program["size"], region, program["batch"], program["dtype"], program["devices"]
            if same == asked:
                return result
    return None


def committed_textures(card: str, maps: Row) -> dict[str, Any] | None:
    """As `committed`, of texture maps; maps: textures, image_size, batch_size, kernel_radius."""
    names = {
        "textures": "textures",
        "size": "image_size",
        "batch": "batch_size",
        "radius": "kernel_radius",
    }
    for result in _compiled_for(card):
        if all(result["program"].get(one) == maps.get(other) for one, other in names.items()):
            return result
    return None


def _compiled_for(card: str) -> Iterator[dict[str, Any]]:
    """The committed results for a card: "h200:1x1x1" for one that has H200 in its name."""
    for path in sorted(COMPILED.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["program"]["topology"].partition(":")[0].upper() in card.split():
            yield result


# ---------------------------------------------------------------- what ran


def _head(results: dict[str, Any]) -> Iterator[str]:
    env = results["environment"]
    yield f"# {env.get('device', 'no device')}, {env.get('date', '')}".rstrip(", ")
    yield ""
    if results["smoke"]:
        yield "**Tiny sizes (`--smoke`): these figures only show that everything runs.**"
        yield ""
    if not env:
        return
    versions = env["versions"].items()
    there = ", ".join(f"{name} {v}" for name, v in versions if v != "absent")
    lacking = ", ".join(name for name, v in versions if v == "absent")
    yield f"{env['card'] or env['device']}; {env['cpu_cores']} cores of {env['cpu']}."
    yield f"Python {env['python']}, {there}. Absent: {lacking or 'none'}."
    yield ""
    yield (
        "Times are medians, with the least and the most in parentheses. Bounds are bytes or FLOPs "
        "over rates that this run measured, unless the data sheet is named. A compiler's figures "
        "are of its version, which may be another one than this run's."
    )


def _parts(parts: Rows) -> Iterator[str]:
    rows = [
        [part["part"], part["state"], f"{part['seconds']:.0f}", part["reason"]] for part in parts
    ]
    yield from _table("What ran", ["part", "state", "seconds", "reason"], rows)


def _sections(rows: Rows) -> Iterator[str]:
    environment = next((r for r in rows if r["measurement"] == "environment"), {})
    card, rates = environment.get("device", ""), _rates(rows)
    if rates:
        yield from _table(
            "Rates of this card",
            ["what", "measured"],
            [
                *(
                    [f"matrix product, {r['dtype']}", f"{r['flops_per_second'] / 1e12:.4g} TFLOP/s"]
                    for r in _of(rows, "matrix product")
                ),
                *(
                    ["copy, read and written", f"{r['bytes_per_second'] / 1e9:.4g} GB/s"]
                    for r in _of(rows, "copy")
                ),
            ],
        )
    yield from _steps(rows, rates)
    yield from _bounds(rows, rates, card)
    yield from _memory(rows, card)
    yield from _kernels(rows)
    yield from _textures(rows, rates, card)
    yield from _assignments(rows, rates)
    yield from _checks(rows)


def _rates(rows: Rows) -> dict[str, float]:
    """FLOPs and bytes a second, as far as they were measured."""
    found = {}
    for row in _of(rows, "matrix product"):
        if row["dtype"] == FLOPS_DTYPE:
            found["flops"] = row["flops_per_second"]
    for row in _of(rows, "copy"):
        found["bytes"] = row["bytes_per_second"]
    return found


# ---------------------------------------------------------------- the step


def _steps(rows: Rows, rates: dict[str, float]) -> Iterator[str]:
    """A table for each kind of step: ours and PyTorch's."""
    steps = _of(rows, "step")
    for key in dict.fromkeys(map(_kind, steps)):
        flops = next((r["flops"] for r in _of(rows, "cost") if _kind(r) == key), None)
        lines = []
        for row in steps:
            if _kind(row) != key:
                continue
            used = "flops" in rates and flops
            share = f"{flops / row['seconds'] / rates['flops']:.1%}" if used else ""
            peak = row.get("peak_bytes") or 2**30 * row.get("device_memory_gib", 0)
            lines.append(
                [
                    row["engine"],
                    row["data"],
                    str(row["steps_per_dispatch"]),
                    _ms(row),
                    f"{row['batch_size'] / row['seconds']:,.4g}",
                    share,
                    f"{row['first_call_seconds']:.0f}",
                    f"{peak / 2**30:.2f}" if peak else "",
                ]
            )
        head = [
            *("engine", "data", "steps a dispatch", "ms a step", "vertebrae/s"),
            *("of the matrix product", "first call, s", "peak of the process so far, GiB"),
        ]
        yield from _table(f"The step: {_step_name(steps, key)}", head, lines)


def _kind(row: Row) -> tuple[Any, ...]:
    return row["image_size"], row["region"], row["batch_size"], row["dtype"]


def _step_name(steps: Rows, key: tuple[Any, ...]) -> str:
    size, region, batch, dtype = key
    seen = f"boxes of {size}^3" if region == "box" else f"crops of the body from {size}^3"
    return f"{seen}, batch {batch}, {dtype}"


def _bounds(rows: Rows, rates: dict[str, float], card: str) -> Iterator[str]:
    """Our fastest step of each kind beside its bounds."""
    lines = []
    for cost in _of(rows, "cost"):
        own = [r for r in _of(rows, "step") if _kind(r) == _kind(cost) and _is_ours(r)]
        fastest = min(r["seconds"] for r in own)
        result = committed(card, cost)
        program = [r for r in _of(rows, "program") if r["image_size"] == cost["image_size"]]
        moved = program[0]["bytes_moved"] if program and cost["region"] == "box" else None
        lines.append(
            [
                _step_name(own, _kind(cost)),
                f"{1e3 * fastest:.4g}",
                _bound(cost["flops"], rates.get("flops")),
                _bound(cost["least_bytes"], rates.get("bytes")),
                _bound(moved, rates.get("bytes")),
                f"{result['figures']['flop_bound_ms']:.3g}" if result else "none",
                f"{result['figures']['byte_bound_ms']:.3g}" if result else "none",
            ]
        )
    head = [
        *("step", "measured, ms", "FLOPs, ms", "least bytes, ms", "bytes of this program, ms"),
        *("FLOPs by the data sheet, ms", "committed bytes by the data sheet, ms"),
    ]
    yield from _table("Our fastest step beside its bounds", head, lines)


def _is_ours(row: Row) -> bool:
    return bool(row["engine"] == "osteojax")


def _bound(amount: float | None, rate: float | None) -> str:
    return f"{1e3 * amount / rate:.3g}" if amount and rate else ""


def _memory(rows: Rows, card: str) -> Iterator[str]:
    found = _of(rows, "memory")
    if not found:
        return
    one = found[0]
    step = {**one, "region": "box", "dtype": FLOPS_DTYPE}
    result = committed(card, step)
    lines = [
        ["measured, most in use", _gib(one["peak_bytes_in_use"])],
        ["this compiler: peak", _gib(one["compiler_peak_bytes"])],
        ["this compiler: arguments", _gib(one["argument_bytes"])],
        ["this compiler: temporary", _gib(one["temporary_bytes"])],
    ]
    if result:
        jax = result["environment"]["versions"]["jax"]
        lines.append([f"committed, of jax {jax}: peak", _gib(result["figures"]["peak_bytes"])])
    else:
        lines.append(["committed", f"none for {card} and this step"])
    title = f"Memory: the step on boxes of {one['image_size']}^3, batch {one['batch_size']}"
    yield from _table(title, ["what", "GiB"], lines)
    yield ""
    yield (
        f"Compiled in {one['compile_seconds']:.0f} s (a few: from JAX's cache). The compiler does "
        "not count cuDNN's workspace."
    )


def _kernels(rows: Rows) -> Iterator[str]:
    found = _of(rows, "kernel")
    for busy in _of(rows, "busy"):
        lines = [
            [
                f"`{row['kernel'][:60]}`",
                f"{row['layer']} {row['pass']}".strip(),
                f"{row['runs']:.3g}",
                f"{1e3 * row['seconds']:.3g}",
                f"{row['seconds'] / busy['seconds']:.1%}",
                f"{row['bytes'] / row['seconds'] / 1e9:,.0f}" if row["bytes"] else "",
            ]
            for row in found
        ]
        title = f"Longest kernels of the step ({1e3 * busy['seconds']:.4g} ms of all kernels)"
        head = ["kernel", "layer", "runs", "ms a step", "share", "GB/s, by the program's bytes"]
        yield from _table(title, head, lines)


# ---------------------------------------------------------------- operations


def _textures(rows: Rows, rates: dict[str, float], card: str) -> Iterator[str]:
    lines = []
    for row in _of(rows, "textures"):
        result = committed_textures(card, row)
        bound = result["figures"]["bound_voxels_per_second"] if result else None
        least = rates["bytes"] / row["voxel_bytes"] if "bytes" in rates else None
        lines.append(
            [
                row["name"],
                _ms(row),
                _giga(row["voxels"] / row["seconds"]),
                _giga(least),
                _giga(bound) or "none",
            ]
        )
    head = [
        *("what", "ms", "Gvoxel/s", "bound by least bytes"),
        "bound by committed bytes and the data sheet",
    ]
    yield from _table("Texture maps", head, lines)


def _giga(rate: float | None) -> str:
    return f"{rate / 1e9:.3g}" if rate else ""


def _assignments(rows: Rows, rates: dict[str, float]) -> Iterator[str]:
    lines = [
        [row["name"], _ms(row), _bound(row["least_bytes"], rates.get("bytes"))]
        for row in _of(rows, "sinkhorn")
    ]
    head = ["samples x prototypes", "ms", "read and written once, ms"]
    yield from _table("Sinkhorn, three iterations", head, lines)


def _checks(rows: Rows) -> Iterator[str]:
    lines = []
    for row in _of(rows, "check"):
        error = row["error"]
        right = error is not None and error <= row["limit"]
        shown = "not finite" if error is None else f"{error:.2g}"
        lines.append([row["check"], shown, f"{row['limit']:.0e}", "" if right else "**wrong**"])
    head = ["what", "largest relative difference", "limit", ""]
    yield from _table("Results beside the CPU's", head, lines)


# ---------------------------------------------------------------- Markdown


def _of(rows: Rows, measurement: str) -> Rows:
    return [row for row in rows if row["measurement"] == measurement]


def _ms(row: Row) -> str:
    median, least, most = (1e3 * row[f"seconds{end}"] for end in ("", "_min", "_max"))
    return f"{median:.4g} ({least:.4g}-{most:.4g})"


def _gib(count: int | None) -> str:
    return "not told" if count is None else f"{count / 2**30:.2f}"


def _table(title: str, head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """A section with a table; nothing without rows."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    if lines:
        yield from ("", f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|")
        yield from (f"| {line} |" for line in lines)
