"""Saves that were cut off or damaged never hide the step before them; damage is always seen."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.checkpoints import Checkpoints, load_variables, warm_start
from osteojax.errors import UserError
from osteojax.types import TrainState


def state_of(step: int, width: int = 3) -> TrainState:
    params = {"backbone": {"kernel": jnp.full((2, width), float(step))}}
    return TrainState(
        jnp.int32(step), params, {"batch_stats": {"mean": jnp.zeros(width)}}, (jnp.zeros(2),)
    )


def saved(workdir: Path, steps: tuple[int, ...]) -> None:
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(state_of(step), {"batches_seen": step})
    checkpoints.close()


def restored(workdir: Path) -> int:
    """Step that comes back; the position must be that of the step."""
    checkpoints = Checkpoints(workdir)
    state, position = checkpoints.restore(state_of(0))
    checkpoints.close()
    step = int(state.step)
    assert position["batches_seen"] == step
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(step)), strict=True):
        np.testing.assert_array_equal(a, b)
    return step


def array_files(step: Path) -> list[Path]:
    return [path for path in step.rglob("*") if path.is_file() and path.parent != step]


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_newest_step_comes_back_whole(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 3))
    assert restored(tmp_path) == 3
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}


def test_a_new_run_has_nothing_to_restore(tmp_path: Path) -> None:
    assert not Checkpoints(tmp_path).started
    with pytest.raises(UserError, match=r"no (finished|best) checkpoint"):
        load_variables(tmp_path)


def test_every_file_has_the_hash_that_sha256sum_gives(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    step = tmp_path / "checkpoints" / "1"
    known = json.loads((step / "hashes.json").read_text())
    assert {step / name for name in known} == set(array_files(step))
    lines = "".join(f"{value}  {name}\n" for name, value in known.items())
    subprocess.run(["sha256sum", "--check", "--quiet"], cwd=step, input=lines.encode(), check=True)


def test_one_flipped_bit_in_any_file_is_seen(tmp_path: Path, caplog) -> None:
    saved(tmp_path / "whole", (1, 2))
    names = [p.relative_to(tmp_path / "whole")
             for p in array_files(tmp_path / "whole" / "checkpoints" / "2")]  # fmt: skip
    arrays = [name for name in names if "d" in name.parts or name.name == "manifest.ocdbt"]
    assert len(arrays) >= 4
    for number, name in enumerate(arrays):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", workdir)
        flip_a_bit(workdir / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert load_variables(workdir, "last")[0] == 1
            assert "step 2 is damaged" in caplog.text
            assert restored(workdir) == 1
        assert name.name in caplog.text
        assert [p.name for p in (workdir / "damaged").iterdir()] == ["checkpoints-2"]


def test_saving_goes_on_after_a_damaged_step(tmp_path: Path) -> None:
    saved(tmp_path, (1, 5))
    flip_a_bit(array_files(tmp_path / "checkpoints" / "5")[-1])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(state_of(0))
    for step in (3, 5):
        checkpoints.save(state_of(step), {"batches_seen": step})
    assert checkpoints.last_step == 5
    checkpoints.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"3", "5"}
    assert restored(tmp_path) == 5


def test_steps_without_hashes_are_those_of_older_versions(tmp_path: Path, caplog) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(4), {"batches_seen": 4})  # older versions kept no more than this
    checkpoints.close()
    (tmp_path / "checkpoints" / "4" / "hashes.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert restored(tmp_path) == 4
        assert load_variables(tmp_path, "last")[0] == 4
    assert not caplog.text


def test_old_steps_that_cannot_be_read_give_way(tmp_path: Path, caplog) -> None:
    saved(tmp_path, (1, 2))
    (tmp_path / "checkpoints" / "2" / "hashes.json").unlink()
    for file in array_files(tmp_path / "checkpoints" / "2"):
        if "d" in file.parent.name:
            file.write_bytes(b"")
    (tmp_path / "checkpoints" / "9").mkdir()  # what a kill in the middle of a copy can leave
    with caplog.at_level(logging.WARNING):
        assert load_variables(tmp_path, "last")[0] == 1
        assert restored(tmp_path) == 1
    assert "step 2 is damaged" in caplog.text


def test_where_every_step_is_damaged_the_run_is_not_started_over(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    for file in array_files(tmp_path / "checkpoints" / "1"):
        flip_a_bit(file)
    with pytest.raises(UserError, match="no step can be read"):
        Checkpoints(tmp_path).restore(state_of(0))
    with pytest.raises(UserError, match="is damaged"):
        load_variables(tmp_path, "last")
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    assert restored(tmp_path) == 1
    assert not left.exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, (1,))
    message = r"another model: .* has shape \(.*3,?\) there and \(.*5,?\) here"
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path).restore(state_of(0, width=5))


def test_a_damaged_best_step_is_forgotten(tmp_path: Path, caplog) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(state_of(1), {"auroc": 0.5})
    checkpoints.close()
    flip_a_bit(next(p for p in array_files(tmp_path / "best" / "1") if p.parent.name == "d"))
    with pytest.raises(UserError, match=r"step 1 is damaged .*last checkpoint"):
        load_variables(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_metrics() is None
    assert "best step, 1, is damaged" in caplog.text
    checkpoints.save_best(state_of(1), {"auroc": 0.6})
    checkpoints.close()
    assert load_variables(tmp_path)[0] == 1


def test_best_keeps_its_metrics(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_metrics() is None
    checkpoints.save_best(state_of(1), {"auroc": 0.5})
    checkpoints.save_best(state_of(2), {"auroc": 0.75})
    checkpoints.close()
    assert Checkpoints(tmp_path).best_metrics() == {"auroc": 0.75}
    step, variables = load_variables(tmp_path)
    assert step == 2
    assert variables["ema_params"] is None
    np.testing.assert_array_equal(variables["params"]["backbone"]["kernel"], np.full((2, 3), 2.0))


def test_warm_start_takes_one_subtree_or_says_what_differs() -> None:
    params = {"backbone": {"a": np.zeros(2), "b": np.zeros(3)}, "head": {"a": np.zeros(1)}}
    source = {"backbone": {"a": np.ones(2), "b": np.ones(3)}, "prototypes": np.ones(1)}
    merged, taken = warm_start(params, source)
    assert taken == ["backbone['a']", "backbone['b']"]
    assert merged["backbone"]["b"].all()
    assert not merged["head"]["a"].any()
    with pytest.raises(UserError, match=r"backbone\['b'\].*\(3,\).*\(4,\)"):
        warm_start(params, {"backbone": {"a": np.ones(2), "b": np.ones(4)}})
    with pytest.raises(UserError, match="None"):
        warm_start(params, {"backbone": {"a": np.ones(2)}})
    with pytest.raises(UserError, match="no 'backbone'"):
        warm_start(params, {"head": {}})


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses to write more into a file (EFBIG), as it does on a full disk (ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noise(step: int) -> TrainState:
    """2 MB that do not compress, so that a file of the step is larger than the limit."""
    values = np.random.default_rng(step).normal(size=(500, 1000)).astype(np.float32)
    return TrainState(jnp.int32(step), {"kernel": jnp.asarray(values)}, {}, ())


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(noise(1), {"batches_seen": 1})
    checkpoints.wait()
    with files_no_larger_than(1 << 20):
        checkpoints.save(noise(2), {"batches_seen": 2})
        with pytest.raises(UserError) as refused:
            checkpoints.wait()
        with contextlib.suppress(UserError):
            checkpoints.close()
    expected = rf"{tmp_path}: File too large: a checkpoint needs up to 2\.0 MB, .* MB are free\."
    assert re.match(expected, str(refused.value))
    assert "\n" not in str(refused.value)
    said = capfd.readouterr()
    assert "Traceback" not in caplog.text + said.out + said.err

    again = Checkpoints(tmp_path)
    state, _ = again.restore(noise(0))
    assert int(state.step) == 1
    again.save(noise(2), {"batches_seen": 2})
    assert again.last_step == 2
    again.close()
