"""Records and report of each item before they are in a shard: `parts/000012.array_record`, `.json`.

`prepare_item`, the unit of work of `osteojax prepare`, runs in a worker process. The JSON is
written last and means that the item is done.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from pathlib import Path

from data_prep.recipe import Item, Recipe, Report
from data_prep.records import ShardReader, count_records, write_records
from osteojax.errors import CaseError, UserError
from osteojax.files import write_text


def part_path(out: Path, index: int, suffix: str) -> Path:
    """`parts/000012.json`, `parts/000012.array_record`."""
    return out / "parts" / f"{index:06d}.{suffix}"


def prepare_item(
    recipe: Recipe, item: Item, out: Path, complete: bool, doubts_fail: bool = False
) -> Report:
    """Prepares one item and writes its part files.

    An unusable case becomes a failure in the report. So does an unexpected error, with its place in
    the program, so that one file does not stop a cohort of thousands.

    Args:
      complete: whether to make the final records; if not, `recipe.completion` makes them later.
      doubts_fail: whether an item with a doubt is left out and its doubts are failures.

    Raises:
      OSError: the part cannot be written (disk full).
      UserError: a mistake that concerns every item: the texture engine is not installed.
    """
    try:
        report, records = recipe.prepare(item, complete)
    except CaseError as error:
        report, records = Report([], [(error.case, error.reason, error.remedy)], []), []
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        reason = f"unexpected {type(error).__name__} at {where}: {error}".replace("\n", " ")
        report = Report([], [(item.case, reason, "Please report this line as a bug.")], [])
        records = []
    if doubts_fail and report.doubts:
        failures = [*report.failures, *report.doubts]
        report, records = Report([], failures, report.excluded), []
    save_part(out, item.index, report, records)
    return report


def save_part(out: Path, index: int, report: Report, records: list[list[bytes]]) -> None:
    """Writes the part of an item; without records, removes the part of an earlier run."""
    path = part_path(out, index, "array_record")
    if records:
        write_records(path, records)
    else:
        path.unlink(missing_ok=True)
    save_report(out, index, report)


def save_report(out: Path, index: int, report: Report) -> None:
    """Writes `parts/000012.json`, atomically."""
    text = json.dumps(dataclasses.asdict(report), ensure_ascii=False)
    write_text(part_path(out, index, "json"), text)


def load_report(out: Path, index: int) -> Report:
    """Reads `parts/000012.json`."""
    fields = json.loads(part_path(out, index, "json").read_text(encoding="utf-8"))
    fields["failures"] = [tuple(failure) for failure in fields["failures"]]
    fields["excluded"] = [tuple(row) for row in fields["excluded"]]
    fields["doubts"] = [
        tuple(doubt) for doubt in fields.get("doubts", [])
    ]  # earlier versions wrote none
    return Report(**fields)


def open_part(out: Path, index: int, num_rows: int) -> ShardReader:
    """Opens the records of an item's part."""
    path = part_path(out, index, "array_record")
    return ShardReader(path, max(1, count_records(path) // num_rows))


def remove_parts(out: Path, indices: range) -> None:
    """Removes the records, which are in the shard now; the reports stay."""
    for index in indices:
        part_path(out, index, "array_record").unlink(missing_ok=True)
