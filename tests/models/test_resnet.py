"""ResNet against plain Flax layers with the same parameters, published sizes and eight devices."""

from __future__ import annotations

import contextlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from osteojax.models import resnet
from osteojax.models.resnet import ResNet, resnet34
from tests.platform_forms import traced_as_on

SMALL = {"stage_sizes": (2, 1, 1, 1), "width": 12}


def _input(rank, size=16, batch=2):
    shape = (batch, *(size,) * rank, 1)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def _variables(model, x):
    """Drawn so that no branch is zero: scales, biases and running statistics included."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            values = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def _reference(
    variables, x, stage_sizes, train, *, shortcut="strided", stem_stride=2, max_pool=True
):
    """The same network in plain Flax layers, written from He et al. 2016 (figure 3, table 1) and,
    with average shortcuts, 2019 (figure 2d)."""
    params, state = variables["params"], variables["batch_stats"]
    rank = x.ndim - 2

    def convolution(x, kernel, stride):
        window = kernel["kernel"].shape[0]
        layer = nn.Conv(
            kernel["kernel"].shape[-1],
            (window,) * rank,
            strides=stride,
            padding=(window - 1) // 2,
            use_bias=False,
        )
        return layer.apply({"params": kernel}, x)

    def norm(x, params, state):
        layer = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
        variables = {"params": params["norm"], "batch_stats": state["norm"]}
        return layer.apply(variables, x, mutable=["batch_stats"])[0]

    x = convolution(x, params["stem"], stem_stride)
    x = nn.relu(norm(x, params["stem_norm"], state["stem_norm"]))
    if max_pool:
        x = nn.max_pool(x, (3,) * rank, (2,) * rank, padding=((1, 1),) * rank)
    features = {}
    for stage, blocks in enumerate(stage_sizes, 1):
        for index in range(1, blocks + 1):
            p, s = (tree[f"stage{stage}_block{index}"] for tree in (params, state))
            stride = 2 if stage > 1 and index == 1 else 1
            y = nn.relu(norm(convolution(x, p["conv1"], stride), p["norm1"], s["norm1"]))
            y = norm(convolution(y, p["conv2"], 1), p["norm2"], s["norm2"])
            if stride == 2:
                if shortcut == "average":
                    odd = tuple((0, size % 2) for size in x.shape[1:-1])
                    x = nn.avg_pool(x, (2,) * rank, (2,) * rank, odd, count_include_pad=False)
                x = convolution(x, p["projection"], 1 if shortcut == "average" else 2)
                x = norm(x, p["projection_norm"], s["projection_norm"])
            x = nn.relu(x + y)
        features[f"stage{stage}"] = x
    return {**features, "pooled": x.mean(tuple(range(1, rank + 1)))}


AVERAGE = {"shortcut": "average"}
EARLY = {"shortcut": "average", "stem_stride": 1, "max_pool": False}


@pytest.mark.parametrize(
    ("rank", "size", "train", "form"),
    [
        (3, 16, False, {}),
        (2, 33, True, {}),
        pytest.param(2, 33, False, {}, marks=pytest.mark.slow),
        pytest.param(3, 16, True, {}, marks=pytest.mark.slow),
        (2, 70, True, AVERAGE),  # stages of 18, 9, 5 and 3
        (3, 33, False, AVERAGE),  # 9, 5, 3 and 2
        (2, 14, False, EARLY),
    ],
)
def test_features_equal_plain_flax_layers(rank, size, train, form):
    window = {"stem_window": 5} if form is EARLY else {}
    model, x = ResNet(rank=rank, **SMALL, **window, **form), _input(rank, size, 5 if train else 2)
    variables = _variables(model, x)
    features, _ = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"]))(
        variables, x
    )
    with jax.enable_x64(True):  # statistics over five voxels magnify the rounding of a float32 one
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (variables, x))
        stages = SMALL["stage_sizes"]
        expected = jax.jit(lambda v, x: _reference(v, x, stages, train, **form))(*wide)
        expected = {name: np.asarray(value) for name, value in expected.items()}
    assert expected["pooled"].dtype == np.float64
    assert features.keys() == expected.keys()
    for name, value in expected.items():
        assert features[name].shape == value.shape, name
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            features[name] / scale, value / scale, rtol=0, atol=3e-5, err_msg=name
        )


@pytest.mark.parametrize("form", [{}, AVERAGE], ids=["strided", "average"])
def test_gradients_equal_plain_flax_layers(form):
    model, x = ResNet((1, 1), 12, **form), _input(3, 18)  # the shortcut of stage 2 has an odd edge
    variables = _variables(model, x)
    target = jnp.asarray(np.random.default_rng(2).standard_normal((2, 24)), jnp.float32)

    def gradient(forward):
        def loss(params):
            state = {"params": params, "batch_stats": variables["batch_stats"]}
            return jnp.square(forward(state)["pooled"] - target).mean()

        return jax.jit(jax.grad(loss))(variables["params"])

    ours = gradient(lambda v: model.apply(v, x, train=False))
    theirs = gradient(lambda v: _reference(v, x, (1, 1), False, **form))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max())),
        ours,
        theirs,
    )


def _count(model, rank):
    x = jnp.zeros((1, *(64,) * rank, 1))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def test_parameter_count_is_the_published_one():
    # torchvision's resnet34: 21,797,672 with a 3-channel stem and a classifier of 1000.
    published, classifier, two_channels = 21_797_672, 512 * 1000 + 1000, 2 * 7 * 7 * 64
    assert _count(resnet34(rank=2), 2) == published - classifier - two_channels
    # In 3D by hand: stem, 3^3 kernels of 16 blocks, 1^3 projections, norms.
    pairs = [(64, 64)] * 6 + [(64, 128), *[(128, 128)] * 7] + [(128, 256), *[(256, 256)] * 11]
    pairs += [(256, 512), *[(512, 512)] * 5]
    projections = [(64, 128), (128, 256), (256, 512)]
    kernels = 343 * 64 + 27 * sum(a * b for a, b in pairs) + sum(a * b for a, b in projections)
    norms = 2 * (64 + sum(b for _, b in pairs) + sum(b for _, b in projections))
    assert _count(resnet34(), 3) == kernels + norms


def test_shapes_of_resnet34():
    x = jax.ShapeDtypeStruct((2, 96, 96, 96, 1), jnp.float32)
    features, _ = jax.eval_shape(
        lambda x: resnet34(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x, train=True), x
    )
    assert {name: leaf.shape for name, leaf in features.items()} == {
        "stage1": (2, 24, 24, 24, 64),
        "stage2": (2, 12, 12, 12, 128),
        "stage3": (2, 6, 6, 6, 256),
        "stage4": (2, 3, 3, 3, 512),
        "pooled": (2, 512),
    }
    assert features["stage4"].dtype == jnp.bfloat16
    assert features["pooled"].dtype == jnp.float32


def test_a_block_starts_as_its_shortcut():
    """At initialisation a stage of stride-1 blocks passes the stem's features through."""
    x = _input(3, 8)
    one, three = ResNet(stage_sizes=(1,), width=8), ResNet(stage_sizes=(3,), width=8)
    variables = jax.jit(lambda x: three.init(jax.random.key(0), x, train=False))(x)
    stem = {c: {k: v for k, v in tree.items() if "stem" in k} for c, tree in variables.items()}
    expected = jax.jit(lambda x: _reference(stem, x, (), train=False)["pooled"])(x)
    for model in (one, three):
        features = jax.jit(lambda x, m=model: m.apply(variables, x, train=False))(x)
        np.testing.assert_allclose(features["pooled"], expected, rtol=1e-5)


def test_remat_changes_nothing():
    """In float64, where rounding cannot hide a difference."""
    with jax.enable_x64(True):
        plain, remat = (
            ResNet((1, 1), 8, rank=2, remat=r, dtype=jnp.float64, **AVERAGE) for r in (False, True)
        )
        x = jnp.asarray(_input(2, 16), jnp.float64)
        variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), _variables(plain, x))

        def gradient(model):
            def of(params):
                features, _ = model.apply(
                    {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
                )
                return jnp.square(features["stage2"]).mean()

            return jax.jit(jax.grad(of))(variables["params"])

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9 * float(jnp.abs(a).max())),
            gradient(plain),
            gradient(remat),
        )


@pytest.mark.parametrize(
    "traced", [contextlib.nullcontext, partial(traced_as_on, "cuda"), partial(traced_as_on, "tpu")]
)
@pytest.mark.parametrize(("norm", "form"), [("batch", AVERAGE), ("per_map", {})])
def test_eight_devices_equal_one(norm, form, traced):
    model = ResNet(stage_sizes=(1, 1), width=12, norm=norm, **form)
    x, ids = _input(3, 16, batch=8), jnp.arange(8) % 3
    variables = _variables(model, x)
    target = jnp.asarray(np.random.default_rng(2).standard_normal((8, 24)), jnp.float32)

    def step(params, x, ids, target, axis_name):
        def loss(params):
            features, updated = model.clone(axis_name=axis_name).apply(
                {**variables, "params": params}, x, train=True, map_id=ids, mutable=["batch_stats"]
            )
            value = jnp.square(features["pooled"] - target).mean()
            return (jax.lax.pmean(value, axis_name) if axis_name else value), updated

        return jax.value_and_grad(loss, has_aux=True)(params)

    with traced():
        one = jax.jit(lambda *a: step(*a, None))(variables["params"], x, ids, target)
    many = jax.shard_map(
        lambda *arguments: step(*arguments, "data"),
        mesh=Mesh(np.array(jax.devices()), ("data",)),
        in_specs=(P(), P("data"), P("data"), P("data")),
        out_specs=P(),
        check_vma=True,
    )
    with traced():
        eight = jax.jit(many)(variables["params"], x, ids, target)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(b).max())),
        eight,
        one,
    )


def test_wrong_rank_is_named():
    with pytest.raises(ValueError, match="rank-3 ResNet"):
        ResNet(**SMALL).init(jax.random.key(0), jnp.ones((1, 8, 8, 1)), train=False)


def test_a_config_builds_it():
    fields = {"stage_sizes": [1, 2], "width": 3, "dtype": "bfloat16", "norm": "group"}
    built = resnet.build(fields, "data")
    expected = ResNet(
        stage_sizes=(1, 2), width=3, dtype=jnp.dtype("bfloat16"), norm="group", axis_name="data"
    )
    assert built == expected
