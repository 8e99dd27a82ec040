"""Pre-training on images alone: the losses, gradients and runs of a folder with all maps."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from data_prep.vertebrae.texture import TextureSettings
from osteojax import objectives
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import IMAGE_ONLY, POOL
from osteojax.errors import UserError
from osteojax.objectives.pair_input import PairInput
from osteojax.train import loop
from osteojax.train.parallel import DataParallel
from tests.small_runs import pretraining
from tests.tiny_cohort import write_tiny_cohort
from tests.train.test_parallel import run

ONLINE = "--config.data.textures=online"
TEXTURE = TextureSettings(kernel_radius=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The same vertebrae, stored as a pool and as images alone."""
    root = tmp_path_factory.mktemp("folders")
    return {
        name: write_tiny_cohort(root / name, texture=TEXTURE, stored=stored)
        for name, stored in (("pool", POOL), ("image", IMAGE_ONLY))
    }


@pytest.fixture(scope="module")
def online(folders: dict[str, Path], tmp_path_factory) -> Path:
    """Workdir of a run on images alone."""
    workdir = tmp_path_factory.mktemp("online")
    loop.train(pretraining(ONLINE), workdir, folders["image"])
    return workdir


def log_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_network_sees_the_stored_maps(folders: dict[str, Path]) -> None:
    """The same members of the same vertebrae, but for a code of rounding in few voxels."""
    shown = []
    for name, overrides in (("image", (ONLINE,)), ("pool", ())):
        cohort = PreparedCohort(folders[name])
        source = PairInput(pretraining(*overrides), cohort)
        examples = [source.view(cohort, row, np.random.default_rng(row)) for row in range(4)]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        devices = DataParallel.create(num_devices=1)
        see = devices.map_forward(lambda _, batch, source=source: {"seen": source.seen(batch)})
        shown.append(see({}, devices.put(batch))["seen"].astype(int))
    made, read = shown
    assert made.shape == (4, 2, 16, 16, 16)
    assert np.abs(made - read).max() <= 1
    assert (made != read).mean() < 1e-3


@pytest.mark.slow  # the views of whole boxes: above; maps and crops: test_online, test_body_crops
def test_a_run_is_that_of_stored_maps(folders: dict[str, Path], online: Path, tmp_path) -> None:
    loop.train(pretraining(), tmp_path, folders["pool"])
    compared: set[str] = set()
    for made, read in zip(log_of(online), log_of(tmp_path), strict=True):
        assert set(made) == set(read)
        # Nothing but a code of rounding in one of 10,000 voxels at most, and what six steps of
        # Adam make of it. Times differ, and assignments that tie.
        for key in ("train/loss", "train/gradient_norm", "valid/swapped_prediction"):
            if key in read:
                assert made[key] == pytest.approx(read[key], rel=1e-3), (key, read["step"])
                compared.add(key)
    assert len(compared) == 3
    valid = [row for row in log_of(online) if "valid/nmi_map" in row]
    for name in ("hu_probe_r2", "label_probe_auroc", "prototype_perplexity"):
        assert np.isfinite(valid[-1][f"valid/{name}"])


@pytest.mark.slow
def test_a_run_resumes_to_the_bit(folders: dict[str, Path], online: Path, tmp_path) -> None:
    class Killed(BaseException):
        pass

    write = loop.Writer.write

    def die_at_five(self, step, prefix, metrics):
        if step == 5:
            raise Killed
        write(self, step, prefix, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Writer, "write", die_at_five)
        with pytest.raises(Killed):
            loop.train(pretraining(ONLINE), tmp_path, folders["image"])
    loop.train(pretraining(ONLINE), tmp_path, folders["image"])
    (step, expected), (other_step, found) = (
        load_variables(workdir, "last") for workdir in (online, tmp_path)
    )
    assert step == other_step == 6
    for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "num_devices"), [("shard_map", 1), ("shard_map", 2), ("shard_map", 8), ("pmap", 2)]
)
def test_any_devices_give_what_they_give_offline(folders, engine: str, num_devices: int) -> None:
    # Offline on any devices is tests/train/test_parallel.py. Four steps of Adam make 1e-5 between
    # device counts into 6e-3; between online and offline there is nothing to be made larger.
    online, offline = (
        run(pretraining(*overrides), PreparedCohort(folders[name]), engine, num_devices)
        for name, overrides in (("image", (ONLINE,)), ("pool", ()))
    )
    for (path, made), read in zip(
        jax.tree_util.tree_leaves_with_path(online), jax.tree.leaves(offline), strict=True
    ):
        scale = max(1e-3, np.abs(np.nan_to_num(read)).max(initial=0))
        np.testing.assert_allclose(made, read, atol=1e-3 * scale, err_msg=str(path))


def test_what_the_folder_lacks_is_told_before_any_work(folders: dict[str, Path]) -> None:
    cohort = PreparedCohort(folders["image"])
    with pytest.raises(UserError, match=r"textures=online"):
        objectives.load(pretraining(), cohort)
    with pytest.raises(UserError, match="choose one of offline, online"):
        objectives.load(pretraining("--config.data.textures=on"), cohort)
