"""Grad-CAM against finite differences of the network's second half, and a net of known answer."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from osteojax.models import AttentionLayer
from osteojax.models.gradcam import _interpolation, chosen_layer, gradcam, put_back
from osteojax.models.moe import MixtureOfExperts
from osteojax.models.resnet import BasicBlock, ResNet
from osteojax.objectives.diagnosis import DiagnosisModel

SIZE, WIDTH = 16, 3


def build(rank: int = 3, remat: bool = False) -> DiagnosisModel:
    backbone = ResNet(stage_sizes=(1, 1), width=WIDTH, rank=rank, remat=remat)
    return DiagnosisModel(backbone, MixtureOfExperts(num_scanners=2, expert_dim=8, gate_dim=8))


def randomised(model: DiagnosisModel, x: jax.Array) -> dict:
    """Variables whose every tensor is random: no branch of the network is switched off."""
    shapes = jax.eval_shape(
        partial(model.init, train=False), jax.random.key(0), x, jnp.zeros(len(x), jnp.int32)
    )
    generator = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = 0.3 * generator.standard_normal(leaf.shape)
        kind = path[-1].key
        return jnp.asarray(1 + abs(spread) if kind in ("scale", "var") else spread, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def example():
    model = build()
    x = jax.random.normal(jax.random.key(1), (2, SIZE, SIZE, SIZE, 1))
    device = jnp.array([0, 1], jnp.int32)
    variables = randomised(model, x)
    heat = jax.jit(partial(gradcam, model))(variables, x, device)
    return model, variables, x, device, np.asarray(heat)


def test_weights_are_finite_differences_of_the_second_half(example):
    """Stage 2, pooling and experts are called apart, on stage 1's output moved up and down."""
    model, variables, x, device, heat = example
    assert chosen_layer(model.backbone.attention_layers, SIZE).name == "stage1_block1"
    backbone = {key: variables[key]["backbone"] for key in ("params", "batch_stats")}
    activation = jax.jit(partial(model.backbone.apply, train=False))(backbone, x)["stage1"]
    block = BasicBlock(2 * WIDTH, 2, "batch", None, jnp.float32, "auto")
    block_variables = {key: tree["stage2_block1"] for key, tree in backbone.items()}

    @jax.jit
    def log_odds(activation):
        pooled = block.apply(block_variables, activation, None, False).mean((1, 2, 3))
        logits = model.experts.apply({"params": variables["params"]["experts"]}, pooled, device)
        return logits["logits"][:, 1] - logits["logits"][:, 0]

    step, weights = 2e-3, []
    for channel in range(WIDTH):
        move = step * jnp.eye(WIDTH)[channel]
        difference = log_odds(activation + move) - log_odds(activation - move)
        weights.append(np.asarray(difference) / (2 * step) / 4**3)
    stage = np.asarray(activation)
    expected = np.maximum(0, np.einsum("cb,bxyzc->bxyz", np.array(weights), stage))
    assert expected.max() > 1e-4
    found = heat[:, ::4, ::4, ::4]  # the centres of stage 1's voxels
    np.testing.assert_allclose(found, expected, atol=0.02 * expected.max())


def test_between_the_centres_it_is_scipys_interpolation(example):
    *_, heat = example
    centres = 4 * np.arange(4)
    inside = np.stack(np.meshgrid(*[np.arange(13)] * 3, indexing="ij"), axis=-1)
    for volume in heat:
        linear = RegularGridInterpolator([centres] * 3, volume[::4, ::4, ::4])
        np.testing.assert_allclose(volume[:13, :13, :13], linear(inside), atol=1e-5 * heat.max())


@pytest.mark.slow
def test_remat_changes_nothing(example):
    _, variables, x, device, heat = example
    again = jax.jit(partial(gradcam, build(remat=True)))(variables, x, device)
    np.testing.assert_allclose(again, heat, rtol=1e-4, atol=1e-5 * heat.max())


def test_a_net_that_sees_one_voxel_points_at_it():
    """The stem copies the image, blocks are their shortcuts, the head adds up: the answer is the
    max-pooled image itself, so the map peaks on the bright voxel and is 0 away from it."""
    model = DiagnosisModel(
        ResNet(stage_sizes=(1,), width=1), MixtureOfExperts(1, num_experts=1, expert_dim=1)
    )
    places = [(4, 8, 12), (12, 0, 8), None]
    x = np.zeros((3, SIZE, SIZE, SIZE, 1), np.float32)
    x[(0, *places[0])] = x[(1, *places[1])] = 5.0
    device = jnp.zeros(3, jnp.int32)
    variables = jax.tree.map(jnp.zeros_like, randomised(model, x))
    stem = variables["params"]["backbone"]["stem"]
    stem["kernel"] = stem["kernel"].at[3, 3, 3].set(1.0)
    norm = variables["params"]["backbone"]["stem_norm"]["norm"]
    norm["scale"] = jnp.ones(1)
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    variables["batch_stats"]["backbone"]["stem_norm"]["norm"]["mean"] = jnp.zeros(1)
    head = variables["params"]["experts"]["experts"]
    head["hidden"]["kernel"] = jnp.ones_like(head["hidden"]["kernel"])
    head["diagnosis"]["kernel"] = jnp.array([[[0.0, 2.0]]])
    run = jax.jit(partial(gradcam, model))
    heat = np.asarray(run(variables, x, device))
    for volume, where in zip(heat, places, strict=True):
        if where is None:
            assert (volume == 0).all()
            continue
        assert np.unravel_index(volume.argmax(), volume.shape) == where
        # log odds = 2 * mean of 4^3 voxels, one of them 5: weight 2 / 64, activation 5.
        assert volume.max() == pytest.approx(2 / 64 * 5, rel=1e-3)
        far = np.ones_like(volume, bool)
        far[tuple(slice(max(0, w - 4), w + 5) for w in where)] = False
        assert (volume[far] == 0).all()
    head["diagnosis"]["kernel"] = jnp.array([[[2.0, 0.0]]])  # speaks against osteoporosis
    assert (np.asarray(run(variables, x, device)) == 0).all()


def test_a_plane_gives_a_plane():
    model = build(rank=2)
    x = jnp.zeros((1, SIZE, SIZE, 1))
    device = jnp.zeros(1, jnp.int32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x, device)
    assert jax.eval_shape(partial(gradcam, model), variables, x, device).shape == (1, SIZE, SIZE)


def test_the_stage_is_the_deepest_that_points_somewhere():
    layers = ResNet().attention_layers
    assert [layer.name for layer in layers] == [
        "stage1_block3", "stage2_block4", "stage3_block6", "stage4_block3"
    ]  # fmt: skip
    assert {size: chosen_layer(layers, size).stride for size in (8, 16, 32, 64, 96, 128)} == {
        8: 4, 16: 4, 32: 8, 64: 16, 96: 16, 128: 32,
    }  # fmt: skip


def test_patches_are_centred_between_voxels() -> None:
    """Two patches of 4 voxels: centres at 1.5 and 5.5, constant outside."""
    matrix = _interpolation(2, 8, AttentionLayer("patches", stride=4, first_centre=1.5))
    share = np.clip((np.arange(8) - 1.5) / 4, 0, 1)
    np.testing.assert_allclose(matrix, np.stack([1 - share, share], axis=1), atol=1e-6)


@pytest.mark.slow
def test_it_exports_with_a_symbolic_batch(example):
    model, variables, x, device, heat = example
    (batch,) = jax.export.symbolic_shape("b")
    arguments = (
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables),
        jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    exported = jax.export.export(jax.jit(partial(gradcam, model)))(*arguments)
    again = jax.export.deserialize(exported.serialize()).call(variables, x[:1], device[:1])
    np.testing.assert_allclose(again, heat[:1], rtol=1e-4, atol=1e-5 * heat.max())


def test_maps_of_crops_are_put_back_where_they_were_cut():
    """Against a loop over voxels; two crops overlap, one is there twice."""
    rng = np.random.default_rng(0)
    heat = rng.uniform(size=(2, 4, 3, 3, 3)).astype(np.float32)
    corners = np.array([[[0, 0, 0], [1, 2, 0], [4, 3, 5], [4, 3, 5]]] * 2, np.int32)
    corners[1, 1] = 2, 1, 1
    shape = (7, 6, 8)
    found = np.asarray(jax.jit(put_back, static_argnums=2)(heat, corners, shape))
    for volume, maps, places in zip(found, heat, corners, strict=True):
        for index in np.ndindex(shape):
            inside = [
                one[tuple(np.subtract(index, corner))]
                for one, corner in zip(maps, places, strict=True)
                if all(0 <= i - c < 3 for i, c in zip(index, corner, strict=True))
            ]
            assert volume[index] == pytest.approx(np.mean(inside) if inside else 0, abs=1e-6)


def test_each_crop_has_its_share_of_the_answer(example):
    """Copies of one image as its crops: each has a third of the map of the image alone."""
    model, variables, x, device, heat = example
    found = jax.jit(partial(gradcam, model, x=None))(
        variables, device_B=device, crops=jnp.repeat(x[:, None], 3, axis=1)
    )
    assert found.shape == (2, 3, SIZE, SIZE, SIZE)
    for i in range(3):
        np.testing.assert_allclose(found[:, i], heat / 3, rtol=1e-4, atol=1e-5 * heat.max())


def test_beside_crops_it_is_of_the_encoder_of_the_box():
    """Without weight on the box's part of the embedding its map is empty, whatever crops say."""
    one = build(rank=2)
    model = one.clone(whole=one.backbone.clone())
    x = jax.random.normal(jax.random.key(1), (2, SIZE, SIZE, 1))
    crops = jax.random.normal(jax.random.key(2), (2, 3, 8, 8, 1))
    device = jnp.array([0, 1], jnp.int32)
    shapes = jax.eval_shape(
        partial(model.init, train=False), jax.random.key(0), x, device, crops=crops
    )
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3, jnp.float32), shapes)
    experts = variables["params"]["experts"]
    for name in ("gate_hidden", "device_embedding"):  # the gate sees nothing
        experts[name] = jax.tree.map(jnp.zeros_like, experts[name])
    head = experts["experts"]
    head["diagnosis"]["kernel"] = head["diagnosis"]["kernel"].at[..., 0].set(0)
    run = jax.jit(partial(gradcam, model))
    heat = run(variables, x, device, crops=crops)
    assert heat.shape == (2, SIZE, SIZE)
    assert heat.max() > 0
    kernel = head["hidden"]["kernel"]
    features = kernel.shape[1] // 2  # the crops' embedding comes first
    head["hidden"]["kernel"] = kernel.at[:, :features].set(0)
    assert run(variables, x, device, crops=crops).max() > 0
    head["hidden"]["kernel"] = kernel.at[:, features:].set(0)
    assert run(variables, x, device, crops=crops).max() == 0
