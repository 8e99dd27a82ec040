"""`osteojax benchmark storage`: its errors against independent arithmetic, its files read back."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from data_prep.records import WRITER_OPTIONS
from data_prep.vertebrae.texture import TextureSettings, texture_pool
from launch.benchmarks import storage, storage_shards
from launch.benchmarks.storage_boxes import Box, Boxes, prepared_boxes, simulated_boxes
from launch.benchmarks.storage_formats import (
    FORMATS,
    ErrorSums,
    decode,
    encode,
    format_spec,
    in_unit,
    is_format_of,
)
from launch.benchmarks.storage_shards import Layout
from launch.cli import main
from osteojax.data.vertebrae import POOL, image_spec, map_spec

SPECS = (image_spec(), *(map_spec(name, 25.0) for name in POOL[1:]))
LIMITS = {
    "image": (-200.0, 999.99),
    "Autocorrelation": (1.0, 2304.0),
    "JointAverage": (1.0, 48.0),
    "Contrast": (0.0, 2209.0),
    "DifferenceAverage": (0.0, 47.0),
}
SIZE = 16


@pytest.fixture(scope="module")
def boxes() -> Boxes:
    """Three noisy boxes; the last is not of the training split."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(3):
        hu = rng.normal(150, 120, (SIZE,) * 3).clip(-200, 999.9).astype(np.float32)
        planes = np.packbits(np.ones((2, SIZE, SIZE, SIZE), bool)).tobytes()
        made.append(Box(SPECS[0].encode(hu), hu, planes, training=number < 2))
    return Boxes("simulated", (SIZE,) * 3, TextureSettings(), SPECS, tuple(made))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("stored_as", FORMATS)
def test_a_format_loses_half_a_step_at_most(spec, stored_as):
    if not is_format_of(spec, stored_as):
        assert format_spec(spec, stored_as) == spec
        return
    low, high = LIMITS[spec.name]
    values = np.linspace(low, high, 20_001).astype(np.float32)
    stored = encode(spec, stored_as, values)
    assert stored.dtype == np.dtype(stored_as.split()[0])
    own = format_spec(spec, stored_as)
    found = in_unit(own, decode(own, stored))
    if stored_as == "float16":  # 11 bits of significand: IEEE 754 binary16
        np.testing.assert_allclose(found, values.astype(np.float64), rtol=2.0**-11, atol=1e-7)
        return
    exact = np.log1p(values.astype(np.float64)) if own.transform == "log1p" else values
    # The last whole HU stands for what is above it as well.
    step = own.step * (1 if stored_as == "uint16" and spec.name == "image" else 0.5)
    assert np.abs(decode(own, stored) - exact).max() <= step * (1 + 1e-4) + 1e-6
    if stored_as == "uint8":
        np.testing.assert_allclose(found, spec.decode(stored), rtol=1e-5, atol=1e-4)
    # The ends of the range are codes of their own: nothing is clipped.
    assert stored[0] == 0
    assert stored[-1] == own.codes - 1


def test_error_sums_are_those_of_the_whole_arrays():
    spec = SPECS[POOL.index("Contrast")]
    rng = np.random.default_rng(1)
    truth = rng.gamma(2.0, 30.0, (3, 8, 8, 8)).astype(np.float32)
    sums = ErrorSums(spec, "uint8")
    for number, volume in enumerate(truth):
        sums.add(volume, spec.encode(volume), training=number < 2)
    found = sums.errors()
    exact = truth.astype(np.float64)
    codes = np.round((np.log1p(exact) - spec.offset) / spec.step)
    t = spec.offset + spec.step * codes
    error, input_error = np.expm1(t) - exact, t - np.log1p(exact)
    sd, input_sd = exact[:2].std(), np.log1p(exact[:2]).std()
    wanted = {
        "rms_error": np.sqrt((error**2).mean()),
        "max_error": np.abs(error).max(),
        "rms_error_sd": np.sqrt((error**2).mean()) / sd,
        "max_error_sd": np.abs(error).max() / sd,
        "input_rms_error_sd": np.sqrt((input_error**2).mean()) / input_sd,
        "input_max_error_sd": np.abs(input_error).max() / input_sd,
    }
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout("vertebra"),
        Layout("image"),
        Layout(group_size=4),
        Layout("vertebra", "brotli:3", stored_as="float16"),
    ],
    ids=str,
)
def test_a_layout_reads_back_what_was_written(tmp_path, layout):
    rng = np.random.default_rng(2)
    shape = (5, 6, 7)
    pools = rng.integers(0, 200, (4, len(POOL), *shape)).astype(layout.stored_as)
    records = [record for pool in pools for record in layout.records(pool, b"mask")]
    path = tmp_path / "shard"
    storage_shards.write_shard(path, records, layout.options)
    with storage_shards.open_shard(path) as source:
        for position in (3, 0, 2):
            for members in ([0],) if layout.record == "image" else ([4, 1], [0, 3], [2]):
                found = layout.read(source, position, members, shape)
                np.testing.assert_array_equal(found, pools[position][members])


def test_todays_layout_is_the_writers():
    assert storage.TODAY.options == WRITER_OPTIONS
    assert storage.TODAY in storage.LAYOUTS
    assert len(set(storage.LAYOUTS)) == len(storage.LAYOUTS)


def test_rows_of_both_kinds(boxes, tmp_path, monkeypatch):
    """Raw bytes by arithmetic; more bits, less error; the folder is left empty."""
    layouts = (Layout(), Layout("image"), Layout(stored_as="uint16"))
    rows = storage.measure_storage(boxes, tmp_path, repeats=2, layouts=layouts)
    assert list(tmp_path.iterdir()) == []
    maps = [row for row in rows if row["kind"] == "map"]
    # Each of the four maps has the other transform beside it; the image has not.
    assert len(maps) == 3 * len(POOL) + 4
    assert all("input_rms_error_sd" in row for row in maps)
    by_format = {(row["map"], row["stored_as"]): row["rms_error"] for row in maps}
    for name in POOL:
        assert by_format[name, "uint16"] < by_format[name, "uint8"] / 4
    own, image, wide = (row for row in rows if row["kind"] == "layout")
    voxels = SIZE**3
    assert own["raw_bytes_per_vertebra"] == 5 * voxels + voxels / 4
    assert image["raw_bytes_per_vertebra"] == voxels + voxels / 4
    assert wide["raw_bytes_per_vertebra"] == 10 * voxels + voxels / 4
    for row in (own, image, wide):
        assert row["paper_cohort_bytes"] == row["bytes_per_vertebra"] * 30_256
        assert row["cached_vertebrae_per_second"]["median"] > 0
        assert row["write_bytes_per_second"]["runs"] == 2


def test_the_truth_is_the_texture_engines(boxes):
    """What errors are measured against, and what is stored: the codes that prepare would write."""
    pools, _ = storage.encoded_pools(boxes, "uint8")
    for box, pool in zip(boxes.boxes, pools, strict=True):
        maps = texture_pool(box.codes, None, TextureSettings())
        for spec, codes in zip(SPECS[1:], pool[1:], strict=True):
            np.testing.assert_array_equal(codes, spec.encode(maps[spec.name]))
        np.testing.assert_array_equal(pool[0], box.codes)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no posix_fadvise")
def test_the_page_cache_is_told_apart(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 21))
    path.read_bytes()
    held = storage_shards.share_in_cache(path)
    if held is None:
        pytest.skip("the file system does not tell")
    assert held == 1.0
    after = 1.0
    for _ in range(20):  # the kernel keeps pages that a processor is still adding to its lists
        assert storage_shards.drop_from_cache(path)
        after = storage_shards.share_in_cache(path)
        if after < 0.2:
            break
        time.sleep(0.1)
    if after == 1.0:
        pytest.skip("a file system in memory")
    assert after < 0.2


def test_simulated_vertebrae_are_what_prepare_would_cut():
    found = simulated_boxes(32, 3)
    assert (len(found.boxes), found.shape, found.name) == (3, (32,) * 3, "simulated")
    for box in found.boxes:
        assert box.hu is not None
        np.testing.assert_array_equal(box.codes, SPECS[0].encode(box.hu))
        planes = np.unpackbits(np.frombuffer(box.planes, np.uint8)).reshape(3, 32, 32, 32)
        inside = planes[0].astype(bool)
        assert 0 < planes[2].sum() < inside.sum()
        assert 500 < inside.sum() < 8000  # 14 to 216 cm^3 of 3 mm voxels
        assert box.hu[inside].mean() > box.hu[~inside].mean()  # bone


def test_a_prepared_folder(tiny_pool, tmp_path, capsys):
    """The command as a user runs it, on the records of a folder."""
    written = tmp_path / "storage.json"
    argv = ["benchmark", "storage", "--data", str(tiny_pool), "--vertebrae", "6"]
    assert main([*argv, "--repeats", "1", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    for word in ("Maps of 6 vertebrae", "DifferenceAverage", "image only", "float16", "30,256"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    result = json.loads(written.read_text())
    assert result["environment"]["vertebrae"] == 6
    assert "FADV_DONTNEED" in result["environment"]["cold"]
    image = [r for r in result["rows"] if r["kind"] == "map" and r["map"] == "image"]
    assert all("rms_error" not in row for row in image)  # not known from codes alone
    boxes = prepared_boxes(tiny_pool, 6)
    assert sum(box.training for box in boxes.boxes) == 3
    shard = next((tiny_pool / "shards").iterdir())
    reader = ArrayRecordReader(str(shard))
    np.testing.assert_array_equal(
        boxes.boxes[0].codes.ravel(), np.frombuffer(reader.read([1])[0], np.uint8)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vertebrae", "0"], "--vertebrae 0: a number from 1"),
        (["--repeats", "0"], "--repeats 0: a number from 1"),
        (["--data", "absent", "--size", "64"], "--size is for simulated boxes"),
        (["--data", "absent"], "no manifest.json"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message, capsys):
    assert main(["benchmark", "storage", *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
