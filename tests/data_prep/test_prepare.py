"""The verb on a small cohort of phantoms: what is written, statistics, resume, determinism."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

import data_prep.build
import data_prep.vertebrae.pool
import data_prep.vertebrae.texture
from data_prep.vertebrae.pool import RoiSettings, map_codes
from data_prep.vertebrae.texture import TextureSettings
from osteojax.data.boxes import cube_grid
from osteojax.data.manifest import load_manifest
from osteojax.data.vertebrae import IMAGE_ONLY, POOL, VERTEBRA_COLUMNS, about
from osteojax.errors import UserError
from tests.data_prep.prepared import (
    LEVELS,
    NUM_SCANS,
    contents,
    prepare,
    read_shard,
    volumes,
)


def test_tables_shards_and_manifest_agree(prepared):
    manifest = load_manifest(prepared)
    rows = pd.read_csv(prepared / "vertebrae.csv", keep_default_na=False, na_values=[""])
    assert tuple(rows.columns) == VERTEBRA_COLUMNS
    assert len(rows) == manifest.num_items == NUM_SCANS * len(LEVELS)
    assert [shard["name"] for shard in manifest.shards] == [
        f"pool-0000{i}-of-00003.array_record" for i in range(3)
    ]
    number = 0
    for shard in manifest.shards:
        reader = read_shard(prepared / "shards" / shard["name"])
        assert reader.num_rows == shard["items"]
        for position, meta in enumerate(reader.metas()):
            row = rows.iloc[number]
            assert tuple(meta) == VERTEBRA_COLUMNS
            assert (meta["shard"], meta["position"]) == (shard["name"], position)
            for column, value in meta.items():
                assert value == row[column] or (value is None and pd.isna(row[column]))
            number += 1
    assert (rows["slice_mm"] == 3.0).all()
    assert about(manifest).devices == ("hologic", "ge_lunar", "medix", "unknown")
    own = about(manifest)
    assert (own.size, own.spacing_mm, own.label_scheme) == (32, 3.0, "verse")
    for split, counts in manifest.counts.items():
        own = rows[rows.split == split]
        assert counts == {
            "patients": own.patient_id.nunique(),
            "items": len(own),
            "labelled": int(own.osteoporosis.notna().sum()),
        }


def test_labels_and_splits_reach_the_rows(prepared):
    rows = pd.read_csv(prepared / "vertebrae.csv")
    assert set(rows[rows.site == "D"].split) == {"external"}
    assert set(rows[rows.site != "D"].split) <= {"train", "valid", "test"}
    assert (rows.groupby("patient_id").split.nunique() == 1).all()
    # Hologic, women: T = -2.5 at 0.704 (L1) and 0.780 (L2); BMD is 0.6 + 0.1 * patient
    positives = rows[rows.osteoporosis == 1]
    assert set(positives.scan_id + "/" + positives.level) == {"s0/L1", "s0/L2", "s1/L1", "s1/L2"}
    assert (rows.posterior_rule == "elements").all()
    assert (rows.axial_rule == "neighbours").all()


def test_statistics_are_those_of_the_training_vertebrae(prepared):
    """Against float64 NumPy on the decoded shards."""
    manifest = load_manifest(prepared)
    values = {name: [] for name in POOL}
    bmd = []
    for shard in manifest.shards:
        reader = read_shard(prepared / "shards" / shard["name"])
        for position, meta in enumerate(reader.metas()):
            if meta["split"] == "train":
                bmd.append(meta["bmd_g_cm2"])
                for name in POOL:
                    values[name].append(volumes(reader, position, about(manifest).size)[name])
    for spec in about(manifest).maps:
        t = spec.offset + spec.step * np.stack(values[spec.name]).astype(np.float64)
        assert spec.mean == pytest.approx(t.mean(), rel=1e-9)
        assert spec.std == pytest.approx(t.std(), rel=1e-9)
    assert about(manifest).bmd_mean == pytest.approx(np.mean(bmd))
    assert about(manifest).bmd_std == pytest.approx(np.std(bmd))


def test_stored_image_is_the_roi_and_maps_are_its_texture(prepared, cohort_folder):
    """The records against the stages called one by one."""
    from data_prep.vertebrae.roi import extract_rois
    from data_prep.vertebrae.texture import TextureSettings, texture_pool
    from data_prep.vertebrae.verify import load_case

    manifest = load_manifest(prepared)
    stored = volumes(read_shard(prepared / "shards" / manifest.shards[0]["name"]), 1, 32)
    ct = load_case(cohort_folder / "s0_ct.nii.gz", cohort_folder / "s0_mask.nii.gz", "verse", "s0")
    roi = extract_rois(*ct, cube_grid(32, 3.0), "s0")[1]
    image = about(manifest).maps[0].decode(stored["image"])
    np.testing.assert_allclose(image, np.clip(roi.hu, -197.5, 997.5), atol=2.5001)
    np.testing.assert_array_equal(stored["mask"], roi.mask)
    np.testing.assert_array_equal(stored["valid"], roi.valid)
    pool = texture_pool(stored["image"], None, TextureSettings())
    for spec in about(manifest).maps[1:]:
        values = pool[spec.name]
        if spec.transform == "log1p":
            error = np.log1p(values) - np.log1p(spec.decode(stored[spec.name]))
        else:
            error = values - spec.decode(stored[spec.name])
        assert np.abs(error).max() <= spec.step / 2 + 1e-4


@pytest.mark.slow
def test_workers_change_no_byte(prepared, cohort_folder, tmp_path):
    assert prepare(cohort_folder, tmp_path / "out", "--workers", "2") == 0
    assert contents(tmp_path / "out") == contents(prepared)


def test_rerunning_a_finished_folder_changes_no_byte(cohort_folder, prepared, capsys):
    before = contents(prepared)
    times = {path: path.stat().st_mtime_ns for path in (prepared / "shards").iterdir()}
    assert prepare(cohort_folder, prepared) == 0
    assert contents(prepared) == before
    assert times == {path: path.stat().st_mtime_ns for path in (prepared / "shards").iterdir()}
    assert "10 vertebrae in 3 shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--size", "64"], "size was 32, now 64"),
        (["--seed", "1"], "seed was 0, now 1"),
        (["--bin-width", "20"], "texture was"),
        (["--keep-truncated"], "keep_truncated was false, now true"),
        (["--split-fractions", "0.5,0.2,0.3"], "split_fractions was"),
    ],
)
def test_other_settings_are_refused_and_named(cohort_folder, prepared, capsys, options, named):
    before = contents(prepared)
    assert prepare(cohort_folder, prepared, *options) == 1
    error = capsys.readouterr().err
    assert named in error
    assert "Give another --out" in error
    assert contents(prepared) == before


def test_another_cohort_is_refused(cohort_folder, prepared, tmp_path, capsys):
    rows = pd.read_csv(cohort_folder / "cohort.csv", dtype=str)
    for column in ("ct", "mask"):
        rows[column] = str(cohort_folder) + "/" + rows[column]
    rows.to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "dxa.csv").write_bytes((cohort_folder / "dxa.csv").read_bytes())
    assert prepare(tmp_path, prepared) == 1
    assert "the cohort's tables have other contents" in capsys.readouterr().err


def test_a_folder_with_other_files_is_refused(cohort_folder, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert prepare(cohort_folder, tmp_path) == 1
    assert "holds other files (thesis.tex)" in capsys.readouterr().err


@pytest.mark.slow  # compiles a texture program of its own
def test_the_vertebra_domain_masks_every_member(cohort_folder, tmp_path):
    assert prepare(cohort_folder, tmp_path / "out", "--texture-domain", "vertebra") == 0
    manifest = load_manifest(tmp_path / "out")
    reader = read_shard(tmp_path / "out" / "shards" / manifest.shards[0]["name"])
    arrays = volumes(reader, 0, 32)
    for name in POOL:
        assert not arrays[name][~arrays["mask"]].any()
        assert arrays[name][arrays["mask"]].any()


def test_wrong_bin_width_and_include_are_told(cohort_folder, tmp_path, capsys):
    assert prepare(cohort_folder, tmp_path / "out", "--bin-width", "35") == 1
    assert "must divide the 1200 HU" in capsys.readouterr().err
    assert prepare(cohort_folder, tmp_path / "out", "--include", "smoke") == 1
    assert "contrast, fracture, implant, poor_quality" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [["--workers", "0"], ["--size", "50"], ["--split-fractions", "1,1,1"], ["--texture", "x"]],
)
def test_a_wrong_command_line_exits_2(cohort_folder, tmp_path, options):
    with pytest.raises(SystemExit) as caught:
        prepare(cohort_folder, tmp_path / "out", *options)
    assert caught.value.code == 2


def test_a_failed_scan_joins_its_shard_once_it_is_repaired(cohort_folder, prepared, tmp_path):
    for path in cohort_folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "s1_ct.nii.gz").write_bytes(b"broken")
    out = tmp_path / "out"
    assert prepare(tmp_path, out) == 1
    failures = pd.read_csv(out / "failures.csv")
    assert failures.case.tolist() == ["s1"]
    assert load_manifest(out).num_items == (NUM_SCANS - 1) * len(LEVELS)
    (tmp_path / "s1_ct.nii.gz").write_bytes((cohort_folder / "s1_ct.nii.gz").read_bytes())
    assert prepare(tmp_path, out) == 0
    assert contents(out) == contents(prepared)


def test_settings_hold_no_time_host_or_path(prepared, cohort_folder):
    text = (prepared / "manifest.json").read_text() + (prepared / "settings.json").read_text()
    assert str(cohort_folder) not in text
    assert os.uname().nodename not in text
    assert json.loads(text.partition("\n}\n")[0] + "\n}")["code_version"]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_maps_made_by_shard_in_any_batch_are_those_made_with_the_scan(
    cohort_folder, prepared, tmp_path, monkeypatch, batch
):
    """As where this process has an accelerator: parts without maps, batches across scans."""
    made = []

    def counted(images, masks, settings):
        made.append(len(images))
        return data_prep.vertebrae.texture.texture_pools(images, masks, settings)

    monkeypatch.setattr(data_prep.vertebrae.pool, "texture_pools", counted)
    monkeypatch.setattr(data_prep.build, "accelerator_here", lambda: True)
    monkeypatch.setattr(data_prep.vertebrae.pool, "BATCH_VOXELS", {"cpu": batch * 32**3})
    assert prepare(cohort_folder, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(prepared)
    # two scans of two vertebrae each a shard, one scan in the last
    assert made == {1: [1] * 10, 3: [3, 1, 3, 1, 2], 64: [4, 4, 2]}[batch]


def test_a_batch_on_an_accelerator_is_filled_up_and_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 240, (3, 32, 32, 32)).astype(np.uint8)
    masks = rng.random(images.shape) < 0.5
    settings = RoiSettings(32, False, TextureSettings())
    expected = map_codes(images, masks, settings)
    shapes = set()

    def seen(batch, *rest):
        shapes.add(batch.shape)
        return data_prep.vertebrae.texture.texture_pools(batch, *rest)

    monkeypatch.setattr(data_prep.vertebrae.pool, "texture_pools", seen)
    monkeypatch.setattr(data_prep.vertebrae.pool, "on_accelerator", lambda settings: True)
    monkeypatch.setattr(data_prep.vertebrae.pool, "BATCH_VOXELS", {"accelerator": 2 * 32**3})
    found = map_codes(images, masks, settings)
    assert shapes == {(2, 32, 32, 32)}
    for name in POOL[1:]:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.fixture(scope="module")
def image_only(cohort_folder, tmp_path_factory):
    """The cohort prepared without maps in the shards."""
    out = tmp_path_factory.mktemp("image") / "out"
    assert prepare(cohort_folder, out, "--store", "image") == 0
    return out


def test_an_image_only_folder_holds_the_same_but_the_maps(image_only, prepared):
    found, expected = load_manifest(image_only), load_manifest(prepared)
    assert (about(found).stored, about(expected).stored) == (IMAGE_ONLY, POOL)
    # Statistics of maps that were made and not kept:
    assert about(found).maps == about(expected).maps
    assert min(spec.std for spec in about(found).maps) > 0
    assert (image_only / "vertebrae.csv").read_bytes() == (prepared / "vertebrae.csv").read_bytes()
    for shard in found.shards:
        path = image_only / "shards" / shard["name"]
        small, whole = (
            read_shard(path, about(found).stored),
            read_shard(prepared / "shards" / path.name),
        )
        assert list(small.metas()) == list(whole.metas())
        for position in range(shard["items"]):
            arrays = volumes(small, position, 32, about(found).stored)
            assert set(arrays) == {"image", "mask", "valid", "body"}
            for name, values in arrays.items():
                np.testing.assert_array_equal(values, volumes(whole, position, 32)[name])
    ours, theirs = (
        sum(path.stat().st_size for path in (folder / "shards").iterdir())
        for folder in (image_only, prepared)
    )
    assert ours < theirs / 2  # less in larger folders: the format fills 64 kB blocks


@pytest.mark.parametrize(
    "texture", [{"domain": "vertebra"}, {"patch_stride": 3}], ids=lambda t: next(iter(t))
)
def test_an_image_only_folder_is_for_maps_that_training_can_make(texture):
    with pytest.raises(UserError, match=r"--store image: .* or store the pool"):
        RoiSettings(32, False, TextureSettings(**texture), IMAGE_ONLY)


def test_patches_are_another_setting_of_the_folder(cohort_folder, prepared, tmp_path):
    assert prepare(cohort_folder, tmp_path / "out", "--patch-stride", "4") == 0
    dense, strided = (load_manifest(folder) for folder in (prepared, tmp_path / "out"))
    assert about(dense).texture["patch_stride"] is None
    assert about(strided).texture["patch_stride"] == 4
    # Grey levels of their own: Autocorrelation falls, what differences make does not move far.
    means = [{spec.name: spec.mean for spec in about(m).maps} for m in (dense, strided)]
    assert means[1]["Autocorrelation"] < means[0]["Autocorrelation"] - 0.5
    assert means[1]["Contrast"] == pytest.approx(means[0]["Contrast"], rel=0.1)


def test_an_image_only_folder_resumes_and_is_no_pool(
    image_only, cohort_folder, tmp_path, monkeypatch, capsys
):
    before = contents(image_only)
    assert prepare(cohort_folder, image_only) == 1
    assert 'store was "image", now "pool"' in capsys.readouterr().err
    assert contents(image_only) == before
    monkeypatch.setattr(data_prep.build, "accelerator_here", lambda: True)
    folder = tmp_path / "cohort"
    shutil.copytree(cohort_folder, folder)
    (folder / "s1_ct.nii.gz").write_bytes(b"broken")
    assert prepare(folder, tmp_path / "out", "--store", "image") == 1
    shutil.copy(cohort_folder / "s1_ct.nii.gz", folder)
    assert prepare(folder, tmp_path / "out", "--store", "image") == 0
    assert contents(tmp_path / "out") == before
