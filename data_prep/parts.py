"""What each item gave, until it is in a shard: `parts/000012.array_record` and `.json`.

The unit of work of `osteojax prepare`: `prepare_item` runs in a worker process. The JSON is written
last and means that the item is done.
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


def prepare_item(recipe: Recipe, item: Item, out: Path, complete: bool) -> Report:
    """Runs one item to its part files.

    A case that is unusable becomes a failure in the report. So does an error nobody foresaw, with
    its place in the program: a cohort of thousands does not stop for one file.

    Args:
      complete: make the final records; else leave to `recipe.completion` what it does faster.

    Raises:
      OSError: the part cannot be written (disk full).
      UserError: what is wrong for every item alike: the texture engine is not installed.
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
    save_part(out, item.index, report, records)
    return report


def save_part(out: Path, index: int, report: Report, records: list[list[bytes]]) -> None:
    """Writes the part of an item, or removes that of an earlier run where there are no records."""
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
    return Report(**fields)


def open_part(out: Path, index: int, num_rows: int) -> ShardReader:
    """The records of an item's part: as many a row as `prepare` made."""
    path = part_path(out, index, "array_record")
    return ShardReader(path, max(1, count_records(path) // num_rows))


def remove_parts(out: Path, indices: range) -> None:
    """Removes the records that are in the shard now; the reports stay."""
    for index in indices:
        part_path(out, index, "array_record").unlink(missing_ok=True)
