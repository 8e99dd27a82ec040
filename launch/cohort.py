"""Write the table of a cohort from a folder as a PACS exports it.

Every series is listed with what it is; one of each study is used, by a rule that is printed. Then
add the masks, and run `osteojax prepare`.

Example:
  osteojax cohort export/ --from dicom --out cohort/cohort.csv --site A
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from data_prep.dicom_folder.choice import AXIAL, RULE
from data_prep.dicom_folder.headers import find_series
from data_prep.dicom_folder.table import Written, write_cohort
from osteojax.errors import UserError

SOURCES = ("dicom",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder, with any folders inside")
    parser.add_argument("--from", dest="source", choices=SOURCES, required=True, help="its kind")
    parser.add_argument("--out", type=Path, required=True, help="table to write (cohort.csv)")
    parser.add_argument("--site", default="A", help="for the column site (default: %(default)s)")
    parser.add_argument(
        "--link", type=Path, metavar="FILE",
        help="also write which pseudonym is which patient, readable by you only",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Writes the tables and prints what was found. Exit status 1 if files are damaged or a study
    has no axial CT."""
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: no such folder. Give the folder that the PACS exported.")

    def watch(files: list[Path]) -> Iterator[Path]:
        return iter(tqdm(files, unit="file", desc="headers"))

    found = find_series(args.folder, watch)
    written = write_cohort(found, args.out, args.site, args.link)
    console = Console()
    console.print(_table(written))
    console.print(RULE, highlight=False)
    if found.other_files:
        console.print(f"{found.other_files} files are not DICOM images.", highlight=False)
    if found.unreadable:
        console.print(f"[red]{found.unreadable} DICOM files are damaged.[/red]", highlight=False)
    for scan in written.left_out:
        console.print(f"[red]{scan}: no axial CT; see series.csv[/red]", highlight=False)
    patients = len({row["patient_id"] for row in written.cohort})
    console.print(
        f"{len(written.cohort)} scans of {patients} patients: {args.out}", highlight=False,
        soft_wrap=True,
    )  # fmt: skip
    return 1 if found.unreadable or written.left_out else 0


def _table(written: Written) -> Table:
    """Numbers of series by what they are."""
    counts = Counter(row["what"] for row in written.series)
    used = Counter(row["what"] for row in written.series if row["used"])
    table = Table("series", "number", "used")
    for column in table.columns[1:]:
        column.justify = "right"
    for what, count in sorted(counts.items(), key=lambda item: (item[0] != AXIAL, -item[1])):
        table.add_row(what, str(count), str(used[what]))
    return table
