"""Pictures of stripes + a table -> ArrayRecord shards of pictures.

pictures.csv  patient_id, picture_id, file; optionally split, direction, width_px.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from rich.table import Table

from data_prep.csv_input import read_table, refuse_duplicates
from data_prep.recipe import Cohort, Report
from data_prep.records import row_records
from data_prep.split import SplitPatient, assign_splits
from data_prep.statistics import number_statistics, split_counts
from osteojax.data.schema import Field, Manifest
from osteojax.errors import CaseError
from tests.pictures import data


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--pictures", type=Path, required=True, help="table of pictures (CSV)")
    parser.add_argument("--edge", type=int, default=16, help="pixels")


def recipe(args: argparse.Namespace) -> Recipe:
    return Recipe(args.edge)


@dataclasses.dataclass(frozen=True)
class Picture:
    index: int
    case: str
    file: str
    row: dict[str, Any]


def read(args: argparse.Namespace) -> Cohort:
    rows = read_table(args.pictures, ("patient_id", "picture_id", "file"), ("picture_id",))
    refuse_duplicates(rows, ("picture_id",))
    given = {row.required("patient_id"): row.text("split") for row in rows}
    patients = [
        SplitPatient(name, frozenset("A"), frozenset([split] if split else []), "unlabelled")
        for name, split in given.items()
    ]
    splits = assign_splits(patients)
    pictures, failures = [], []
    for row in rows:
        try:
            patient, file = row.required("patient_id"), row.required("file")
            own = {"patient_id": patient, "picture_id": row.case, "split": splits[patient]}
            own["direction"] = row.text("direction")
            own["width_px"] = row.number("width_px", 0, 1000, "In pixels.")
        except CaseError as error:
            failures.append(error)
            continue
        pictures.append(Picture(len(pictures), row.case, str(args.pictures.parent / file), own))
    digest = hashlib.sha256(args.pictures.read_bytes()).hexdigest()
    sources = [Path(picture.file).name for picture in pictures]
    return Cohort(pictures, failures, [], [], digest, sources=sources)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """edge: of every picture, in pixels."""

    edge: int

    kind = "tests.pictures"
    item_column = "picture_id"
    shard_prefix = "pictures"
    completion = None

    @property
    def fields(self) -> tuple[Field, ...]:
        return data.fields(self.edge)

    def settings(self) -> dict[str, Any]:
        return {"edge": self.edge}

    def prepare(self, item: Picture, complete: bool) -> tuple[Report, list[list[bytes]]]:
        try:
            picture = sitk.GetArrayFromImage(sitk.ReadImage(item.file))
        except RuntimeError:
            raise CaseError(item.case, "no picture can be read.", "Export it as PNG.") from None
        if picture.shape != (self.edge, self.edge):
            reason = f"the picture is {picture.shape}, expected {self.edge} x {self.edge}."
            raise CaseError(item.case, reason, "Crop it, or give --edge.")
        records = row_records(self.fields, {"picture": picture.astype(np.uint8)})
        counts = np.bincount(picture.ravel(), minlength=256).tolist()
        return Report([item.row], [], [], {"picture": counts}), [records]

    def relabelled(self, item: Picture, report: Report) -> Report:
        return dataclasses.replace(report, rows=[item.row for _ in report.rows])

    def finish(
        self,
        cohort: Cohort,
        reports: list[Report],
        rows: list[dict[str, Any]],
        common: dict[str, Any],
    ) -> Manifest:
        training = [own for own in reports if own.rows and own.rows[0]["split"] == "train"]
        counts = np.sum([own.histograms["picture"] for own in training], axis=0)
        mean = float(np.average(np.arange(256), weights=counts))
        std = float(np.sqrt(np.average((np.arange(256) - mean) ** 2, weights=counts)))
        return Manifest(
            kind=self.kind,
            fields=self.fields,
            targets=data.targets(*number_statistics(rows, "width_px")),
            columns=data.COLUMNS,
            table="pictures.csv",
            counts=split_counts(rows, "direction"),
            about={"mean": mean, "std": std},
            **common,
        )

    def summary(self, rows: list[dict[str, Any]]) -> Table:
        table = Table("split", "pictures")
        for split in dict.fromkeys(row["split"] for row in rows):
            table.add_row(split, str(sum(row["split"] == split for row in rows)))
        return table
