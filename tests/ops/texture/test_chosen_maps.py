"""Maps chosen by the data: those of `texture_maps`, whatever else is in the batch."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.ops.texture.chosen_maps import chosen_maps
from osteojax.ops.texture.glcm import texture_maps
from tests.oracles import glcm as oracle

MAPS = ("Autocorrelation", "JointAverage", "Contrast", "DifferenceAverage")
IDS = np.array([2, -1, 0, 3, 1, 0, 2], np.int32)
SHAPE = (4, 5, 6)


def random_levels(num_levels: int) -> np.ndarray:
    """One volume for each of `IDS`, the last two extremes, where a wrap would show."""
    rng = np.random.default_rng(0)
    volumes = rng.integers(1, num_levels + 1, (len(IDS), *SHAPE))
    volumes[-2] = num_levels
    volumes[-1] = np.where(np.indices(SHAPE).sum(0) % 2, 1, num_levels)
    return volumes


@partial(jax.jit, static_argnames=("num_levels", "lowering"))
def program(levels, ids, num_levels: int = 48, lowering: str = "auto") -> jax.Array:
    return chosen_maps(levels, ids, MAPS, kernel_radius=2, num_levels=num_levels, lowering=lowering)


@pytest.mark.parametrize("num_levels", [48, 60_000])
@pytest.mark.parametrize("lowering", ["batched", "one_by_one"])
def test_equals_the_definition(num_levels: int, lowering: str) -> None:
    levels = random_levels(num_levels).astype(np.uint8 if num_levels < 256 else np.int32)
    chosen = np.asarray(program(levels, IDS, num_levels, lowering))
    for volume, index, image in zip(levels.astype(np.int64), IDS, chosen, strict=True):
        if index < 0:
            np.testing.assert_array_equal(image, volume)
            continue
        truth = oracle.maps(volume, None, 2)[MAPS[index]]
        np.testing.assert_allclose(image, truth, rtol=2e-6, atol=1e-6, err_msg=MAPS[index])


def test_equals_texture_maps() -> None:
    levels = random_levels(48).astype(np.uint8)
    chosen = np.asarray(program(levels, IDS))
    maps = texture_maps(levels, kernel_radius=2, num_levels=48, features=MAPS)
    for position, index in enumerate(IDS):
        if index >= 0:
            own = maps[MAPS[index]][position]
            np.testing.assert_allclose(chosen[position], own, rtol=2e-6, err_msg=MAPS[index])


def test_a_map_does_not_depend_on_the_rest_of_the_batch() -> None:
    levels = random_levels(48).astype(np.uint8)
    whole = np.asarray(program(levels, IDS))
    order = np.random.default_rng(1).permutation(len(IDS))
    np.testing.assert_array_equal(program(levels[order], IDS[order]), whole[order])
    for part in (slice(0, 1), slice(2, 5)):
        np.testing.assert_array_equal(program(levels[part], IDS[part]), whole[part])


def test_what_cannot_be_taken_is_refused() -> None:
    levels, ids = jnp.ones((2, 4, 4, 4), jnp.uint8), jnp.zeros(2, jnp.int32)
    for arguments, settings, message in (
        ((levels[0], ids, MAPS), {}, r"integer\[B, D, H, W\]"),
        ((levels.astype(jnp.float32), ids, MAPS), {}, "float32"),
        ((levels, ids[:1], MAPS), {}, "do not fit"),
        ((levels, ids, ("Autocorelation",)), {}, "Autocorelation"),
        ((levels, ids, MAPS), {"kernel_radius": 0}, "kernel_radius"),
        ((levels, ids, MAPS), {"lowering": "fast"}, "one_by_one"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen_maps(*arguments, **({"kernel_radius": 2, "num_levels": 48} | settings))
