"""Codes and manifest."""

from __future__ import annotations

import json

import numpy as np
import pytest

from osteojax.data.manifest import load_manifest
from osteojax.data.schema import record_position
from osteojax.data.vertebrae import (
    IMAGE_ONLY,
    LEVELS,
    POOL,
    image_spec,
    level_class,
    map_spec,
    record_keys,
)
from osteojax.errors import UserError
from tests.tiny_cohort import write_tiny_cohort


def test_image_codes_are_half_open_bins_of_5_hu() -> None:
    spec = image_spec()
    hu = np.array([-1000, -200, -195.01, -195, -0.01, 0, 4.99, 5, 994.99, 995, 999.99, 3000])
    np.testing.assert_array_equal(spec.encode(hu), [0, 0, 0, 1, 39, 40, 40, 41, 238, 239, 239, 239])


def test_image_codes_keep_every_grey_level() -> None:
    hu = np.arange(-200, 1000, 0.25)
    np.testing.assert_array_equal(image_spec().encode(hu) // 5, (hu + 200) // 25)


@pytest.mark.parametrize("name", POOL[1:])
def test_map_codes_are_within_half_a_step(name: str) -> None:
    spec = map_spec(name, 25.0)
    t = np.linspace(spec.offset, spec.offset + 255 * spec.step, 1000)
    values = np.expm1(t) if spec.transform == "log1p" else t
    back = spec.decode(spec.encode(values)).astype(np.float64)
    if spec.transform == "log1p":
        back = np.log1p(back)
    assert np.abs(back - t).max() <= spec.step / 2 * 1.001


def test_affine_is_the_z_scored_decoded_value() -> None:
    spec = map_spec("JointAverage", 25.0)
    spec = type(spec)(**{**spec.__dict__, "mean": 9.0, "std": 3.0})
    codes = np.arange(256, dtype=np.uint8)
    scale, shift = spec.affine()
    np.testing.assert_allclose(scale * codes + shift, (spec.decode(codes) - 9) / 3, rtol=1e-5)


def test_levels_and_records() -> None:
    assert (level_class("T1"), level_class("T12"), level_class("L1"), level_class("L6")) == (
        1,
        12,
        13,
        18,
    )
    assert len(LEVELS) == 18
    assert record_position(3, "meta", record_keys()) == 21
    assert record_position(3, "mask", record_keys(IMAGE_ONLY)) == 11
    with pytest.raises(KeyError, match="C7"):
        level_class("C7")


def test_manifest_round_trip_and_refusals(tmp_path) -> None:
    folder = write_tiny_cohort(tmp_path / "pool", patients=2)
    manifest = load_manifest(folder)
    manifest.save(tmp_path / "again")
    assert load_manifest(tmp_path / "again") == manifest
    path = folder / "manifest.json"
    good = json.loads(path.read_text())
    for bad, message in (
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        (json.dumps({**good, "format": "other"}), "expected 'osteojax-pool'"),
        (json.dumps({**good, "format_version": 99}), "format version 99"),
        (json.dumps({k: v for k, v in good.items() if k != "about"}), "not a manifest"),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match=message):
            load_manifest(folder)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        load_manifest(tmp_path / "absent")
