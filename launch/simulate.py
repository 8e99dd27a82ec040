"""Write a simulated cohort of several sites and DXA scanners with known truth, as a user's files.

Simulated patients are for learning and testing this program. They are not clinical evidence.

Example:
  osteojax simulate --out runs/cohort --patients 40 --workers 2

Controls, in which a part of the method must not help (docs/simulation.md):
  --texture-signal 0    texture carries no information about bone
  --hu-signal 0         only texture does; with both options, nothing does
  --identical-devices   the DXA scanner carries no information
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from data_prep.simulate.cohort_writer import simulate_cohort
from data_prep.simulate.options import add_arguments, settings
from data_prep.simulate.patients import Patient

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    patients = simulate_cohort(args.out, settings(args), args.patients, args.workers)
    Console().print(_summary(patients, f"{args.out} (simulated)"))
    return 0


def _summary(patients: Iterable[Patient], title: str) -> Table:
    """Patients, scans, labelled vertebrae and positives by site."""
    counts: dict[str, list[int]] = {}
    devices: dict[str, set[str]] = {}
    for patient in patients:
        row = counts.setdefault(patient.site, [0, 0, 0, 0])
        positive = sum(result.osteoporosis for result in patient.dxa)
        for column, add in enumerate((1, len(patient.dxa), positive, int(positive > 0))):
            row[column] += add
        devices.setdefault(patient.site, set()).update(r.device for r in patient.dxa)
    table = Table(title=title)
    table.add_column("site")
    table.add_column("DXA devices")
    heads = (
        "patients",
        "scans",
        "labelled\nvertebrae",
        "positive\nvertebrae",
        "positive\npatients",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for site in sorted(counts):
        n, labelled, positive, ill = counts[site]
        share = f"{positive} ({positive / labelled:.0%})" if labelled else "0"
        table.add_row(
            site, ", ".join(sorted(devices[site])), str(n), str(n), str(labelled), share, str(ill)
        )
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    share = f"{total[2]} ({total[2] / total[1]:.0%})"
    table.add_section()
    table.add_row("all", "", str(total[0]), str(total[0]), str(total[1]), share, str(total[3]))
    return table
