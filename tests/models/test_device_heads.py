"""Decoders without experts: what they compute, in float64 NumPy, and how large they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from osteojax.errors import UserError
from osteojax.models.device_heads import ConcatenatedDevice, DeviceAffine, build_decoder
from osteojax.models.moe import MixtureOfExperts

X = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
DEVICE = jnp.array([0, 1, 2, 3, 1])


def _head(p: dict, x: np.ndarray) -> dict[str, np.ndarray]:
    def dense(name: str, values: np.ndarray) -> np.ndarray:
        return values @ np.asarray(p[name]["kernel"], np.float64) + np.asarray(p[name]["bias"])

    hidden = np.maximum(dense("hidden", x), 0)
    return {name: dense(name, hidden) for name in ("diagnosis", "bmd", "position")}


def _count(variables: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_concatenated_device_is_one_head_on_embedding_and_device() -> None:
    module = ConcatenatedDevice(num_scanners=4, num_experts=3, gate_dim=8, expert_dim=12)
    variables = module.init(jax.random.key(0), X, DEVICE)
    got = module.apply(variables, X, DEVICE)
    expected = _head(variables["params"]["head"], np.c_[X, np.eye(4)[np.asarray(DEVICE)]])
    np.testing.assert_allclose(got["logits"], expected["diagnosis"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["bmd"], expected["bmd"][:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["level_logits"], expected["position"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [64, 512])
def test_concatenated_device_is_as_large_as_the_experts(features: int) -> None:
    sizes = {"num_experts": 3, "gate_dim": 128, "expert_dim": 256}
    x, device = jnp.zeros((1, features)), jnp.zeros(1, jnp.int32)

    def parameters(module) -> int:
        return _count(jax.eval_shape(module.init, jax.random.key(0), x, device))

    one_unit = features + 4 + 1 + 21
    ours = parameters(ConcatenatedDevice(4, **sizes))
    assert abs(ours - parameters(MixtureOfExperts(4, **sizes))) <= one_unit


def test_device_affine_starts_as_the_head_and_is_the_devices_own() -> None:
    module = DeviceAffine(num_scanners=4, hidden_dim=7)
    variables = module.init(jax.random.key(0), X, DEVICE)
    expected = _head(variables["params"]["head"], X)
    got = module.apply(variables, X, DEVICE)
    np.testing.assert_allclose(got["bmd"], expected["bmd"][:, 0], rtol=1e-4, atol=1e-5)
    rng = np.random.default_rng(1)
    scale, offset = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    params = {**variables["params"], "scale": jnp.array(scale), "offset": jnp.array(offset)}
    got = module.apply({"params": params}, X, DEVICE)
    answers = np.c_[expected["diagnosis"], expected["bmd"]]
    moved = answers * scale[np.asarray(DEVICE)] + offset[np.asarray(DEVICE)]
    np.testing.assert_allclose(got["logits"], moved[:, :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["bmd"], moved[:, 2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["level_logits"], expected["position"], rtol=1e-4, atol=1e-5)


def test_decoders_by_name() -> None:
    moe = {"num_experts": 2, "gate_dim": 4, "expert_dim": 5, "use_device": False}
    built = build_decoder(ConfigDict(moe), 4)  # as workdirs of older versions have it
    assert built == MixtureOfExperts(4, **moe)
    assert build_decoder(ConfigDict({**moe, "decoder": "affine"}), 4) == DeviceAffine(4, 5)
    with pytest.raises(UserError, match="choose experts, concatenated or affine"):
        build_decoder(ConfigDict({**moe, "decoder": "afine"}), 4)
