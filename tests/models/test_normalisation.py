"""Normalisation layers against NumPy float64, and spread over eight devices against one."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from osteojax.models.normalisation import EPSILON, MOMENTUM, NORMS, Norm

MAP_ID = np.array([0, 3, 3, 1, 0, 3, 1, 0])  # maps 2 and 4 are absent


def _input(channels=6):
    rng = np.random.default_rng(0)
    offset = 3.0 * MAP_ID.reshape(8, 1, 1, 1, 1)
    return rng.standard_normal((8, 3, 4, 2, channels)) * (1 + offset) + offset


def _variables(norm, x):
    """Parameters and running statistics that are not their trivial initial values."""
    variables = norm.init(jax.random.key(0), x, jnp.asarray(MAP_ID), train=False)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.uniform(0.5, 2.0, a.shape), a.dtype), dict(variables)
    )


def _affine(y, variables):
    params = variables["params"]["norm"]
    return y * np.asarray(params["scale"], float) + np.asarray(params["bias"], float)


def _moments(x):
    return x.reshape(-1, x.shape[-1]).mean(0), x.reshape(-1, x.shape[-1]).var(0)


def _apply(norm, variables, x, **options):
    return norm.apply(
        variables,
        jnp.asarray(x, jnp.float32),
        jnp.asarray(MAP_ID),
        mutable=["batch_stats"],
        **options,
    )


def test_batch_norm_uses_statistics_of_all_samples():
    norm, x = Norm("batch"), _input()
    variables = _variables(norm, x)
    y, updated = _apply(norm, variables, x, train=True)
    mean, var = _moments(x)
    np.testing.assert_allclose(
        y, _affine((x - mean) / np.sqrt(var + EPSILON), variables), atol=2e-5
    )
    running, moved = variables["batch_stats"]["norm"], updated["batch_stats"]["norm"]
    for key, value in (("mean", mean), ("var", var)):
        np.testing.assert_allclose(moved[key], 0.9 * running[key] + 0.1 * value, rtol=1e-5)
    y, _ = _apply(norm, variables, x, train=False)
    expected = (x - np.asarray(running["mean"])) / np.sqrt(np.asarray(running["var"]) + EPSILON)
    np.testing.assert_allclose(y, _affine(expected, variables), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax(dtype, train):
    """To the bit, with its gradients and running averages: models trained with flax's keep on."""
    x = jnp.asarray(_input(), dtype)
    theirs = nn.BatchNorm(
        use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype
    )
    variables = _variables(Norm("batch"), x)
    plain = {kind: tree["norm"] for kind, tree in variables.items()}
    dy = jnp.asarray(np.random.default_rng(2).standard_normal(x.shape), dtype)

    def run(apply, variables):
        def of(params, x):
            return apply({**variables, "params": params}, x)

        y, transpose, state = jax.vjp(of, variables["params"], x, has_aux=True)
        return y, state["batch_stats"], *transpose(dy)

    ours = run(
        lambda v, x: Norm("batch", dtype=dtype).apply(v, x, train=train, mutable=["batch_stats"]),
        variables,
    )
    expected = run(lambda v, x: theirs.apply(v, x, mutable=["batch_stats"]), plain)
    ours = [tree["norm"] if isinstance(tree, dict) else tree for tree in ours]
    jax.tree.map(np.testing.assert_array_equal, ours, list(expected))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (6, 2), (5, 1)])
def test_group_norm_uses_statistics_of_each_sample(channels, groups):
    norm, x = Norm("group"), _input(channels)
    variables = _variables(norm, x)
    y, _ = _apply(norm, variables, x, train=True)
    grouped = x.reshape(8, -1, groups, channels // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    var = grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + EPSILON)).reshape(x.shape)
    np.testing.assert_allclose(y, _affine(expected, variables), atol=5e-5)
    np.testing.assert_array_equal(y, _apply(norm, variables, x, train=False)[0])


def test_per_map_norm_uses_statistics_of_each_map():
    norm, x = Norm("per_map"), _input()
    variables = _variables(norm, x)
    y, updated = _apply(norm, variables, x, train=True)
    running = {k: np.asarray(v, float) for k, v in variables["batch_stats"]["norm"].items()}
    expected, moved = np.empty_like(x), {key: value.copy() for key, value in running.items()}
    for map_id in set(MAP_ID):
        mean, var = _moments(x[map_id == MAP_ID])
        expected[map_id == MAP_ID] = (x[map_id == MAP_ID] - mean) / np.sqrt(var + EPSILON)
        moved["mean"][map_id] = MOMENTUM * running["mean"][map_id] + (1 - MOMENTUM) * mean
        moved["var"][map_id] = MOMENTUM * running["var"][map_id] + (1 - MOMENTUM) * var
    np.testing.assert_allclose(y, _affine(expected, variables), atol=5e-5)
    for key in moved:
        np.testing.assert_allclose(updated["batch_stats"]["norm"][key], moved[key], rtol=1e-5)
    absent = [2, 4]
    for key in moved:
        np.testing.assert_array_equal(
            updated["batch_stats"]["norm"][key][jnp.array(absent)],
            variables["batch_stats"]["norm"][key][jnp.array(absent)],
        )


def test_per_map_norm_evaluates_with_the_running_statistics_of_the_map():
    norm, x = Norm("per_map"), _input()
    variables = _variables(norm, x)
    running = {k: np.asarray(v, float) for k, v in variables["batch_stats"]["norm"].items()}

    def expected(ids):
        mean, var = (running[key][ids][:, None, None, None] for key in ("mean", "var"))
        return _affine((x - mean) / np.sqrt(var + EPSILON), variables)

    y, updated = _apply(norm, variables, x, train=False)
    np.testing.assert_allclose(y, expected(MAP_ID), rtol=1e-5, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    image = norm.apply(variables, jnp.asarray(x, jnp.float32), train=False)
    np.testing.assert_allclose(image, expected(np.zeros(8, int)), rtol=1e-5, atol=1e-4)


def test_per_map_norm_of_one_map_is_batch_norm():
    x, ids = jnp.asarray(_input(), jnp.float32), jnp.zeros(8, jnp.int32)
    batch, per_map = Norm("batch"), Norm("per_map")
    y, _ = batch.apply(
        batch.init(jax.random.key(0), x, train=False), x, train=True, mutable=["batch_stats"]
    )
    z, _ = per_map.apply(
        per_map.init(jax.random.key(0), x, train=False), x, ids, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, z, atol=1e-5)


@pytest.mark.parametrize("kind", NORMS)
def test_eight_devices_equal_one(kind):
    x, ids = jnp.asarray(_input(), jnp.float32), jnp.asarray(MAP_ID)
    target = jnp.asarray(np.random.default_rng(2).standard_normal(x.shape), jnp.float32)
    variables = _variables(Norm(kind), x)
    state = variables.get("batch_stats", {})

    def step(params, state, x, ids, target, axis_name):
        def loss(params, x):
            y, updated = Norm(kind, axis_name).apply(
                {"params": params, "batch_stats": state},
                x,
                ids,
                train=True,
                mutable=["batch_stats"],
            )
            value = jnp.square(y - target).mean()
            return (jax.lax.pmean(value, axis_name) if axis_name else value), updated

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (loss, updated), gradients = step(variables["params"], state, x, ids, target, None)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    many = jax.shard_map(
        lambda *arguments: step(*arguments, "data"),
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P("data"), P("data")),
        out_specs=((P(), P()), (P(), P("data"))),
        check_vma=True,
    )
    (loss_8, updated_8), gradients_8 = jax.jit(many)(variables["params"], state, x, ids, target)
    np.testing.assert_allclose(loss_8, loss, rtol=1e-6)
    for a, b in ((updated_8, updated), (gradients_8, gradients)):
        jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=2e-5, atol=2e-6), a, b)


@pytest.mark.parametrize("kind", NORMS)
def test_bfloat16_keeps_float32_statistics(kind):
    """Values around 1000 have no variance left if squared and averaged in bfloat16."""
    x = jnp.asarray(1000 + 8 * _input(), jnp.bfloat16)
    norm = Norm(kind, dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=False)
    y, updated = _apply_bfloat16(norm, variables, x)
    wide, _ = _apply_bfloat16(Norm(kind), variables, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves((updated, variables)))
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=2e-2, atol=2e-2)


def _apply_bfloat16(norm, variables, x):
    return norm.apply(variables, x, jnp.asarray(MAP_ID), train=True, mutable=["batch_stats"])


def test_zero_scale_and_unknown_name():
    x = jnp.ones((2, 2, 2, 4))
    for kind in NORMS:
        norm = Norm(kind, scale_init=nn.initializers.zeros_init())
        variables = norm.init(jax.random.key(0), x, train=False)
        np.testing.assert_array_equal(norm.apply(variables, x, train=False), jnp.zeros_like(x))
    with pytest.raises(ValueError, match="choose from batch, group, per_map"):
        Norm("layer").init(jax.random.key(0), x, train=False)
