"""Members made on the device are those that an offline folder stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import ndimage

from data_prep.vertebrae.texture import TextureSettings, texture_pools
from osteojax.data.cohort import PreparedCohort
from osteojax.data.online import OnlineTexture, online_texture
from osteojax.data.pair_views import ImageForPair, PoolPair
from osteojax.data.vertebrae import IMAGE_ONLY, POOL, map_spec
from osteojax.errors import UserError
from osteojax.train.parallel import DataParallel
from tests.tiny_cohort import write_tiny_cohort

SIZE, RADIUS = 32, 2
MAP_IDS = np.array([(0, 1), (2, 3), (4, 0), (3, 1), (1, 2), (4, 3), (2, 4), (1, 4)], np.int32)
SETTINGS = TextureSettings(kernel_radius=RADIUS)
TEXTURE = OnlineTexture(RADIUS, 5, tuple(map_spec(name, 25.0) for name in POOL[1:]))


def images() -> np.ndarray:
    """uint8[8, 32, 32, 32] image codes: flat, of noise, and in between like bone; 0 and 239 too."""
    noise = np.random.default_rng(0).normal(size=(len(MAP_IDS), SIZE, SIZE, SIZE))
    volumes = []
    for index, volume in enumerate(noise):
        smooth = ndimage.gaussian_filter(volume, 0.4 * index)
        smooth = (smooth - smooth.min()) / np.ptp(smooth)
        volumes.append((240 * smooth).clip(0, 239).astype(np.uint8))
    volumes[-1][:, : SIZE // 2] = 0
    return np.stack(volumes)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    """uint8[8, 2, 32, 32, 32] members of `images()`, made by one device."""
    return members_on(1, images(), MAP_IDS)


def members_on(num_devices: int, image: np.ndarray, map_ids: np.ndarray) -> np.ndarray:
    devices = DataParallel.create(num_devices=num_devices)
    make = devices.map_forward(lambda _, batch: TEXTURE.members(batch["image"], batch["map_ids"]))
    return make({}, devices.put({"image": image, "map_ids": map_ids}))


def test_members_are_the_stored_ones_but_for_rounding_ties(whole: np.ndarray) -> None:
    image = images()
    pools = texture_pools(image, None, SETTINGS)
    stored = {name: map_spec(name, 25.0).encode(pools[name]) for name in POOL[1:]}
    stored["image"] = image
    expected = np.stack([[stored[POOL[m]][b] for m in ids] for b, ids in enumerate(MAP_IDS)])
    difference = np.abs(whole.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4
    assert not difference[MAP_IDS == 0].any()
    assert all(len(np.unique(stored[name])) > 40 for name in POOL[1:])


@pytest.mark.parametrize("num_devices", [2, 8])
def test_devices_and_order_change_nothing(num_devices: int, whole: np.ndarray) -> None:
    order = np.random.default_rng(num_devices).permutation(len(MAP_IDS))
    again = members_on(num_devices, images()[order], MAP_IDS[order])
    np.testing.assert_array_equal(again, whole[order])


def test_the_view_draws_what_the_offline_view_draws(tmp_path: Path) -> None:
    for name, stored in (("pool", POOL), ("image", IMAGE_ONLY)):
        write_tiny_cohort(tmp_path / name, 2, 8, texture=SETTINGS, stored=stored)
    pool, image_only = PreparedCohort(tmp_path / "pool"), PreparedCohort(tmp_path / "image")
    for row in range(4):
        offline = PoolPair()(pool, row, np.random.default_rng(row))
        online = ImageForPair()(image_only, row, np.random.default_rng(row))
        np.testing.assert_array_equal(online["map_ids"], offline["map_ids"])
        assert online["index"] == offline["index"] == row
        np.testing.assert_array_equal(online["image"], pool.members(row, ["image"])[0])


def test_the_manifest_decides(tmp_path: Path) -> None:
    settings = TextureSettings(bin_width=40.0, kernel_radius=1)
    cohort = PreparedCohort(write_tiny_cohort(tmp_path / "pool", 1, 8, texture=settings))
    texture = online_texture("online", cohort)
    assert texture is not None
    assert (texture.kernel_radius, texture.codes_per_level, texture.num_levels) == (1, 8, 30)
    assert texture.num_levels == settings.num_levels
    assert texture.specs == cohort.about.maps[1:]
    assert online_texture("offline", cohort) is None


def test_what_a_folder_cannot_serve_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_cohort(tmp_path / "pool", 1, 8, texture=SETTINGS, stored=IMAGE_ONLY)
    cohort = PreparedCohort(folder)
    with pytest.raises(UserError, match=r"'onlin'; choose one of offline, online"):
        online_texture("onlin", cohort)
    with pytest.raises(UserError, match=r"stores image and no texture map.*textures=online"):
        online_texture("offline", cohort)
    manifest, asked = cohort.manifest, dataclasses.asdict(SETTINGS)
    for texture, message in (
        ({}, r"missing: \['bin_width', 'kernel_radius'"),
        (asked | {"patch_stride": 3}, "dense maps.*patch stride 3"),
        (asked | {"domain": "vertebra"}, r"domain 'vertebra'.*textures=offline and a folder"),
        (asked | {"stride": 2}, r"not known: \['stride'\]"),
        (asked | {"bin_width": 12.0}, "12 HU is no multiple"),
    ):
        cohort.manifest = dataclasses.replace(
            manifest, about={**manifest.about, "texture": texture}
        )
        with pytest.raises(UserError, match=message):
            online_texture("online", cohort)


def test_gradients_and_jit_see_integers() -> None:
    shape = jax.eval_shape(TEXTURE.members, images(), MAP_IDS)
    assert (shape.shape, shape.dtype) == ((8, 2, SIZE, SIZE, SIZE), np.uint8)
