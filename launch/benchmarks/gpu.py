"""Everything that this project claims about a GPU, measured within nine minutes.

    osteojax benchmark gpu --out gpu                     # or `make gpu`
    python -m launch.cli benchmark gpu --out gpu         # in a copy of the repository
    osteojax benchmark gpu --out tried --smoke           # tiny, on any device: does all of it run?

Needed are jax, flax, optax and orbax with a CUDA plugin; PyTorch for the rows beside ours. Nothing
is installed. Each part is a process of its own with a limit of time, in the order of its worth; one
that fails, runs too long or lacks a package becomes a row with the reason. After every part
DIR/gpu.json and DIR/gpu.md hold all that was measured until then, DIR/parts the logs.

Exit status: 0 if every part was measured or lacks a package, 1 if one failed or had no time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launch.benchmarks.gpu_page import page
from osteojax.errors import UserError
from osteojax.files import write_json, write_text

BUDGET_SECONDS = 525.0
"""Of all parts together: under nine minutes with the start and the page."""
SHORTEST_SECONDS = 15.0
"""With less time left no part is begun: to start JAX and compile takes as long."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A group of measurements, in a process of its own.

    Attributes:
      name: of its function in `launch.benchmarks.<module>`.
      seconds: after so many it is ended; what it had measured stays.
      environment: variables of its process.
    """

    name: str
    module: str
    seconds: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


# PyTorch's processes make the batch with JAX, which must leave the GPU's memory alone.
_NO_JAX = {"JAX_PLATFORMS": "cpu"}
PARTS = (
    Part("machine", "gpu_machine", 60),
    Part("boxes_96", "gpu_steps", 130),
    Part("memory", "gpu_memory", 90),
    Part("pytorch_96", "gpu_steps", 100, _NO_JAX),
    Part("textures", "gpu_operations", 80),
    Part("body", "gpu_steps", 80),
    Part("boxes_64", "gpu_steps", 80),
    Part("pytorch_64", "gpu_steps", 80, _NO_JAX),
    Part("checks", "gpu_machine", 60),
    Part("assignments", "gpu_operations", 30),
    Part("pallas", "gpu_operations", 40),
    Part("disk", "gpu_steps", 60),
)
"""In the order of their worth. Their limits add up to more than there is, since most need less."""
MEASURED = ("measured", "absent")
"""States of a part that are no failure."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="gpu.json, gpu.md, and parts/ with the logs"
    )
    parser.add_argument(
        "--parts", metavar="NAME,...", help=f"only these (default: all): {', '.join(names)}"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, on any device: to see that all runs"
    )


def run(args: argparse.Namespace) -> int:
    chosen, out = _chosen(args.parts), Path(args.out).absolute()
    results: dict[str, Any] = {"smoke": args.smoke, "environment": {}, "parts": [], "rows": []}
    end = time.monotonic() + BUDGET_SECONDS
    for part in chosen:
        left, rows = end - time.monotonic(), []  # type: float, list[dict[str, Any]]
        if left < SHORTEST_SECONDS:
            outcome = _outcome(part, "no time left", 0.0, f"rerun with --parts {part.name}")
        else:
            limit = min(part.seconds, left)
            print(f"{left:4.0f} s left: {part.name}, up to {limit:.0f} s", flush=True)
            outcome, rows = run_part(part, limit, out / "parts", args.smoke)
        print(f"             {_line(outcome, rows)}", flush=True)
        results["parts"].append(outcome)
        results["rows"] += [{"part": part.name, **row} for row in rows]
        if part.name == "machine":
            results["environment"] = rows[0] if rows else {}
            _check_machine(outcome, results["environment"], args.smoke)
        write_json(out / "gpu.json", results)
        write_text(out / "gpu.md", page(results))
    print(f"written to {out / 'gpu.md'} and {out / 'gpu.json'}")
    return int(any(outcome["state"] not in MEASURED for outcome in results["parts"]))


def _chosen(names: str | None) -> list[Part]:
    """The parts that are asked for, in our order; the first is always among them."""
    wanted = set(names.split(",")) if names else {part.name for part in PARTS}
    if unknown := wanted - {part.name for part in PARTS}:
        known = ", ".join(part.name for part in PARTS)
        raise UserError(f"--parts {','.join(sorted(unknown))}: unknown; choose from {known}.")
    return [part for part in PARTS if part.name in wanted | {PARTS[0].name}]


def _check_machine(outcome: dict[str, Any], environment: dict[str, Any], smoke: bool) -> None:
    """Raises UserError where there is no GPU to measure."""
    if not environment:
        raise UserError(f"JAX does not start here: {outcome['reason']} (log: {outcome['log']}).")
    if environment["platform"] != "gpu" and not smoke:
        raise UserError(
            f"no GPU: jax {environment['versions']['jax']} runs on {environment['platform']}. It "
            "needs an NVIDIA driver and JAX's CUDA plugin (pip install 'jax[cuda12]'); --smoke "
            "tries the command on any device."
        )


def run_part(
    part: Part, limit: float, folder: Path, smoke: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs a part in its process, for at most `limit` seconds.

    Returns:
      its outcome (name, state, seconds, reason, log), and the rows that it had measured by then.
      States: "measured", "absent", "failed", "timed out".
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    path.unlink(missing_ok=True)
    start = time.monotonic()
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command(part, path, smoke),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": _search_path(), **part.environment},
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # its own children, too: PyTorch's compiler starts some
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - start
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = found.get("rows", [])
    if code is None:
        return _outcome(part, "timed out", seconds, f"ended after {limit:.0f} s", log), rows
    if code:
        reason = found.get("reason") or _last_line(log) or "no message"
        how = f"signal {-code}: " if code < 0 else ""
        return _outcome(part, "failed", seconds, how + reason, log), rows
    return _outcome(part, found["state"], seconds, found.get("reason", ""), log), rows


def command(part: Part, path: Path, smoke: bool) -> list[str]:
    """The command of a part's process, which writes its rows to `path`."""
    module = f"launch.benchmarks.{part.module}"
    size = ["smoke"] if smoke else []
    return [
        sys.executable,
        "-m",
        "launch.benchmarks.gpu_process",
        module,
        part.name,
        str(path),
        *size,
    ]


def _search_path() -> str:
    """PYTHONPATH with this copy of the code in front."""
    own = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))


def _outcome(
    part: Part, state: str, seconds: float, reason: str, log: Path | None = None
) -> dict[str, Any]:
    return {
        "part": part.name,
        "state": state,
        "seconds": round(seconds, 1),
        "reason": reason,
        "log": str(log) if log else None,
    }


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _line(outcome: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    reason = f": {outcome['reason']}" if outcome["reason"] else ""
    return f"{outcome['state']}{reason}, {len(rows)} rows in {outcome['seconds']:.0f} s"
