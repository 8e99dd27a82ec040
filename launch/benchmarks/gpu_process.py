"""The process of one part of `osteojax benchmark gpu`.

    python -m launch.benchmarks.gpu_process MODULE NAME FILE [smoke]

Runs MODULE.NAME(sizes), which yields rows, and writes FILE after each of them, so that what was
measured stays if this process is ended. A package that is not installed is no failure.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from launch.benchmarks.gpu_part import FULL, SMOKE, Absent, Sizes
from osteojax.files import write_json

OURS = ("osteojax", "launch", "data_prep", "configs")


def main(module: str, name: str, path: Path, sizes: Sizes) -> int:
    """Runs a part; its exit status."""
    found: dict[str, Any] = {"state": "failed", "reason": "", "rows": []}
    try:
        for row in getattr(importlib.import_module(module), name)(sizes):
            found["rows"].append(row)
            write_json(path, found)
        found["state"] = "measured"
    except Absent as error:
        found |= {"state": "absent", "reason": str(error)}
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        found["reason"] = f"{package} is not installed"
        if not package or package in OURS:
            found["reason"] = str(error)
            traceback.print_exc()
        else:
            found["state"] = "absent"
    except Exception as error:  # a reason for the page; the log has the rest
        found["reason"] = _reason(error)
        traceback.print_exc()
    write_json(path, found)
    return int(found["state"] == "failed")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


if __name__ == "__main__":
    module, name, path, *smoke = sys.argv[1:]
    sys.exit(main(module, name, Path(path), SMOKE if smoke else FULL))
