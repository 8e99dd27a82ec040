"""What spreadsheets do to the tables of a cohort ends in the clean table's rows, or is told."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from random import Random

import pytest

from data_prep.recipe import Cohort
from data_prep.vertebrae.cohort import read_cohort
from data_prep.vertebrae.scanners import DEFAULT_DEVICES
from osteojax.errors import UserError
from tests.fuzz.spreadsheets import MANGLINGS, File, mangled, some_file
from tests.fuzz.test_tables import clean

COHORT = """patient_id,scan_id,site,ct,mask,sex,age,split,label_scheme,ct_date,contrast
0012,0101,A,a.nii.gz,am.nii.gz,F,61.5,train,verse,2020-01-31,0
p 2,s2,B,b.nii.gz,bm.nii.gz,M,70,valid,,2021-11-02,0
p3,s3,D,"c,d.nii.gz",cm.nii.gz,,,test,totalsegmentator_v2,,
007,s4,A,e.nii.gz,em.nii.gz,F,55.25,train,verse,2019-12-01,1
"""
DXA = """patient_id,level,device,bmd_g_cm2,t_score,osteoporosis,dxa_date
0012,L1,hologic,0.672,-2.6,1,2020-02-01
0012,L2,hologic,0.912,-1.3,0,2020-02-01
p 2,L2,GE Lunar,1.012,,,
p3,L1,,0.85,-0.55,,
"""


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))


def read(folder: Path, cohort: bytes, dxa: bytes) -> Cohort:
    (folder / "cohort.csv").write_bytes(cohort)
    (folder / "dxa.csv").write_bytes(dxa)
    return read_cohort(folder / "cohort.csv", folder / "dxa.csv", DEFAULT_DEVICES, "verse")


def outcome(folder: Path, expected: Cohort, cohort: bytes, dxa: bytes) -> str:
    """ "refused", "told" or "same"; fails where something is read as something else."""
    try:
        found = read(folder, cohort, dxa)
    except UserError as error:
        clean(error)
        return "refused"
    told = [*found.failures, *found.doubts]
    for failure in found.failures:
        clean(failure)
    wanted = {scan.scan_id.lstrip("0"): scan for scan in expected.items}
    for scan in found.items:
        # Ids without their zeros are other names; what belongs together must stay together.
        own = wanted.pop(scan.scan_id.lstrip("0"))
        assert scan.patient_id in (own.patient_id, own.patient_id.lstrip("0"))
        named = {"patient_id": own.patient_id, "scan_id": own.scan_id}
        assert dataclasses.replace(scan, index=own.index, dxa=own.dxa, **named) == own
        assert scan.dxa.items() <= own.dxa.items(), (scan.dxa, own.dxa)
        assert scan.dxa == own.dxa or told, (scan.scan_id, "lost results without a word")
    assert told or not wanted, (list(wanted), "lost without a word")
    excluded = [(case, reason) for case, _, reason in found.excluded]
    assert excluded == [(case, reason) for case, _, reason in expected.excluded] or told
    assert len(excluded) <= len(expected.excluded)
    return "told" if told else "same"


def check(folder: Path, seeds: range) -> dict[str, int]:
    """How often which outcome was had."""
    expected = read(folder, COHORT.encode(), DXA.encode())
    assert not expected.failures
    assert not expected.doubts
    assert [len(scan.dxa) for scan in expected.items] == [2, 1, 1]
    counts = {"refused": 0, "told": 0, "same": 0}
    for seed in seeds:
        rng = Random(seed)
        (cohort, of_cohort), (dxa, of_dxa) = (mangled(rows_of(text), rng) for text in (COHORT, DXA))
        files = some_file(rng), some_file(rng)
        try:
            counts[outcome(folder, expected, files[0].write(cohort), files[1].write(dxa))] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {of_cohort}, {of_dxa}, {files}: {error}") from error
    return counts


def test_drawn_manglings(tmp_path):
    counts = check(tmp_path, range(250))
    assert min(counts.values()) > 25, counts


@pytest.mark.slow
def test_drawn_manglings_at_length(tmp_path):
    check(tmp_path, range(250, 10_250))


MUST_BE_READ = (
    "other_case", "spaced_header", "unseen_characters", "empty_columns", "blank_rows",
    "numbers_rewritten", "other_minus", "ids_as_formulas", "lower_levels", "other_order",
    "another_column",
)  # fmt: skip


@pytest.mark.parametrize("change", MANGLINGS, ids=lambda change: change.__name__)
def test_each_mangling_alone(tmp_path, change):
    """The harmless ones are read as the clean table, in every separator."""
    expected = read(tmp_path, COHORT.encode(), DXA.encode())
    for seed in range(6):
        rng = Random(seed)
        file = File(",;\t"[seed % 3], "utf-8", "\n", csv.QUOTE_MINIMAL)
        tables = (file.write(change(rows_of(text), rng)) for text in (COHORT, DXA))
        found = outcome(tmp_path, expected, *tables)
        semicolons = change.__name__ == "decimal_commas" and file.separator != ","
        if change.__name__ in MUST_BE_READ or semicolons:
            assert found == "same"


def test_every_file_form_of_the_clean_table(tmp_path):
    expected = read(tmp_path, COHORT.encode(), DXA.encode())
    for separator in ",;\t":
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            for end in ("\n", "\r\n", "\r"):
                for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
                    file = File(separator, encoding, end, quoting)
                    tables = (file.write(rows_of(text)) for text in (COHORT, DXA))
                    assert outcome(tmp_path, expected, *tables) == "same", file
