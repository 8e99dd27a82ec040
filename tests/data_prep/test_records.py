"""Shards: round trip, random access, deterministic bytes, damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from data_prep.records import ShardReader, meta_record, write_records
from data_prep.vertebrae.pool import encode_vertebra
from osteojax.data.schema import record_position
from osteojax.data.vertebrae import POOL, record_keys
from osteojax.errors import UserError
from tests.data_prep.prepared import read_shard, volumes

SIZE = 9  # 9^3 is no multiple of 8: the bit planes are padded


def vertebra(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (SIZE, SIZE, SIZE)
    codes = {name: rng.integers(0, 256, shape).astype(np.uint8) for name in POOL}
    return codes, np.stack([rng.random(shape) < p for p in (0.3, 0.9, 0.2)])


def write_shard(path, count=3):
    vertebrae = []
    for seed in range(count):
        records = encode_vertebra(*vertebra(seed))
        records[0] = meta_record({"scan_id": f"s{seed}", "age": None, "site": "Łódź"})
        vertebrae.append(records)
    write_records(path, vertebrae)
    return path


def test_round_trip(tmp_path):
    reader = read_shard(write_shard(tmp_path / "shard.array_record"))
    assert reader.num_rows == 3
    assert list(reader.metas())[1] == {"scan_id": "s1", "age": None, "site": "Łódź"}
    for seed in (2, 0, 1):
        codes, planes = vertebra(seed)
        found = volumes(reader, seed, SIZE)
        for name in POOL:
            np.testing.assert_array_equal(found[name], codes[name])
        for name, plane in zip(("mask", "valid", "body"), planes, strict=True):
            np.testing.assert_array_equal(found[name], plane)


def test_the_layout_is_the_schema_s_read_without_our_reader(tmp_path):
    reader = ArrayRecordReader(str(write_shard(tmp_path / "shard.array_record")))
    assert reader.num_records() == 3 * len(record_keys())
    codes, (mask, _, _) = vertebra(1)
    (contrast,) = reader.read([record_position(1, "Contrast", record_keys())])
    assert contrast == codes["Contrast"].tobytes()
    (planes,) = reader.read([record_position(1, "mask", record_keys())])
    bits = np.unpackbits(np.frombuffer(planes, np.uint8))[: SIZE**3]
    np.testing.assert_array_equal(bits, mask.ravel())
    (meta,) = reader.read([record_position(1, "meta", record_keys())])
    assert json.loads(meta)["scan_id"] == "s1"
    assert "group_size:1,transpose:false" in reader.writer_options_string()
    assert "zstd:1" in reader.writer_options_string()


def test_the_same_vertebrae_give_the_same_bytes(tmp_path):
    one = write_shard(tmp_path / "one.array_record").read_bytes()
    assert one == write_shard(tmp_path / "two.array_record").read_bytes()


def test_no_file_is_left_of_a_write_that_failed(tmp_path):
    def breaks():
        yield encode_vertebra(*vertebra(0))
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_records(tmp_path / "shard.array_record", breaks())
    assert list(tmp_path.iterdir()) == []


def read_all(path):
    reader = read_shard(path)
    list(reader.metas())
    return [volumes(reader, i, SIZE) for i in range(reader.num_rows)]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_shard_is_named(tmp_path, keep):
    path = write_shard(tmp_path / "shard.array_record")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"shard.array_record: the shard is damaged"):
        read_all(path)


def test_every_flipped_byte_of_a_record_is_noticed(tmp_path):
    path = write_shard(tmp_path / "shard.array_record", count=1)
    content = path.read_bytes()
    for offset in range(100, 4000, 300):
        damaged = bytearray(content)
        damaged[offset] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="the shard is damaged"):
            read_all(path)


def test_absent_and_foreign_shards(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ShardReader(tmp_path / "gone.array_record", 7)
    write_records(tmp_path / "odd.array_record", [[b"one", b"two"]])
    with pytest.raises(UserError, match="2 records are not a multiple of 7"):
        ShardReader(tmp_path / "odd.array_record", 7)


def test_a_full_disk_is_an_os_error(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_shard(tmp_path / "shard.array_record")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
