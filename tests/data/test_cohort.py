"""Folders of earlier versions, opened by this one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from osteojax.data.cohort import PreparedCohort
from osteojax.data.places import Places
from osteojax.data.vertebrae import VERTEBRA_COLUMNS, columns
from osteojax.errors import UserError
from tests.tiny_cohort import write_tiny_cohort

ADDED_LATER = [column.name for column in columns(()) if column.added_later]


def test_a_folder_without_the_newest_columns_opens_with_them_empty(tmp_path):
    folder = write_tiny_cohort(tmp_path / "pool", patients=2, size=8)
    whole = PreparedCohort(folder).table
    pd.read_csv(folder / "vertebrae.csv").drop(columns=ADDED_LATER).to_csv(
        folder / "vertebrae.csv", index=False
    )
    old = PreparedCohort(folder).table
    assert set(old.columns) == set(VERTEBRA_COLUMNS)
    assert old[ADDED_LATER].isna().all(axis=None)
    assert whole["slice_mm"].tolist() == [1.0] * 3 + [3.0] * 3
    assert old["mean_hu"].tolist() == whole["mean_hu"].tolist()


def test_any_other_missing_column_is_an_error(tmp_path):
    folder = write_tiny_cohort(tmp_path / "pool", patients=1, size=8)
    pd.read_csv(folder / "vertebrae.csv").drop(columns="mean_hu").to_csv(
        folder / "vertebrae.csv", index=False
    )
    with pytest.raises(UserError, match=r"columns missing: .*mean_hu"):
        PreparedCohort(folder)


def as_format_2(folder: Path) -> Path:
    """Rewrites a folder of cubes without bodies as osteojax 0.2 wrote it."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["format_version"] = 2
    for name in ("box", "shape", "margin", "statistics"):
        del content["about"][name]
    later = [name for name in ADDED_LATER if name != "slice_mm"]
    content["columns"] = [c for c in content["columns"] if c["name"] not in later]
    path.write_text(json.dumps(content))
    table = folder / "vertebrae.csv"
    pd.read_csv(table).drop(columns=later).to_csv(table, index=False)
    return folder


def test_a_folder_of_format_2_opens_as_cubes_without_bodies(tmp_path):
    folder = write_tiny_cohort(tmp_path / "pool", patients=2, size=8, body=False)
    now = PreparedCohort(folder)
    then = PreparedCohort(as_format_2(folder))
    assert then.about == now.about
    assert (then.about.box, then.about.shape, then.about.margin) == ("cube", (8, 8, 8), 0)
    assert not then.about.has_body
    assert list(then.about.statistics) == ["box"]
    assert then.array(1, "mask").shape == (2, 8, 8, 8)
    assert then.table["texture_number"].isna().all()
    np.testing.assert_array_equal(then.about.map_affine(), now.about.map_affine())


def test_what_an_older_folder_lacks_is_refused_in_one_line(tmp_path):
    folder = as_format_2(write_tiny_cohort(tmp_path / "pool", patients=1, size=8, body=False))
    cohort = PreparedCohort(folder)
    for region in ("body", "vertebra"):
        with pytest.raises(UserError, match=r"statistics of box only.*Prepare the cohort again"):
            cohort.about.map_affine(region)
    with pytest.raises(UserError, match="Prepare the cohort again"):
        Places(cohort, 2, 1.0)
    with pytest.raises(UserError, match="choose one of box, vertebra, body"):
        cohort.about.map_affine("bone")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("box", "barrel"),
        ("shape", [8, 8, 6]),
        ("shape", [8, 8]),
        ("margin", 4),
        ("margin", -1),
        ("margin", 1.5),
        ("statistics", {"body": [[0.0, 1.0]]}),
        ("statistics", {"body": [[0.0, 0.0]] * 5}),
        ("statistics", {"bone": [[0.0, 1.0]] * 5}),
    ],
)
def test_a_damaged_box_or_statistic_is_refused(tmp_path, name, value):
    folder = write_tiny_cohort(tmp_path / "pool", patients=1, size=8)
    content = json.loads((folder / "manifest.json").read_text())
    content["about"][name] = value
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a manifest of this version"):
        PreparedCohort(folder)


def test_a_box_with_a_margin_is_written_and_read(tmp_path):
    folder = write_tiny_cohort(tmp_path / "pool", 1, shape=(12, 10, 14), margin=2)
    cohort = PreparedCohort(folder)
    assert cohort.about.shown == (8, 6, 10)
    assert cohort.members(0, ["image"]).shape == (1, 12, 10, 14)
    body = cohort.array(0, "mask")[2]
    assert body.any()
    assert body.sum() == body[cohort.about.window].sum()
    assert (cohort.table["body_places"] > 0).all()


def test_labels_are_the_tables(tmp_path):
    cohort = PreparedCohort(write_tiny_cohort(tmp_path / "pool", patients=4, size=8))
    table, labels = cohort.table, cohort.labels
    names = dict(enumerate([f"T{i}" for i in range(1, 13)] + [f"L{i}" for i in range(1, 7)]))
    assert [names[level] for level in labels.level] == table["level"].tolist()
    np.testing.assert_array_equal(labels.bmd_g_cm2, table["bmd_g_cm2"].astype(np.float32))
    known = table["osteoporosis"].notna().to_numpy()
    assert (labels.osteoporosis[~known] == -1).all()
    assert labels.osteoporosis[known].tolist() == table["osteoporosis"][known].tolist()
    devices = cohort.about.devices
    given = [device or devices[-1] for device in table["device"]]
    assert [devices[device] for device in labels.device] == given
