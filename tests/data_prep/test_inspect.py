"""`osteojax inspect`: what it prints, what it draws, and damaged folders."""

from __future__ import annotations

import shutil

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from data_prep.records import ShardReader
from launch.cli import main
from launch.inspect import choose
from osteojax.data.cohort import PreparedCohort
from osteojax.data.schema import POOL, Manifest


def test_tables_and_contact_sheet(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", str(prepared), "--out", str(sheet), "--vertebrae", "3"]) == 0
    printed = capsys.readouterr().out
    for name in (*POOL, "32^3 voxels of 3 mm", "hologic", "verse", "0 failures", "external"):
        assert name in printed
    assert f"{Manifest.load(prepared).bmd_mean:.4f}" in printed
    image = matplotlib.image.imread(sheet)
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.1


def test_the_sheet_goes_into_the_folder_by_default(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "copy")
    assert main(["inspect", str(folder), "--vertebrae", "1"]) == 0
    assert (folder / "contact_sheet.png").stat().st_size > 10_000


def test_a_row_is_drawn_upright_with_its_back_to_the_right(prepared, monkeypatch):
    """What is handed to matplotlib, against the record's own axes."""
    import launch.inspect as module

    drawn = []
    monkeypatch.setattr(module, "_picture", lambda *args: drawn.append(args))
    manifest = Manifest.load(prepared)
    cohort = PreparedCohort(prepared)
    rows = choose(cohort.table, 1)
    module.draw_contact_sheet(cohort, rows, prepared.parent / "unused.png")
    assert [args[4].name for args in drawn] == [*POOL, "image"]
    _, _, image, mask, _ = drawn[0]
    row_of, column_of = np.nonzero(mask)
    assert column_of.max() - 16 > 16 - column_of.min()  # the process reaches further than the body
    behind = column_of > 16 + 11  # the process itself hangs down by 3 mm: below the middle
    assert row_of[behind].mean() > 15.5
    reader = ShardReader(prepared / "shards" / rows.iloc[0]["shard"])
    volume = reader.volumes(int(rows.iloc[0]["position"]), 32)
    expected = manifest.maps[0].decode(volume["image"])[:, :, 16]
    np.testing.assert_array_equal(image, expected[::-1])


def test_vertebrae_are_spread_over_the_folder():
    rows = pd.DataFrame({"n": range(100), "osteoporosis": [None] * 90 + [0.0, 1.0] * 5})
    assert choose(rows, 3).n.tolist() == [90, 94, 99]  # the labelled ones suffice
    assert choose(rows, 12).n.tolist() == [9 * i for i in range(12)]
    assert choose(rows.head(2), 6).n.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
        (lambda d: (d / "vertebrae.csv").unlink(), "vertebrae.csv is missing"),
        (lambda d: (d / "vertebrae.csv").write_text("a,b\n"), "columns missing"),
        (lambda d: next((d / "shards").iterdir()).unlink(), "it is not there"),
        (
            lambda d: [p.write_bytes(p.read_bytes()[:3000]) for p in (d / "shards").iterdir()],
            "the shard is damaged",
        ),
        (
            lambda d: shutil.copy(
                d / "shards" / "pool-00002-of-00003.array_record",
                d / "shards" / "pool-00000-of-00003.array_record",
            ),
            "2 vertebrae, the manifest says 4",
        ),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(prepared, tmp_path, capsys, spoil, message):
    folder = shutil.copytree(prepared, tmp_path / "copy")
    spoil(folder)
    assert main(["inspect", str(folder)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_no_vertebrae_to_draw(prepared, capsys):
    assert main(["inspect", str(prepared), "--vertebrae", "0"]) == 1
    assert "draw at least one" in capsys.readouterr().err
