"""Fields, columns and targets of a manifest: what they read back, and what they refuse."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest

from osteojax.data.cohort import open_cohort
from osteojax.data.kinds import find_kind
from osteojax.data.manifest import load_manifest
from osteojax.data.schema import Column, Field, Manifest
from osteojax.data.soundness import manifest_fault, table_fault
from osteojax.data.vertebrae import LEVELS
from osteojax.errors import UserError
from tests.stored import VERSIONS, unpack
from tests.tiny_cohort import write_tiny_cohort

RNG = np.random.default_rng(0)
FIELDS = [
    (Field("volume", "uint8", (3, 4, 5)), RNG.integers(0, 256, (3, 4, 5)).astype(np.uint8)),
    (Field("curve", "float32", (7,)), RNG.normal(size=7).astype(np.float32)),
    (Field("mask", "bool", (2, 3, 3, 3), "bits"), RNG.random((2, 3, 3, 3)) > 0.5),
    (Field("picture", "int16", None, "npy"), RNG.integers(-5, 5, (6, 2)).astype(np.int16)),
]


@pytest.mark.parametrize(("field", "array"), FIELDS, ids=["raw", "float", "bits", "npy"])
def test_a_field_reads_what_it_wrote(field: Field, array: np.ndarray) -> None:
    record = field.encode(array)
    back = field.decode(record)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    for damaged in (record[:-1], b""):
        with pytest.raises((ValueError, EOFError)):
            field.decode(damaged)


def test_a_field_refuses_another_shape_and_pickle() -> None:
    with pytest.raises(ValueError, match="an array of"):
        FIELDS[0][0].encode(np.zeros((3, 4), np.uint8))
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        FIELDS[3][0].decode(stream.getvalue())


@pytest.mark.parametrize(
    ("column", "cells", "line"),
    [
        (Column("site", required=True), ["A", ""], 3),
        (Column("side", "choice", ("left", "right")), ["left", "", "up"], 4),
        (Column("side", "choice", ("left", "right"), required=True), ["", "left"], 2),
        (Column("age", "number", low=0), [3, np.nan, -1], 4),
        (Column("age", "number", high=120), [120, 121], 3),
        (Column("age", "number", required=True), [np.nan], 2),
        (Column("grade", "number", whole=True), [1.0, 1.5], 3),
        (Column("age", "number"), [1.0, np.inf], 3),
        (Column("age", "number"), ["1", "many"], 3),
    ],
)
def test_a_cell_that_a_column_cannot_hold_is_named(column: Column, cells: list, line: int) -> None:
    table = pd.DataFrame({column.name: cells})
    fault = table_fault(table, [column])
    assert fault is not None
    assert fault.startswith(f"line {line}: {column.name} ")
    assert table_fault(table.iloc[: line - 2], [column]) is None


def changed(manifest: Manifest, part: str, place: int, **values) -> Manifest:
    parts = list(getattr(manifest, part))
    parts[place] = dataclasses.replace(parts[place], **values)
    return dataclasses.replace(manifest, **{part: tuple(parts)})


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path) -> None:
    manifest = load_manifest(write_tiny_cohort(tmp_path / "pool", patients=1, size=4))
    assert manifest_fault(manifest) is None
    for wrong in (
        changed(manifest, "fields", 0, name="image"),
        changed(manifest, "fields", 1, shape=(4, 4, 0)),
        changed(manifest, "fields", 1, shape=None),
        changed(manifest, "fields", 1, shape=(16384, 16384, 16384)),
        changed(manifest, "fields", 1, dtype="object"),
        changed(manifest, "fields", 1, codec="pickle"),
        changed(manifest, "fields", 1, codec="bits"),
        changed(manifest, "fields", 2, name="image"),
        changed(manifest, "columns", 0, name="scan_id"),
        changed(manifest, "columns", 0, kind="choice"),
        changed(manifest, "columns", 0, low=1.0),
        changed(manifest, "targets", 0, column="absent"),
        changed(manifest, "targets", 0, classes=("one",)),
        changed(manifest, "targets", 1, column="site"),
        changed(manifest, "targets", 1, std=0.0),
        changed(manifest, "targets", 2, classes=("L1", "L2")),
        dataclasses.replace(manifest, table="../vertebrae.csv"),
        dataclasses.replace(manifest, shards=({"name": "a/b", "items": 1},)),
        dataclasses.replace(manifest, shards=({"name": "a", "items": -1},)),
    ):
        assert manifest_fault(wrong), wrong


def test_targets_are_read_by_name(tmp_path) -> None:
    cohort = open_cohort(write_tiny_cohort(tmp_path / "pool", patients=4, size=4))
    table = cohort.table
    level = [LEVELS.index(name) for name in table["level"]]
    np.testing.assert_array_equal(cohort.targets["level"], level)
    known = table["osteoporosis"].notna().to_numpy()
    np.testing.assert_array_equal(cohort.targets["osteoporosis"][~known], -1)
    np.testing.assert_array_equal(
        cohort.targets["osteoporosis"][known], table["osteoporosis"][known]
    )
    np.testing.assert_allclose(cohort.targets["bmd"], table["bmd_g_cm2"], rtol=1e-6)
    np.testing.assert_array_equal(cohort.labelled(), known)
    assert (cohort.labels.device[~known] == 3).all()  # "unknown" where there is no DXA


def test_an_unknown_kind_lists_the_choices() -> None:
    with pytest.raises(UserError, match=r"vertebra'.*vertebrae"):
        find_kind("vertebra")
    with pytest.raises(UserError, match="no module"):
        find_kind("mylab.pictures")


def test_a_folder_of_0_1_is_the_same_folder(tmp_path) -> None:
    """Its manifest has no kind, fields, targets or columns."""
    stored = unpack(VERSIONS[0], tmp_path / "stored") / "finetune" / "manifest.json"
    assert not {"kind", "fields", "targets"} & set(json.loads(stored.read_text()))
    folder = write_tiny_cohort(tmp_path / "pool", patients=20, size=8, body=False)
    now = open_cohort(folder)
    (folder / "manifest.json").write_bytes(stored.read_bytes())
    then = open_cohort(folder)
    assert then.manifest.kind == "vertebrae"
    assert then.manifest.fields == now.manifest.fields
    assert then.manifest.columns == now.manifest.columns
    # The stored ranges are logarithms, whose last bit depends on the processor that computed them.
    for one, other in zip(then.about.maps, now.about.maps, strict=True):
        assert one.step == pytest.approx(other.step, rel=1e-14)
        assert dataclasses.replace(one, step=other.step) == other
    assert dataclasses.replace(then.about, maps=now.about.maps) == now.about
    np.testing.assert_array_equal(then.members(3, ["Contrast"]), now.members(3, ["Contrast"]))
