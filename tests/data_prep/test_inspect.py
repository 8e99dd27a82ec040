"""`osteojax inspect`: what it prints, what it draws, and damaged folders."""

from __future__ import annotations

import dataclasses
import shutil

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import FuncNorm

from data_prep.records import write_records
from launch.cli import main
from launch.inspection import contact_sheet, crops, drawing, histograms, slices
from launch.inspection.members import choose, named, pool_codes
from osteojax.data.cohort import PreparedCohort
from osteojax.data.manifest import load_manifest
from osteojax.data.vertebrae import IMAGE_ONLY, POOL, about, fields, image_spec, map_spec
from osteojax.errors import UserError
from tests.data_prep.prepared import read_shard, volumes


def stored_volumes(prepared, row) -> dict[str, np.ndarray]:
    """A vertebra's records, by the writer's own reader."""
    reader = read_shard(prepared / "shards" / row["shard"])
    return volumes(reader, int(row["position"]), 32)


@pytest.fixture(scope="module")
def image_only(prepared, tmp_path_factory):
    """The prepared folder without its maps, as `prepare` writes it for data.textures="online"."""
    out = shutil.copytree(prepared, tmp_path_factory.mktemp("image_only") / "pool")
    manifest = dataclasses.replace(load_manifest(prepared), fields=fields((32, 32, 32), IMAGE_ONLY))
    manifest.save(out)
    for shard in manifest.shards:
        reader = read_shard(prepared / "shards" / shard["name"])
        kept = [[raw[0], raw[1], raw[-1]] for raw in map(reader.records, range(shard["items"]))]
        write_records(out / "shards" / shard["name"], kept)
    return out


def test_tables_and_pictures(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    sheet = tmp_path / "sheet.png"
    argv = ["inspect", str(prepared), "--out", str(sheet), "--vertebrae", "3"]
    assert main([*argv, "--slices", "s0/L2"]) == 0
    printed = capsys.readouterr().out
    for name in (*POOL, "32^3 voxels of 3 mm", "hologic", "verse", "0 failures", "external"):
        assert name in printed
    assert f"{about(load_manifest(prepared)).bmd_mean:.4f}" in printed
    assert "image and maps" in printed
    pictures = {"sheet.png", "crops.png", "histograms.png", "slices_s0_L2.png"}
    assert {path.name for path in tmp_path.iterdir()} == pictures
    for name in pictures - {"crops.png"}:
        image = matplotlib.image.imread(tmp_path / name)
        assert image.shape[1] > image.shape[0] > 300
        assert image[..., :3].std() > 0.1


def test_pictures_go_into_the_folder_by_default(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "copy")
    assert main(["inspect", str(folder), "--vertebrae", "1", "--slices", "0"]) == 0
    assert (folder / "contact_sheet.png").stat().st_size > 10_000
    names = {path.name for path in folder.glob("*.png")}
    assert names == {"contact_sheet.png", "crops.png", "histograms.png"}


def test_a_row_is_drawn_upright_with_its_back_to_the_right(prepared, monkeypatch):
    """What is handed to matplotlib, against the record's own axes."""
    drawn = []
    monkeypatch.setattr(contact_sheet, "_picture", lambda *args: drawn.append(args))
    manifest = load_manifest(prepared)
    cohort = PreparedCohort(prepared)
    rows = choose(cohort.table, 1)
    contact_sheet.draw_contact_sheet(cohort, rows, prepared.parent / "unused.png")
    assert [args[4].name for args in drawn] == [*POOL, "image"]
    _, _, image, mask, _ = drawn[0]
    row_of, column_of = np.nonzero(mask)
    assert column_of.max() - 16 > 16 - column_of.min()  # the process reaches further than the body
    behind = column_of > 16 + 11  # the process itself hangs down by 3 mm: below the middle
    assert row_of[behind].mean() > 15.5
    volume = stored_volumes(prepared, rows.iloc[0])
    expected = about(manifest).maps[0].decode(volume["image"])[:, :, 16]
    expected[~volume["valid"][:, :, 16]] = np.nan
    np.testing.assert_array_equal(image, expected[::-1])


def test_slices_are_of_every_map_in_three_planes(prepared, tmp_path, monkeypatch):
    drawn = []
    plain = drawing.draw_slice
    monkeypatch.setattr(drawing, "draw_slice", lambda *args: drawn.append(args) or plain(*args))
    cohort = PreparedCohort(prepared)
    slices.draw_slices(cohort, 3, tmp_path / "slices.png")
    volumes = stored_volumes(prepared, cohort.table.iloc[3])
    cuts = (np.s_[::-1, :, 16], np.s_[::-1, 16, :], np.s_[16])
    expected = [(spec, cut) for spec in cohort.about.maps for cut in cuts]
    scales = {}
    for (axis, values, mask, own, scale), (spec, cut) in zip(drawn, expected, strict=True):
        assert own == spec
        wanted = np.where(volumes["valid"], spec.decode(volumes[spec.name]), np.nan)[cut]
        np.testing.assert_array_equal(values, wanted.astype(np.float32))
        np.testing.assert_array_equal(mask, volumes["mask"][cut])
        assert axis.get_aspect() == 1.0
        scales.setdefault(spec.name, set()).add(id(scale))
    assert all(len(own) == 1 for own in scales.values())  # one scale for the three planes
    units = {axis.get_xlabel() for axis in drawn[0][0].figure.axes} - {""}
    assert units == {"HU", "grey level", "grey level\N{SUPERSCRIPT TWO}"}


def test_planes_look_as_radiologists_look_at_them():
    """Letters against coordinates: axis 0 grows towards S, 1 towards P, 2 towards the left (L)."""
    towards = dict(zip("SPL", np.indices((6, 6, 6)), strict=True))
    opposite = dict(zip("IAR", "SPL", strict=True))
    for name, letters in drawing.PLANES.items():
        ends = {"top": (0, 3), "bottom": (-1, 3), "left": (3, 0), "right": (3, -1)}
        for letter, place in zip(letters, ends.values(), strict=True):
            picture = drawing.plane(towards[opposite.get(letter, letter)], name)
            assert picture[place] == (0 if letter in opposite else 5), (name, letter)


@pytest.mark.parametrize("name", drawing.PLANES)
def test_a_square_covers_its_crop_in_the_picture(name):
    shape, at, edge = (10, 12, 14), (5, 4, 8), 3
    corners = np.array([[4, 3, 7], [0, 9, 11], [7, 0, 0], [5, 4, 8], [3, 2, 6]])
    for corner, (first, cut) in zip(
        corners, crops.squares(corners, edge, name, shape, at), strict=True
    ):
        volume = np.zeros(shape, bool)
        volume[tuple(slice(c, c + edge) for c in corner)] = True
        assert cut == drawing.plane(volume, name, at).any()
        across = {"sagittal": 2, "coronal": 1, "axial": 0}[name]
        projected = np.broadcast_to(volume.any(axis=across, keepdims=True), shape)
        pixels = np.argwhere(drawing.plane(projected, name, at))
        np.testing.assert_array_equal(pixels.min(axis=0), first)
        np.testing.assert_array_equal(pixels.max(axis=0) - edge + 1, first)


def test_one_of_each_level_is_drawn_and_whole_ones_first():
    rows = pd.DataFrame({"level": ["L2", "T12", "L2", "L1"], "truncated": [1, 1, 0, 0]})
    assert crops.one_of_each_level(rows).index.tolist() == [1, 3, 2]


def test_scales_are_those_of_storage():
    image, autocorrelation, average, *_ = (
        image_spec(),
        *(map_spec(name, 25.0) for name in POOL[1:]),
    )
    window = drawing.norm(image, [np.array([900.0])])
    assert (window.vmin, window.vmax) == drawing.WINDOW_HU
    values = np.append(np.linspace(2.0, 400.0, 10_000), [np.nan, 2304.0])
    scale = drawing.norm(autocorrelation, [values])
    assert isinstance(scale, FuncNorm)
    assert scale(np.array([np.sqrt(3.0 * (1 + scale.vmax)) - 1]))[0] == pytest.approx(0.5)
    assert (scale.vmin, scale.vmax) == (2.0, pytest.approx(400.0, rel=0.01))  # not 2304
    flat = drawing.norm(average, [np.full(9, 7.0)])
    assert (flat.vmin, flat.vmax) == (7.0, 8.0)
    nothing = drawing.norm(average, [np.full(9, np.nan)])
    assert (nothing.vmin, nothing.vmax) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 2209.0, [0, 1, 3, 10, 30, 100, 300, 1000]),
        (40.0, 600.0, [50, 100, 200, 500]),
        (0.0, 0.5, [0]),
    ],
)
def test_round_ticks(low, high, ticks):
    assert drawing.log_ticks(low, high) == ticks


def test_histograms_count_every_code_of_the_sample(prepared, tmp_path):
    cohort = PreparedCohort(prepared)
    found = histograms.count_codes(cohort, sample=4)
    assert found.rows.tolist() == [0, 3, 6, 9]  # of ten
    volumes = [stored_volumes(prepared, cohort.table.iloc[row]) for row in found.rows]
    for member, spec in enumerate(cohort.about.maps):
        codes = np.concatenate([v[spec.name][v["valid"]] for v in volumes])
        np.testing.assert_array_equal(
            found.counts["box"][member], np.bincount(codes, minlength=256)
        )
        inside = np.concatenate([v[spec.name][v["valid"] & v["mask"]] for v in volumes])
        values, counts = np.unique(inside, return_counts=True)
        assert found.counts["vertebra"][member].sum() == inside.size
        np.testing.assert_array_equal(found.counts["vertebra"][member][values], counts)
        body = np.concatenate([v[spec.name][v["valid"] & v["body"]] for v in volumes])
        np.testing.assert_array_equal(
            found.counts["body"][member], np.bincount(body, minlength=256)
        )
        low, high = histograms.ends(found.counts["box"][member], spec)
        assert low == pytest.approx((codes == 0).mean())
        assert high == pytest.approx((codes == spec.codes - 1).mean())
    # Fat and air end in the image's first code, nothing in the last of its 240.
    assert histograms.ends(found.counts["box"][0], cohort.about.maps[0])[0] > 0
    assert "4 of 10 vertebrae, evenly spread" in histograms._caption(cohort, found)


def test_histograms_never_read_more_than_the_sample(prepared, monkeypatch):
    read = []
    cohort = PreparedCohort(prepared)
    plain = cohort.records
    monkeypatch.setattr(cohort, "records", lambda row, keys: read.append(row) or plain(row, keys))
    histograms.count_codes(cohort, sample=2)
    assert set(read) == {0, 9}


def test_a_folder_of_images_shows_the_maps_that_training_makes(
    prepared, image_only, tmp_path, capsys, monkeypatch
):
    whole, cohort = PreparedCohort(prepared), PreparedCohort(image_only)
    for row in (0, 9):  # two splits, two scans
        np.testing.assert_array_equal(pool_codes(cohort, row), whole.members(row, list(POOL)))
    monkeypatch.setenv("COLUMNS", "140")
    argv = ["inspect", str(image_only), "--out", str(tmp_path), "--vertebrae", "1"]
    assert main([*argv, "--slices", "1"]) == 0
    assert "image only: training makes the maps" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert "the folder stores the image alone" in histograms._caption(
        cohort, histograms.Histograms({}, np.array([0]))
    )


def test_vertebrae_by_name(prepared):
    table = PreparedCohort(prepared).table
    assert named(table, ["s3/L2", "s0/L1"])["scan_id"].tolist() == ["s3", "s0"]
    with pytest.raises(UserError, match=r"--slices s3/L4: .* for instance s3/L1, s3/L2;"):
        named(table, ["s0/L1", "s3/L4"])
    with pytest.raises(UserError, match="for instance s0/L1"):
        named(table, ["elsewhere"])


def test_a_scan_id_cannot_leave_the_folder(tmp_path):
    row = pd.Series({"scan_id": "../a/b", "level": "L1"})
    assert slices.slices_path(tmp_path, row).parent == tmp_path


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
        (lambda d: next((d / "shards").iterdir()).unlink(), "is missing"),
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
