"""What a network sees at its start, and the shortcut that decides it, against float64 NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shared
from osteojax.errors import UserError
from osteojax.models import resnet
from osteojax.models.resnet import BasicBlock, ResNet
from osteojax.ops.pools import average_pool

SHAPES = [
    (2, 6, 4, 8, 3),
    (2, 5, 6, 7, 3),
    (1, 1, 3, 2, 2),
    (2, 8, 6, 3),
    (2, 7, 5, 3),
    (1, 1, 1, 4),
]


def windows(space: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """(output voxel, the input's voxels that it is the mean of), one by one."""
    outputs = itertools.product(*(range((size + 1) // 2) for size in space))
    return [(at, tuple(slice(2 * i, 2 * i + 2) for i in at)) for at in outputs]


def mean_of_windows(x: np.ndarray) -> np.ndarray:
    space = x.shape[1:-1]
    y = np.zeros((len(x), *((size + 1) // 2 for size in space), x.shape[-1]))
    for at, window in windows(space):
        voxels = x[(slice(None), *window)]
        y[(slice(None), *at)] = voxels.reshape(len(x), -1, x.shape[-1]).mean(1)
    return y


def spread(dy: np.ndarray, space: tuple[int, ...]) -> np.ndarray:
    """The transpose of `mean_of_windows`: every voxel gets its share of its window's value."""
    dx = np.zeros((len(dy), *space, dy.shape[-1]))
    for at, window in windows(space):
        place = (slice(None), *window)
        count = np.prod(dx[place].shape[1:-1])
        dx[place] += dy[(slice(None), *at)].reshape(len(dy), *[1] * len(space), -1) / count
    return dx


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mean_is_over_the_voxels_that_exist(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    y, transpose = jax.vjp(jax.jit(average_pool), jnp.asarray(x, jnp.float32))
    expected = mean_of_windows(x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-6)
    dy = rng.standard_normal(y.shape)
    (dx,) = transpose(jnp.asarray(dy, jnp.float32))
    np.testing.assert_allclose(dx, spread(dy, shape[1:-1]), atol=1e-6)


def test_half_precision_is_summed_in_float32() -> None:
    x = jnp.asarray([256.0, 1.0] * 4, jnp.bfloat16).reshape(1, 2, 2, 2, 1)
    assert average_pool(x).dtype == jnp.bfloat16
    assert float(average_pool(x)[0, 0, 0, 0, 0]) == 128.0  # 256 + 1 is 256 in bfloat16


def begun(block: BasicBlock, x: jax.Array) -> Any:
    return jax.jit(lambda x: block.init(jax.random.key(1), x, None, False))(x)


@pytest.mark.parametrize("shape", [(2, 5, 6, 4, 3), (3, 7, 4, 3)], ids=str)
def test_a_block_that_halves_space_starts_as_the_projected_mean(shape: tuple[int, ...]) -> None:
    """Value and gradients of a block at its start (last scale 0), with running statistics."""
    rng, features = np.random.default_rng(0), 5
    x, rank = rng.standard_normal(shape), len(shape) - 2
    block = BasicBlock(features, 2, "batch", None, jnp.float32, "auto", shortcut="average")
    start = begun(block, jnp.asarray(x, jnp.float32))
    kernel, scale, bias, var = (
        rng.uniform(0.5, 1.5, size) for size in ((3, features), features, features, features)
    )
    mean, dy = (rng.standard_normal(size) for size in (features, (*shape[:-1], features)))
    params = {**start["params"], "projection": {"kernel": kernel.reshape(*[1] * rank, 3, features)}}
    params["projection_norm"] = {"norm": {"scale": scale, "bias": bias}}
    statistics = {**start["batch_stats"], "projection_norm": {"norm": {"mean": mean, "var": var}}}
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32), {"params": params, "batch_stats": statistics}
    )

    def output(x: Any, kernel: Any) -> Any:
        inner = {**variables["params"], "projection": {"kernel": kernel}}
        return block.apply({**variables, "params": inner}, x, None, False)

    x32 = jnp.asarray(x, jnp.float32)
    y, transpose = jax.vjp(jax.jit(output), x32, variables["params"]["projection"]["kernel"])
    gain = scale / np.sqrt(var + 1e-5)
    pooled = mean_of_windows(x)
    before_relu = (pooled @ kernel - mean) * gain + bias
    np.testing.assert_allclose(y, np.maximum(before_relu, 0), rtol=1e-4, atol=1e-5)
    dy = dy[tuple(slice(size) for size in y.shape)]
    dx, dkernel = transpose(jnp.asarray(dy, jnp.float32))
    inner = dy * (before_relu > 0) * gain
    np.testing.assert_allclose(dx, spread(inner @ kernel.T, shape[1:-1]), rtol=1e-4, atol=1e-5)
    expected = np.einsum("nc,nf->cf", pooled.reshape(-1, 3), inner.reshape(-1, features))
    np.testing.assert_allclose(dkernel.reshape(3, features), expected, rtol=1e-4, atol=1e-4)


def test_only_a_block_that_halves_space_pools() -> None:
    """A block that changes channels alone keeps its projection of every voxel; one that changes
    nothing is an identity."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (2, 5, 4, 3, 3)), jnp.float32)
    for features, names in ((3, set()), (4, {"projection", "projection_norm"})):
        block = BasicBlock(features, 1, "batch", None, jnp.float32, "auto", shortcut="average")
        variables = begun(block, x)
        y = jax.jit(lambda v, x, b=block: b.apply(v, x, None, False))(variables, x)
        assert {name for name in variables["params"] if "projection" in name} == names
        kernel = variables["params"].get("projection", {"kernel": jnp.eye(3)})["kernel"]
        expected = jnp.maximum(x @ kernel.reshape(3, features), 0)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- what a new network sees


def influential_voxels(size: int, **fields: Any) -> np.ndarray:
    """bool[size, size, size]: where the image influences the embedding at initialisation (pooled
    features, summed with random weights; running statistics, which connect no voxels)."""
    model = resnet.build({**SHIPPED, "width": 4, **fields}, None)
    x = np.random.default_rng(0).standard_normal((1, size, size, size, 1)).astype(np.float32)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x[:, :1, :1, :1])
    weights = np.random.default_rng(1).standard_normal(32).astype(np.float32)

    def embedding(x: jax.Array) -> jax.Array:
        features: Any = model.apply(variables, x, train=False)
        return (features["pooled"] @ weights).sum()

    return np.asarray(jax.jit(jax.grad(embedding))(x))[0, ..., 0] != 0


SHIPPED = {name: value for name, value in shared.resnet34().items() if name != "name"}
ONE_EACH = (1, 1, 1, 1)
"""Blocks behind the first one of a stage start as identities (`test_resnet.py`)."""


@pytest.mark.parametrize(
    ("size", "stage_sizes"),
    [
        (32, ONE_EACH),
        (96, ONE_EACH),  # the last stage has an odd edge
        *[pytest.param(size, (3, 4, 6, 3), marks=pytest.mark.slow) for size in (32, 64, 96)],
    ],
)
def test_a_new_network_sees_the_centre(size: int, stage_sizes: tuple[int, ...]) -> None:
    """More than half of the voxels of the central half-cube, where the vertebra is."""
    # XLA's own convolutions compile faster, ours run faster: together they keep this to seconds.
    lowering = "xla" if size == 32 else "auto"
    seen = influential_voxels(size, stage_sizes=stage_sizes, lowering=lowering)
    centre = (slice(size // 4, size - size // 4),) * 3
    assert seen[centre].mean() > 0.5


def test_the_strided_shortcuts_of_0_1_see_a_corner() -> None:
    """216 of 32,768 voxels, and nothing of the centre: the fault that the test above is for."""
    seen = influential_voxels(32, stage_sizes=ONE_EACH, shortcut="strided", lowering="xla")
    assert seen.sum() == 216
    assert seen[:6, :6, :6].all()
    assert not seen[8:24, 8:24, 8:24].any()


# ---------------------------------------------------------------- fields


def test_fields_of_the_stem_and_the_scales() -> None:
    fields = {**SHIPPED, "width": 2, "stage_sizes": (1, 1)}

    def start(**own: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
        model = resnet.build({**fields, **own}, None)
        x = jnp.ones((1, 18, 18, 18, 1))
        features, variables = jax.eval_shape(
            lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
        )
        return variables["params"], {name: leaf.shape[1:] for name, leaf in features.items()}

    params, shapes = start()
    assert params["stem"]["kernel"].shape == (7, 7, 7, 1, 2)
    assert shapes == {"stage1": (5, 5, 5, 2), "stage2": (3, 3, 3, 4), "pooled": (4,)}
    params, shapes = start(stem_window=3, stem_stride=1, max_pool=False)
    assert params["stem"]["kernel"].shape == (3, 3, 3, 1, 2)
    assert shapes == {"stage1": (18, 18, 18, 2), "stage2": (9, 9, 9, 4), "pooled": (4,)}
    _, shapes = start(stem_window=5, max_pool=False)
    assert shapes["stage1"] == (9, 9, 9, 2)
    block = BasicBlock(2, 1, "batch", None, jnp.float32, "auto", scale=0.25)
    norms = begun(block, jnp.ones((1, 2, 2, 2)))["params"]
    assert norms["norm2"]["norm"]["scale"].tolist() == [0.25, 0.25]
    assert norms["norm1"]["norm"]["scale"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shortcut": "mean"}, "model.shortcut is 'mean'; choose from average, strided"),
        ({"stem_window": 4}, "model.stem_window is 4; it must be odd"),
        ({"stem_stride": 0}, "model.stem_stride is 0; it must be 1 or more"),
    ],
)
def test_a_value_that_cannot_be_is_told_in_one_line(fields: dict, words: str) -> None:
    with pytest.raises(UserError) as error:
        resnet.build({**SHIPPED, **fields}, None)
    assert words in str(error.value)


def test_attention_is_centred_between_shortcut_and_convolutions() -> None:
    """The centroid of what a voxel of stage 2 reads, at stride 8. A network at its start is its
    shortcuts, which are centred 2 voxels behind 8 i; with scales of 1 the convolutions, centred on
    8 i, outweigh them. The assumed centre lies between."""
    size, at, found = 32, 2, {}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, size, size, 1)), jnp.float32)
    model = ResNet((1, 1), 4, rank=2, shortcut="average")
    layer = model.attention_layers[1]
    for scale in (0.0, 1.0):
        scaled = model.clone(block_scale=scale)
        variables = jax.jit(lambda x, m=scaled: m.init(jax.random.key(0), x, train=False))(x[:1])

        def voxel(x: jax.Array, variables: Any) -> jax.Array:
            features: Any = model.apply(variables, x, train=False)
            return jnp.square(features["stage2"][:, at, at]).sum()

        energy = np.square(np.asarray(jax.jit(jax.grad(voxel))(x, variables))).sum((0, 3))
        profile = energy.sum(0) + energy.sum(1)
        found[scale] = (profile * np.arange(size)).sum() / profile.sum() - layer.stride * at
    assert (layer.stride, layer.first_centre) == (8, 1.0)
    assert found[0.0] == pytest.approx(2.0, abs=0.4)
    assert -0.4 < found[1.0] < layer.first_centre < found[0.0]
    assert ResNet(shortcut="average").attention_layers[3] == ("stage4_block3", 32, 7.0)
    early = ResNet((1, 1), stem_stride=1, max_pool=False).attention_layers
    assert early == (("stage1_block1", 1, 0.0), ("stage2_block1", 2, 0.0))
