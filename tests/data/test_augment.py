"""Augmentation moves voxels and changes none."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from osteojax.data import augment as augment_module
from osteojax.data.augment import augment, network_input
from osteojax.data.boxes import shown_window
from osteojax.data.vertebrae import POOL, image_spec, map_spec

PLAIN = ConfigDict(
    {"max_shift_voxels": 2, "flip_probability": 0.5, "affine": False, "crop_min_volume": 1.0}
)


def batch(count: int = 6, size: int = 10) -> tuple[jnp.ndarray, jnp.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 240, (count, 2, size, size, size), dtype=np.uint8)
    return jnp.asarray(codes), jnp.arange(100, 100 + count)


def _moved(volume: np.ndarray, z: int, y: int, x: int, flip: bool) -> np.ndarray:
    source = volume[:, :, ::-1] if flip else volume
    return np.roll(source, (-z, -y, x if flip else -x), (0, 1, 2))


def test_each_view_is_a_shift_and_perhaps_a_flip_of_itself() -> None:
    codes, index = batch()
    moved = np.asarray(augment(codes, index, jax.random.key(0), PLAIN))
    assert moved.dtype == np.uint8
    found = set()
    for before, after in zip(np.asarray(codes).reshape(-1, 10, 10, 10), moved.reshape(-1, 10, 10, 10), strict=True):  # fmt: skip  # noqa: E501
        inside = (slice(2, 8),) * 3
        matches = [
            (z, y, x, flip)
            for z, y, x, flip in itertools.product(*[range(-2, 3)] * 3, (False, True))
            if np.array_equal(_moved(before, z, y, x, flip)[inside], after[inside])
        ]
        assert matches
        found.add(matches[0])
    assert len(found) > 6  # views differ from each other


def test_geometry_is_the_records_not_the_batchs() -> None:
    codes, index = batch()
    key = jax.random.key(1)
    whole = augment(codes, index, key, PLAIN)
    order = np.array([3, 1])
    np.testing.assert_array_equal(augment(codes[order], index[order], key, PLAIN), whole[order])
    assert (augment(codes, index, jax.random.key(2), PLAIN) != whole).any()


def test_a_shift_within_a_margin_shows_what_is_there() -> None:
    """The shown window of a shifted box is a window of the stored box, in this case at one of
    5^3 places; nothing is repeated."""
    codes, index = batch()
    config = PLAIN.copy_and_resolve_references()
    config.update(flip_probability=0.0)
    shown = (..., *shown_window((10, 10, 10), 2))
    moved = np.asarray(augment(codes, index, jax.random.key(3), config)[shown])
    places = set()
    for before, after in zip(np.asarray(codes).reshape(-1, 10, 10, 10), moved.reshape(-1, 6, 6, 6), strict=True):  # fmt: skip  # noqa: E501
        found = [
            corner
            for corner in itertools.product(range(5), repeat=3)
            if np.array_equal(before[tuple(slice(c, c + 6) for c in corner)], after)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 6


def test_vacated_voxels_repeat_the_border() -> None:
    config = PLAIN.copy_and_resolve_references()
    config.update(max_shift_voxels=3, flip_probability=0.0)
    ramp = jnp.broadcast_to(jnp.arange(10, 20, dtype=jnp.uint8), (8, 1, 10, 10, 10))
    moved = np.asarray(augment(ramp, jnp.arange(8), jax.random.key(0), config))
    assert moved.min() >= 10
    assert moved.max() <= 19
    assert (np.diff(moved.astype(int), axis=-1) >= 0).all()


def test_affine_stays_close_and_within_range() -> None:
    config = PLAIN.copy_and_resolve_references()
    config.update(max_shift_voxels=0, flip_probability=0.0, affine=True)
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).uniform(0, 239, (24,) * 3), 3)
    codes = jnp.asarray(smooth.astype(np.uint8))[None, None]
    turned = np.asarray(augment(codes, jnp.zeros(1, jnp.int32), jax.random.key(0), config))[0, 0]
    original = np.asarray(codes)[0, 0].astype(float)
    assert turned.min() >= original.min()
    assert turned.max() <= original.max()
    core = (slice(8, 16),) * 3
    assert 0.2 < np.corrcoef(turned[core].ravel(), original[core].ravel())[0, 1] < 0.9999


def test_a_crop_is_a_cube_of_the_box_resized_trilinearly() -> None:
    config = PLAIN.copy_and_resolve_references()
    config.update(max_shift_voxels=0, flip_probability=0.0, crop_min_volume=0.3)
    size = 12
    z, y, x = np.meshgrid(*[np.arange(size, dtype=np.float64)] * 3, indexing="ij")
    ramps = [np.broadcast_to(ramp * 10, (size,) * 3) for ramp in (z, y, x)]
    noise = np.random.default_rng(0).integers(0, 240, (size,) * 3)
    # One record index, so that all four volumes of a view are cropped alike.
    codes = jnp.asarray(np.stack([*ramps, noise]).astype(np.uint8))[:, None]
    index = jnp.zeros(4, jnp.int32)
    edges = []
    for seed in range(12):
        crop = np.asarray(augment(codes, index, jax.random.key(seed), config))[:, 0]
        source = crop[:3] / 10  # where each output voxel was read, in voxels of the input
        inner = source[:, size // 2, size // 2, size // 2]
        # Half-voxel centres: inside the box the position is an affine function of the index.
        steps = [np.diff(source[axis][tuple(slice(4, 8) if a == axis else 6 for a in range(3))])
                 for axis in range(3)]  # fmt: skip
        edge = float(np.mean(steps))
        np.testing.assert_allclose(np.concatenate(steps), edge, rtol=1e-3)
        assert 0.3 ** (1 / 3) - 1e-3 <= edge <= 1.0
        assert ((inner > 0) & (inner < size - 1)).all()
        expected = ndimage.map_coordinates(noise.astype(float), source, order=1, mode="nearest")
        np.testing.assert_allclose(crop[3], expected, atol=0.05)
        edges.append(edge)
    assert np.ptp(edges) > 0.1


def test_a_crop_has_random_numbers_of_its_own_but_in_configs_of_0_1() -> None:
    """There the corner was drawn from the key of the shift."""
    config = PLAIN.copy_and_resolve_references()
    config.update(max_shift_voxels=0, flip_probability=0.0, crop_min_volume=0.3)
    codes, index = batch(count=1)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index[0]), 0)
    others = [
        np.asarray(augment_module._crop(codes[0, 0], other, 0.3))
        for other in jax.random.split(key, 3)
    ]
    old = np.asarray(augment(codes, index, jax.random.key(0), config))[0, 0]
    np.testing.assert_allclose(old, others[0], atol=1e-3)
    config.update(own_crop_key=True)
    new = np.asarray(augment(codes, index, jax.random.key(0), config))[0, 0]
    assert all(np.abs(new - other).max() > 1.0 for other in others)


def test_network_input_is_z_scored() -> None:
    maps = [image_spec(), *(map_spec(n, 25.0) for n in POOL[1:])]
    maps = [type(m)(**{**m.__dict__, "mean": 2.0 + i, "std": 1.5}) for i, m in enumerate(maps)]
    affine = jnp.asarray(np.array([m.affine() for m in maps], np.float32))
    codes = np.random.default_rng(0).integers(0, 240, (5, 4, 4, 6), dtype=np.uint8)
    x = network_input(jnp.asarray(codes), jnp.arange(5), affine, 3)
    assert x.shape == (5, 4, 4, 6, 1)
    for i, spec in enumerate(maps):
        t = spec.offset + spec.step * codes[i].astype(np.float64)
        np.testing.assert_allclose(x[i, ..., 0], (t - spec.mean) / spec.std, rtol=1e-4, atol=1e-5)
    flat = network_input(jnp.asarray(codes), jnp.arange(5), affine, 2)
    np.testing.assert_array_equal(flat, x[..., 3, :])
