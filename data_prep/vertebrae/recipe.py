"""CT + vertebra masks + DXA table -> ArrayRecord shards of texture pools.

example:
  osteojax prepare --cohort cohort.csv --dxa dxa.csv --out prepared --external-sites D

cohort.csv  patient_id, scan_id, site, ct, mask; optionally sex, age, split, label_scheme, ct_date,
            contrast, fracture, implant, poor_quality. Paths are relative to the table's folder.
dxa.csv     patient_id, level, device, bmd_g_cm2; optionally t_score, osteoporosis, dxa_date.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from data_prep.arguments import fractions, names, positive
from data_prep.recipe import FAIL, Cohort, Report
from data_prep.split import DEFAULT_FRACTIONS
from data_prep.statistics import number_statistics, split_counts
from data_prep.vertebrae.cohort import EXCLUSIONS, Scan, read_cohort
from data_prep.vertebrae.mask_options import add_mask_options
from data_prep.vertebrae.pool import SIZES, LateMaps, RoiSettings
from data_prep.vertebrae.scan import prepare_scan, relabelled
from data_prep.vertebrae.scanners import DeviceTable, read_devices
from data_prep.vertebrae.statistics import map_statistics, region_statistics
from data_prep.vertebrae.texture import TextureSettings, require_pyradiomics
from osteojax.data import vertebrae
from osteojax.data.boxes import BOXES, CUBE
from osteojax.data.schema import SPLITS, Field, Manifest
from osteojax.data.vertebrae import IMAGE_ONLY, POOL, UNKNOWN_DEVICE
from osteojax.errors import UserError


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--cohort", type=Path, required=True, help="table of scans (CSV)")
    parser.add_argument("--dxa", type=Path, help="table of DXA results (CSV)")
    add_mask_options(parser)
    parser.add_argument(
        "--store",
        choices=("pool", "image"),
        default="pool",
        help="image: no maps, for training that makes them itself; their statistics are kept",
    )
    parser.add_argument(
        "--box",
        choices=tuple(BOXES),
        default=CUBE,
        help="cube: 96 mm. vertebra: half of it, moved back. body: about the vertebral body",
    )
    parser.add_argument(
        "--size",
        type=int,
        choices=SIZES,
        default=96,
        help="voxels of 96 mm: 96 makes them 1 mm, 64 1.5 mm, 32 3 mm",
    )
    parser.add_argument(
        "--external-sites", type=names, default=frozenset(), metavar="A,B", help="never trained on"
    )
    parser.add_argument("--keep-truncated", action="store_true", help="keep cut vertebrae")
    parser.add_argument("--devices", type=Path, help="DXA devices and references (TOML)")
    parser.add_argument(
        "--include",
        type=names,
        default=frozenset(),
        metavar="COLUMN,...",
        help=f"do not exclude scans for these: {', '.join(EXCLUSIONS)}",
    )
    parser.add_argument(
        "--split-fractions", type=fractions, default=DEFAULT_FRACTIONS, metavar="TRAIN,VALID,TEST"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--bin-width", type=float, default=25.0, help="grey level width, HU")
    parser.add_argument("--kernel-radius", type=positive, default=3, help="window radius, voxels")
    parser.add_argument("--texture-domain", choices=("box", "vertebra"), default="box")
    parser.add_argument("--texture-engine", choices=("jax", "pyradiomics"), default="jax")
    parser.add_argument(
        "--patch-stride",
        type=positive,
        metavar="VOXELS",
        help="patches this far apart, each with its own grey levels; default: dense windows",
    )


def recipe(args: argparse.Namespace) -> Recipe:
    """The settings that options name. Raises UserError."""
    if unknown := sorted(args.include - set(EXCLUSIONS)):
        raise UserError(f"--include {', '.join(unknown)}: choose from {', '.join(EXCLUSIONS)}.")
    texture = TextureSettings(
        bin_width=args.bin_width,
        kernel_radius=args.kernel_radius,
        domain=args.texture_domain,
        engine=args.texture_engine,
        patch_stride=args.patch_stride,
    )
    if texture.engine == "pyradiomics":
        require_pyradiomics()  # now, rather than as a failure of every scan
    stored = POOL if args.store == "pool" else IMAGE_ONLY
    reading = {
        "label_scheme": args.label_scheme,
        "external_sites": sorted(args.external_sites),
        "split_fractions": list(args.split_fractions),
        "seed": args.seed,
        "include": sorted(args.include),
        # `osteojax simulate` writes this file beside its cohort; reports then say "simulated".
        "simulated": (args.cohort.parent / "simulation.json").is_file(),
    }
    roi = RoiSettings(args.size, args.keep_truncated, texture, stored, args.box, args.ignore_labels)
    return Recipe(roi, read_devices(args.devices), reading)


def read(args: argparse.Namespace) -> Cohort:
    """The scans of the tables that options name. Raises UserError."""
    return read_cohort(
        args.cohort,
        args.dxa,
        read_devices(args.devices),
        args.label_scheme,
        args.external_sites,
        args.split_fractions,
        args.seed,
        args.include,
        args.doubts == FAIL,
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The `data_prep.recipe.Recipe` of vertebrae.

    Attributes:
      roi: settings of every scan's ROIs and maps.
      devices: DXA scanners and references.
      reading: options with which the tables were read, for settings.json and the manifest.
    """

    roi: RoiSettings
    devices: DeviceTable
    reading: dict[str, Any]

    kind = vertebrae.KIND
    item_column = "scan_id"
    shard_prefix = "pool"

    @property
    def fields(self) -> tuple[Field, ...]:
        return vertebrae.fields(self.roi.grid.shape, self.roi.stored)

    @property
    def completion(self) -> LateMaps | None:
        """None for PyRadiomics, which takes minutes per vertebra on CPU workers."""
        return LateMaps(self.roi) if self.roi.texture.engine == "jax" else None

    def settings(self) -> dict[str, Any]:
        fields = {
            "size": self.roi.size,
            "box": self.roi.box,
            "keep_truncated": self.roi.keep_truncated,
            "texture": dataclasses.asdict(self.roi.texture),
            "store": "pool" if self.roi.stored == POOL else "image",
            "devices": {
                name: {sex: dataclasses.asdict(ref) for sex, ref in sorted(references.items())}
                for name, references in self.devices.items()
            },
            **self.reading,
        }
        if self.roi.ignore_labels:  # folders of earlier versions have no such setting
            fields["ignore_labels"] = list(self.roi.ignore_labels)
        return json.loads(json.dumps(fields))

    def prepare(self, item: Scan, complete: bool) -> tuple[Report, list[list[bytes]]]:
        return prepare_scan(item, self.roi, complete)

    def relabelled(self, item: Scan, report: Report) -> Report:
        return relabelled(item, report)

    def finish(
        self,
        cohort: Cohort,
        reports: list[Report],
        rows: list[dict[str, Any]],
        common: dict[str, Any],
    ) -> Manifest:
        training = [own for own in reports if own.rows and own.rows[0]["split"] == "train"]
        schemes = {scan.label_scheme for scan in cohort.items}
        bmd_mean, bmd_std = number_statistics(rows, "bmd_g_cm2")
        return vertebrae.manifest_of(
            size=self.roi.size,
            spacing_mm=self.roi.spacing_mm,
            shape=self.roi.grid.shape,
            box=self.roi.box,
            margin=self.roi.grid.margin,
            statistics=region_statistics(self.roi.map_specs(), training),
            maps=map_statistics(self.roi.map_specs(), training),
            devices=(*self.devices, UNKNOWN_DEVICE),
            bmd_mean=bmd_mean,
            bmd_std=bmd_std,
            texture=self.settings()["texture"],
            counts=split_counts(rows, "osteoporosis"),
            label_scheme=schemes.pop() if len(schemes) == 1 else "mixed",
            stored=self.roi.stored,
            **common,
        )

    def summary(self, rows: list[dict[str, Any]]) -> Table:
        """Patients, vertebrae, labels and positives of each split and site."""
        table = Table("split", "site", "patients", "vertebrae", "labelled", "positive")
        for column in table.columns[2:]:
            column.justify = "right"
        groups = sorted({(SPLITS.index(row["split"]), row["site"]) for row in rows})
        for split, site in groups:
            own = [r for r in rows if (SPLITS.index(r["split"]), r["site"]) == (split, site)]
            labels = [row["osteoporosis"] for row in own if row["osteoporosis"] is not None]
            patients = len({row["patient_id"] for row in own})
            numbers = (patients, len(own), len(labels), sum(labels))
            table.add_row(SPLITS[split], site, *(str(n) for n in numbers))
        return table
