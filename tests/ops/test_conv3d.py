"""Convolution: every lowering against float64 `scipy.signal`/NumPy sums and against XLA's own."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from osteojax.ops import conv3d_cpu
from osteojax.ops.conv3d import Conv, conv, space_to_depth

# (spatial shape, window, stride, padding, channels, features): what the models use at 96^3, 64^3
# and 32^3, scaled down, with odd, flat and tiny extents.
CASES = [
    ((16, 16, 16), 7, 2, 3, 1, 4),
    ((9, 7, 11), 7, 2, 3, 1, 4),
    ((9, 8, 8), 3, 1, 1, 10, 9),
    ((12, 5, 6), 3, 1, 1, 9, 3),
    ((10, 4, 5), 3, 1, 1, 9, 12),
    ((3, 3, 3), 3, 1, 1, 5, 6),
    ((2, 2, 2), 3, 1, 1, 5, 6),
    ((1, 1, 1), 3, 1, 1, 5, 6),
    ((1, 2, 5), 3, 1, 1, 5, 6),
    ((8, 8, 8), 3, 2, 1, 5, 6),
    ((7, 9, 5), 3, 2, 1, 5, 6),
    ((1, 1, 1), 3, 2, 1, 5, 6),
    ((2, 2, 2), 3, 2, 1, 5, 6),
    ((7, 8, 5), 1, 2, 0, 5, 6),
    ((4, 4, 4), 1, 1, 0, 5, 6),
    ((6, 7, 8), 3, 1, "SAME", 9, 3),
    ((6, 7, 8), 3, 1, "VALID", 2, 3),
    ((6, 7, 8), 2, 1, ((0, 1), (1, 0), (2, 1)), 9, 3),
    ((11, 12), 7, 2, 3, 1, 4),
    ((7, 8), 3, 1, 1, 5, 6),
    ((7, 8), 3, 2, 1, 5, 6),
    ((7, 8), 1, 2, 0, 5, 6),
]
IDS = [f"{'x'.join(map(str, c[0]))}-window{c[1]}-stride{c[2]}-pad{c[3]}" for c in CASES]


def _arrays(case, batch=2, dtype=np.float64):
    space, window, stride, padding, channels, features = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *space, channels)).astype(dtype)
    kernel = rng.standard_normal((*(window,) * len(space), channels, features)).astype(dtype)
    return x, kernel, stride, padding


def _pads(case):
    space, window, stride, padding = case[:4]
    if isinstance(padding, str):
        return jax.lax.padtype_to_pads(
            space, (window,) * len(space), (stride,) * len(space), padding
        )
    return [(padding, padding)] * len(space) if isinstance(padding, int) else padding


def _oracle(case, x, kernel, dy_of):
    """(y, dx, dkernel) in float64, tap by tap from the definition; dy = dy_of(y's shape)."""
    stride, pads = case[2], _pads(case)
    rank = len(case[0])
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    window = kernel.shape[:rank]
    space = [(n - k) // stride + 1 for n, k in zip(padded.shape[1:-1], window, strict=True)]
    y = np.zeros((x.shape[0], *space, kernel.shape[-1]))
    dy = dy_of(y.shape)
    dpadded, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
    for tap in itertools.product(*map(range, window)):
        at = (
            slice(None),
            *(slice(k, k + stride * (n - 1) + 1, stride) for k, n in zip(tap, space, strict=True)),
        )
        y += padded[at] @ kernel[tap]
        dpadded[at] += dy @ kernel[tap].T
        dkernel[tap] = np.tensordot(padded[at], dy, [range(rank + 1)] * 2)
    crop = tuple(slice(low, low + n) for (low, _), n in zip(pads, case[0], strict=True))
    return y, dpadded[(slice(None), *crop)], dkernel


def _cotangent(shape):
    return np.random.default_rng(1).standard_normal(shape)


def _values_and_gradients(x, kernel, stride, padding, lowering, dtype=jnp.float32):
    @jax.jit
    def run(x, kernel):
        def f(x, kernel):
            return conv(x, kernel, strides=stride, padding=padding, lowering=lowering)

        y, transpose = jax.vjp(f, x, kernel)
        return y, *transpose(jnp.asarray(_cotangent(y.shape), y.dtype))

    return run(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))


def _assert_close(actual, expected, tolerance):
    for name, a, e in zip(("y", "dx", "dkernel"), actual, expected, strict=True):
        assert a.shape == e.shape, name
        scale = max(np.abs(e).max(initial=0), 1e-30)
        error = np.abs(np.asarray(a, np.float64) - e).max(initial=0) / scale
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_value_and_gradients_equal_the_definition_in_float64(case):
    x, kernel, stride, padding = _arrays(case)
    expected = _oracle(case, x, kernel, _cotangent)
    # F(4, 3) rounds 2-3 times as much as a direct float32 sum: measured maxima are below 2e-6.
    _assert_close(_values_and_gradients(x, kernel, stride, padding, "auto"), expected, 6e-6)


@pytest.mark.parametrize("case", CASES[::7], ids=IDS[::7])
def test_lowerings_agree(case):
    x, kernel, stride, padding = _arrays(case)
    xla = _values_and_gradients(x, kernel, stride, padding, "xla")
    expected = [np.asarray(a, np.float64) for a in xla]
    for lowering in ("cpu", "accelerator"):
        actual = _values_and_gradients(x, kernel, stride, padding, lowering)
        _assert_close(actual, expected, 6e-6)


def test_many_channels_keep_float32_accuracy():
    case = ((8, 4, 4), 3, 1, 1, 64, 64)
    x, kernel, stride, padding = _arrays(case)
    expected = _oracle(case, x, kernel, _cotangent)
    _assert_close(_values_and_gradients(x, kernel, stride, padding, "cpu"), expected, 6e-6)


@pytest.mark.parametrize("lowering", ["cpu", "auto"])
def test_bfloat16_rounds_once(lowering):
    """Partial sums are float32: only the inputs' and the results' own rounding is left."""
    case = ((8, 6, 6), 3, 1, 1, 32, 8)
    x, kernel, stride, padding = _arrays(case)
    x, kernel = (np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, kernel))
    expected = _oracle(
        case, x, kernel, lambda s: np.asarray(jnp.asarray(_cotangent(s), jnp.bfloat16), np.float64)
    )
    actual = _values_and_gradients(x, kernel, stride, padding, lowering, jnp.bfloat16)
    assert all(a.dtype == jnp.bfloat16 for a in actual)
    for a, e in zip(actual, expected, strict=True):
        # half a unit in the last place of bfloat16 is 2^-9 of the value
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=2**-8, atol=2e-5 * e.std())


@pytest.mark.parametrize(
    ("outputs", "taps"), [(1, 3), (2, 2), (3, 2), (2, 3), (3, 3), (4, 3), (3, 4)]
)
def test_toom_cook_is_a_correlation(outputs, taps):
    a, g, b = conv3d_cpu._toom_cook(outputs, taps)
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal(taps), rng.standard_normal(outputs + taps - 1)
    np.testing.assert_allclose(a @ ((g @ kernel) * (b @ x)), np.correlate(x, kernel), rtol=1e-12)
    assert len(b) == outputs + taps - 1


@pytest.mark.parametrize("space", [(16, 16, 16), (9, 7, 11), (11, 12)])
@pytest.mark.parametrize(("window", "stride", "pad"), [(7, 2, 3), (3, 2, 1), (5, 3, 2), (2, 2, 0)])
def test_space_to_depth_is_the_same_convolution(space, window, stride, pad):
    case = (space, window, stride, pad, 2, 3)
    x, kernel, *_ = _arrays(case)
    rank = len(space)
    expected, _, _ = _oracle(case, x, kernel, _cotangent)
    with jax.enable_x64(True):
        blocks, taps, pads = space_to_depth(
            jnp.asarray(x), jnp.asarray(kernel), (stride,) * rank, ((pad, pad),) * rank
        )
        y = conv(blocks, taps, strides=1, padding=pads, lowering="xla")
    assert blocks.shape[-1] == 2 * stride**rank
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_input_without_voxels_or_samples():
    kernel = jnp.ones((3, 3, 3, 2, 4))
    for shape in [(0, 4, 4, 4, 2), (2, 2, 4, 4, 2)]:
        x = jnp.ones(shape)
        for strides in (1, 2):
            expected = conv(x, kernel, strides=strides, padding="VALID", lowering="xla")
            actual = conv(x, kernel, strides=strides, padding="VALID", lowering="cpu")
            assert actual.shape == expected.shape


def test_wrong_arguments_are_named():
    x, kernel = jnp.ones((1, 4, 4, 4, 1)), jnp.ones((3, 3, 3, 1, 1))
    with pytest.raises(ValueError, match="choose from auto, xla, cpu"):
        conv(x, kernel, lowering="gpu")
    with pytest.raises(ValueError, match="expected"):
        conv(x[0, 0], kernel[0, 0])
    with pytest.raises(ValueError, match="kernel has shape"):
        conv(x, kernel[0])
    with pytest.raises(ValueError, match="3 spatial axes"):
        conv(x, kernel, padding=(1, 1))


@pytest.mark.parametrize("space", [(6, 6), (6, 6, 6)], ids=["2d", "3d"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_module_has_the_parameters_of_flax(space, use_bias):
    rank = len(space)
    options = {"strides": 2, "padding": 1, "use_bias": use_bias}
    ours = Conv(5, (3,) * rank, **options)
    theirs = nn.Conv(5, (3,) * rank, **options)
    x = jax.random.normal(jax.random.key(0), (2, *space, 3))
    variables = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), variables)
    if use_bias:
        variables["params"]["bias"] = jnp.arange(5.0)
    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5
    )


CASES_ON_DEVICES = [CASES[i] for i in (0, 2, 6)]


def _loss(x, kernel, stride, padding):
    return jnp.square(conv(x, kernel, strides=stride, padding=padding)).mean()


@pytest.mark.parametrize("case", CASES_ON_DEVICES)
@pytest.mark.parametrize("engine", ["shard_map", "pmap"])
def test_gradients_on_four_devices_equal_one(case, engine):
    """A replicated kernel's gradient is summed over the devices, exactly once."""
    x, kernel, stride, padding = _arrays(case, batch=8, dtype=np.float32)

    def mean_loss(kernel, x):
        return jax.lax.pmean(_loss(x, kernel, stride, padding), "data")

    one = jax.jit(jax.value_and_grad(_loss, (0, 1)), static_argnums=(2, 3))
    loss, (dx, dkernel) = one(x, kernel, stride, padding)
    if engine == "shard_map":
        mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
        many = jax.jit(
            jax.shard_map(
                jax.value_and_grad(mean_loss, (0, 1)),
                mesh=mesh,
                in_specs=(P(), P("data")),
                out_specs=(P(), (P(), P("data"))),
                check_vma=True,
            )
        )
        loss_4, (dkernel_4, dx_4) = many(kernel, x)
    else:
        # Under pmap nothing is known to be replicated: gradients are local, and the step sums them.
        def local(kernel, x):
            loss, (dkernel, dx) = jax.value_and_grad(
                lambda kernel, x: _loss(x, kernel, stride, padding), (0, 1)
            )(kernel, x)
            return jax.lax.pmean((loss, dkernel), "data"), dx / 4

        many = jax.pmap(local, "data", in_axes=(None, 0), devices=jax.devices()[:4])
        (loss_4, dkernel_4), dx_4 = many(kernel, x.reshape(4, 2, *x.shape[1:]))
        loss_4, dkernel_4, dx_4 = loss_4[0], dkernel_4[0], dx_4.reshape(x.shape)
    np.testing.assert_allclose(loss_4, loss, rtol=1e-6)
    np.testing.assert_allclose(dkernel_4, dkernel, atol=3e-6 * np.abs(dkernel).max())
    np.testing.assert_allclose(dx_4, dx, atol=3e-6 * np.abs(dx).max())


def test_devices_with_their_own_kernels():
    """x replicated, kernel sharded: the cotangent of x is the sum."""
    case = CASES[2]
    x, kernel, stride, padding = _arrays(case, dtype=np.float32)
    kernels = np.stack([kernel, 2 * kernel])
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def mean_loss(x, kernels):
        return jax.lax.pmean(_loss(x, kernels[0], stride, padding), "data")

    many = jax.shard_map(
        jax.grad(mean_loss), mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=True
    )
    expected = jax.grad(lambda x: sum(_loss(x, k, stride, padding) for k in kernels) / 2)(x)
    np.testing.assert_allclose(
        jax.jit(many)(x, kernels), expected, atol=3e-6 * np.abs(expected).max()
    )


def test_vmap_and_remat():
    case = CASES[2]
    x, kernel, stride, padding = _arrays(case, dtype=np.float32)
    per_sample = jax.vmap(jax.grad(_loss, 1), in_axes=(0, None, None, None))(
        x[:, None], kernel, stride, padding
    )
    expected = jax.grad(_loss, 1)(x, kernel, stride, padding)
    np.testing.assert_allclose(per_sample.mean(0), expected, atol=3e-6 * np.abs(expected).max())
    remat = jax.grad(jax.checkpoint(_loss, static_argnums=(2, 3)), 1)(x, kernel, stride, padding)
    np.testing.assert_allclose(remat, expected, rtol=1e-6, atol=1e-6)


def test_one_export_holds_the_lowering_of_each_platform():
    """Symbolic batch, cpu + cuda + tpu: on CPU the exported program gives the CPU lowering."""
    x, kernel, stride, padding = _arrays(CASES[2], dtype=np.float32)
    forward = jax.jit(lambda x, k: conv(x, k, strides=stride, padding=padding))
    (batch,) = export.symbolic_shape("batch")
    arguments = (
        jax.ShapeDtypeStruct((batch, *x.shape[1:]), jnp.float32),
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
    )
    exported = export.export(forward, platforms=("cpu", "cuda", "tpu"))(*arguments)
    again = export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(x, kernel), forward(x, kernel), rtol=1e-6, atol=1e-6)
    # On an accelerator alone nothing of the CPU's form is left.
    cuda = export.export(forward, platforms=("cuda",))(x, kernel).mlir_module()
    assert cuda.count("stablehlo.convolution") == 1
    assert "stablehlo.while" not in cuda
    assert "stablehlo.while" in export.export(forward, platforms=("cpu",))(x, kernel).mlir_module()


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_gradients_export_with_any_batch(case):
    """Grad-CAM of an exported model differentiates; its batch has no number."""
    x, kernel, stride, padding = _arrays(case, dtype=np.float32)
    gradients = jax.jit(jax.grad(lambda x, k: _loss(x, k, stride, padding), (0, 1)))
    (batch,) = export.symbolic_shape("batch")
    symbolic = jax.ShapeDtypeStruct((batch, *x.shape[1:]), jnp.float32)
    exported = export.export(gradients, platforms=("cpu", "cuda"))(symbolic, kernel)
    for found, expected in zip(exported.call(x, kernel), gradients(x, kernel), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_stem_takes_its_strides_as_channels_on_accelerators():
    """7^3, stride 2, 1 channel becomes 4^3, stride 1, 8 channels, as the export shows."""
    x, kernel = jnp.zeros((2, 16, 16, 16, 1)), jnp.zeros((7, 7, 7, 1, 4))
    stem = jax.jit(lambda x, k: conv(x, k, strides=2, padding=3))
    module = export.export(stem, platforms=("cuda",))(x, kernel).mlir_module()
    (line,) = [line for line in module.splitlines() if "stablehlo.convolution" in line]
    assert "tensor<2x8x8x8x8xf32>, tensor<4x4x4x8x4xf32>" in line, line


def test_gradients_on_cpu_are_laid_out_as_xlas_fast_convolutions():
    """XLA rearranges others too, but not inside a loop (several steps a dispatch): there the stem's
    kernel gradient, a convolution over samples, ran 20 times slower."""
    x, kernel, stride, padding = _arrays(CASES[0], dtype=np.float32)

    def loss(x, k):
        return jnp.square(conv(x, k, strides=stride, padding=padding, lowering="cpu")).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert lines
    for line in lines:
        assert "dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line, line
