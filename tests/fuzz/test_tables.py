"""Damaged tables and prepared folders: a clean error, or what is really there."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.vertebrae.cohort import read_cohort
from data_prep.vertebrae.scanners import DEFAULT_DEVICES
from launch.prediction.cases import Request, table_cases
from osteojax.data.cohort import PreparedCohort
from osteojax.data.manifest import load_manifest
from osteojax.data.vertebrae import POOL, about
from osteojax.errors import CaseError, UserError
from tests.fuzz.mutations import damaged, fuzz
from tests.tiny_cohort import write_tiny_cohort

COHORT = """patient_id,scan_id,site,ct,mask,sex,age,split,label_scheme,ct_date,contrast
p1,s1,A,a.nii.gz,am.nii.gz,F,61.5,train,verse,2020-01-31,0
p2,s2,B,b.nii.gz,bm.nii.gz,M,70,,,,yes
p3,s3,D,"c,d.nii.gz",cm.nii.gz,,,,totalsegmentator_v2,2021-02-03,
"""
DXA = """patient_id,level,device,bmd_g_cm2,t_score,osteoporosis,dxa_date
p1,L1,hologic,0.812,-2.6,1,2020-02-01
p2,L2,GE Lunar,1.012,,,
"""


def clean(error: UserError) -> None:
    """One line, and a failure's three parts are filled in."""
    assert "\n" not in str(error)
    assert "Traceback" not in str(error)
    if isinstance(error, CaseError):
        assert error.case
        assert error.reason
        assert error.remedy


@functools.cache
def folder() -> Path:
    import atexit
    import tempfile

    place = tempfile.mkdtemp(prefix="osteojax-fuzz-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


@functools.cache
def prepared() -> Path:
    return write_tiny_cohort(folder() / "pool", patients=10, size=4)


@fuzz(60)
@given(damaged(COHORT.encode()), damaged(DXA.encode()), st.booleans())
def test_cohort_tables(cohort: bytes, dxa: bytes, both: bool) -> None:
    cohort_csv, dxa_csv = folder() / "cohort.csv", folder() / "dxa.csv"
    cohort_csv.write_bytes(cohort)
    dxa_csv.write_bytes(dxa if both else DXA.encode())
    try:
        read = read_cohort(cohort_csv, dxa_csv, DEFAULT_DEVICES, "verse", frozenset("D"))
    except UserError as error:
        clean(error)
        return
    for failure in read.failures:
        clean(failure)
    for scan in read.items:
        assert scan.scan_id
        assert scan.age is None or 0 <= scan.age <= 120
        for result in scan.dxa.values():
            assert result.bmd_g_cm2 is None or 0 < result.bmd_g_cm2 < 5


@fuzz(40)
@given(damaged(COHORT.encode()))
def test_tables_of_cts_to_predict_on(content: bytes) -> None:
    path = folder() / "predict.csv"
    path.write_bytes(content)
    devices = ["hologic", "unknown"]
    request = Request(devices, None, "verse", "unknown", False, False, False, folder() / "out")
    try:
        cases, failures = table_cases(path, request)
    except UserError as error:
        clean(error)
        return
    for failure in failures:
        clean(failure)
    for case in cases:
        assert case.device in devices
        assert case.folder.parent == folder() / "out"


def check_folder(pool: Path) -> None:
    """Opens a prepared folder; what it gives is what was written, or a UserError says why not."""
    whole = PreparedCohort(prepared())
    try:
        opened = PreparedCohort(pool)
        assert opened.about.size == whole.about.size
        assert len(opened) == len(whole)
        assert set(opened.labels.osteoporosis) <= {-1, 0, 1}
        assert opened.labels.level.min() >= 0
        assert opened.labels.level.max() < 18
        assert np.isfinite(opened.about.map_affine()).all()
        for row in range(0, len(opened), 5):
            np.testing.assert_array_equal(
                opened.members(row, list(POOL)), whole.members(row, list(POOL))
            )
    except UserError as error:
        clean(error)


def with_one_changed(name: str, content: bytes) -> Path:
    """A copy of the prepared folder with other bytes in one file."""
    pool = folder() / "changed"
    shutil.rmtree(pool, ignore_errors=True)
    shutil.copytree(prepared(), pool)
    (pool / name).write_bytes(content)
    return pool


FILES = {
    "manifest.json": 40,
    "vertebrae.csv": 40,
    "shards/pool-00000-of-00001.array_record": 40,
}


@pytest.mark.parametrize("name", list(FILES))
def test_files_of_a_prepared_folder(name: str) -> None:
    content = (prepared() / name).read_bytes()
    head = 4000 if name == "vertebrae.csv" else None

    @fuzz(FILES[name])
    @given(damaged(content, head))
    def check(changed: bytes) -> None:
        check_folder(with_one_changed(name, changed))

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FILES))
def test_files_of_a_prepared_folder_at_length(name: str) -> None:
    content = (prepared() / name).read_bytes()

    @fuzz(1500)
    @given(damaged(content))
    def check(changed: bytes) -> None:
        check_folder(with_one_changed(name, changed))

    check()


ODD = (None, "", "x", -1, 0, 1, 1e308, 10**30, True, [], {}, [[]], "../../../etc/passwd", ["a"])


def odd_trees(tree: Any) -> Any:
    """Every place of a JSON tree, with one odd value in it or with the place taken out."""

    def places(node: Any, path: tuple = ()) -> list[tuple]:
        found = [path] if path else []
        if isinstance(node, dict | list):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                found += places(child, (*path, key))
        return found

    def change(path: tuple, value: Any, remove: bool) -> Any:
        changed = copy.deepcopy(tree)
        *way, last = path
        node = changed
        for key in way:
            node = node[key]
        if remove:
            del node[last]
        else:
            node[last] = value
        return changed

    return st.builds(change, st.sampled_from(places(tree)), st.sampled_from(ODD), st.booleans())


def test_odd_values_in_a_manifest() -> None:
    tree = json.loads((prepared() / "manifest.json").read_text())

    @fuzz(150)
    @given(odd_trees(tree))
    def check(changed: Any) -> None:
        (folder() / "odd").mkdir(exist_ok=True)
        (folder() / "odd" / "manifest.json").write_text(json.dumps(changed))
        try:
            manifest = load_manifest(folder() / "odd")
        except UserError as error:
            clean(error)
            return
        assert manifest.num_items >= 0
        assert about(manifest).size > 0
        assert np.isfinite(about(manifest).map_affine()).all()
        assert about(manifest).bmd_std > 0
        assert about(manifest).devices[-1] == "unknown"
        for shard in manifest.shards:
            assert Path(shard["name"]).name == shard["name"]

    check()
