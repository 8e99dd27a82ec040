"""Training on 1 to N devices: speed, work per device, and communication between devices.

Weak scaling keeps the batch per device, strong scaling the global batch; on one device they are
the same step. The same batch, on the devices, is used in every step, so input is not measured.

Work is XLA's count for the compiled program of a device, and the count of the model's products
(osteojax/train/costs.py). Collective bytes are counted in the same program and printed with the
bytes that the method needs (osteojax/train/collectives.py). The share of time in collectives is
the time of the same collectives alone, one after another, divided by that of the step. It is an
upper bound of their cost, since they may overlap with the backward pass. The total loss is
1 - efficiency.

--plan prints the arithmetic of docs/scaling.md for a large cohort on many devices instead; it
measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from launch.benchmarks import measure, scaling_plan
from launch.benchmarks.experiment import DTYPES, Experiment, check_numbers, stand_in_cohort
from launch.benchmarks.plain_config import shipped_config
from osteojax.errors import UserError
from osteojax.train.collectives import Collective, compiled_collectives, expected_bytes
from osteojax.train.costs import step_cost
from osteojax.train.parallel import DataParallel
from osteojax.types import AXIS, TrainState

SCALINGS = ("weak", "strong")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--devices", default="1,2,4,8", metavar="N,N", help="numbers of devices (%(default)s)"
    )
    parser.add_argument("--size", type=int, default=32, help="edge in voxels (%(default)s)")
    parser.add_argument("--width", type=int, default=16, help="of the network (%(default)s)")
    parser.add_argument(
        "--batch",
        type=int,
        default=8,
        help="vertebrae on each device (weak), on all together (strong) (%(default)s)",
    )
    parser.add_argument("--objective", default="swav", help="of a shipped config (%(default)s)")
    parser.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="of compute (%(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps; 0 counts only (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="writes environment and rows")
    scaling_plan.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.plan:
        return scaling_plan.run(args)
    check_numbers(args, "size", "width", "batch")
    if args.repeats < 0:
        raise UserError(f"--repeats {args.repeats}: a number from 0 is needed.")
    counts = _device_counts(args.devices, args.batch)
    _make_devices(max(counts))
    platform = jax.default_backend()
    if platform == "cpu":
        print(
            f"{max(counts)} fake devices share this machine's cores: their times do not show "
            "scaling. Only the work per device and the bytes are valid."
        )
    config = shipped_config(args.objective, "paper")
    config.model.width, config.model.dtype = args.width, args.dtype
    rows = []
    for row in measure_scaling(config, args.size, args.batch, counts, args.repeats):
        rows.append(row)
        print(_line(row), flush=True)
    if args.json:
        measure.write_results(args.json, measure.environment("flax", "optax"), rows)
        print(f"written to {args.json}")
    return 0


def _device_counts(text: str, batch_size: int) -> list[int]:
    try:
        counts = sorted({int(word) for word in text.split(",")})
    except ValueError as error:
        raise UserError(f"--devices {text}: numbers with commas are needed, as 1,2,4.") from error
    if counts[0] != 1:
        raise UserError(f"--devices {text}: it must start at 1, which the others are compared to.")
    if odd := [count for count in counts if batch_size % count]:
        raise UserError(
            f"--batch {batch_size} does not divide over {odd[0]} devices. Choose a multiple of all "
            f"of --devices {text}."
        )
    return counts


def _make_devices(count: int) -> None:
    """Makes `count` devices available, on a CPU as fake devices. Raises UserError if it fails."""
    with contextlib.suppress(RuntimeError):  # JAX has started already, perhaps with enough devices
        jax.config.update("jax_num_cpu_devices", count)  # has no effect on other platforms
    found = jax.device_count()
    if found < count:
        raise UserError(
            f"--devices asks for {count} devices and {jax.devices()[0].device_kind} has {found}. "
            f"Ask for at most {found}, or set JAX_PLATFORMS=cpu for fake ones."
        )


# ---------------------------------------------------------------- measuring


def measure_scaling(
    config: Any, size: int, batch_size: int, device_counts: Sequence[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """Yields rows of weak and strong scaling, each as soon as it is measured.

    Args:
      config: of configs/*.py; its batch_size is overwritten.
      size: edge of a volume in voxels.
      batch_size: of each device (weak) and of all (strong).
      device_counts: ascending, from 1; so many devices must exist.
      repeats: timed steps; 0 compiles and counts only.

    Yields:
      for each number of devices and scaling the row of `measure_step`, with "scaling", and
      "efficiency", "flops_share" and "model_flops_share": speed and work per device relative to
      one device alone.
    """
    alone: dict[str, Any] = {}
    for count in device_counts:
        for scaling in SCALINGS if count > 1 else ("both",):
            config.batch_size = batch_size * (count if scaling == "weak" else 1)
            row = measure_step(config, size, count, repeats)
            alone = alone or row
            for name in ("flops_per_device", "model_flops_per_device"):
                row[name.replace("per_device", "share")] = row[name] / alone[name]
            if repeats:
                speed = "images_per_second_per_device"
                row["efficiency"] = row[speed] / alone[speed]
            for name in SCALINGS if scaling == "both" else (scaling,):
                yield {"scaling": name, **row}


def measure_step(config: Any, size: int, num_devices: int, repeats: int) -> dict[str, Any]:
    """One training step of `config.batch_size` volumes of size^3, spread over `num_devices`."""
    experiment = Experiment(config, stand_in_cohort(size, config.batch_size), num_devices)
    devices, batch = experiment.devices, experiment.synthetic_batch()
    state, compiled = compiled_step(experiment, batch)
    collectives = compiled_collectives(compiled.as_text(), num_devices)
    expected = expected_bytes(experiment.objective, state.params, state.model_state, num_devices)
    row: dict[str, Any] = {
        "measurement": "step",
        "num_devices": num_devices,
        "objective": config.objective.name,
        "image_size": size,
        "width": config.model.width,
        "dtype": config.model.dtype,
        "batch_size": config.batch_size,
        "model_flops_per_device": step_cost(config, experiment.cohort, batch, num_devices).flops,
        "flops_per_device": float(compiled.cost_analysis()["flops"]),
        "collectives": len(collectives),
        "collective_bytes": sum(one.operand_bytes for one in collectives),
        "collective_bytes_expected": sum(expected.values()) if num_devices > 1 else 0,
        "collective_bytes_expected_parts": expected if num_devices > 1 else {},
        "wire_bytes": sum(one.wire_bytes for one in collectives),
    }
    if repeats:
        taken = measure.seconds(_runner(experiment, compiled, batch), repeats)
        alone = measure.seconds(collectives_alone(collectives, devices), repeats)["median"]
        row |= {
            "step_seconds": taken["median"],
            "step_seconds_min": taken["min"],
            "step_seconds_max": taken["max"],
            "images_per_second_per_device": config.batch_size / taken["median"] / num_devices,
            "collective_seconds": alone,
            "collective_share": alone / taken["median"],
        }
    return row


def traceable_step(experiment: Experiment, batch: dict[str, np.ndarray]) -> tuple[Any, TrainState]:
    """(the jitted step, shapes and dtypes of its replicated state). Nothing is computed."""
    state = jax.eval_shape(lambda: experiment.initial_state(batch))
    return experiment.single_step(), experiment.devices.replicated_like(state)


def compiled_step(experiment: Experiment, batch: dict[str, np.ndarray]) -> tuple[TrainState, Any]:
    """(shapes of the state, the compiled step)."""
    step, state = traceable_step(experiment, batch)
    over_devices = NamedSharding(experiment.devices.mesh, PartitionSpec(AXIS))
    spread = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=over_devices)
        for name, array in batch.items()
    }
    return state, step.lower(state, spread, experiment.key).compile()


def _runner(
    experiment: Experiment, compiled: Any, batch: dict[str, np.ndarray]
) -> Callable[[], Any]:
    """A call that takes one step from the state after the previous step."""
    held, placed = [experiment.new_state(batch)], experiment.devices.put(batch)

    def once() -> Any:
        held[0], metrics = compiled(held[0], placed, experiment.key)
        return metrics

    return once


def collectives_alone(
    collectives: Sequence[Collective], devices: DataParallel
) -> Callable[[], jax.Array]:
    """A call that runs only these collectives, one after another."""
    program, buffers = collectives_program(collectives, devices)
    return lambda: program(buffers)


def collectives_program(
    collectives: Sequence[Collective], devices: DataParallel
) -> tuple[Any, list[jax.Array]]:
    """The program of `collectives_alone` and its arguments."""
    over_devices = NamedSharding(devices.mesh, PartitionSpec(AXIS))
    buffers = [
        jax.device_put(
            np.ones((devices.num_devices, max(1, one.operand_bytes // 4)), np.float32),
            over_devices,
        )
        for one in collectives
    ]

    def talk(buffers: list[jax.Array]) -> jax.Array:
        last = jnp.float32(0)
        for one, buffer in zip(collectives, buffers, strict=True):
            # Each depends on the previous one, so that XLA can neither join nor reorder them.
            last = 1e-6 * _collective(one.kind, buffer[0] + last).ravel()[0]
        return last

    program = jax.jit(
        jax.shard_map(
            talk,
            mesh=devices.mesh,
            in_specs=PartitionSpec(AXIS),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )
    return program, buffers


def _collective(kind: str, given: jax.Array) -> jax.Array:
    """One collective over all devices; each device passes f32[size]."""
    count = lax.axis_size(AXIS)
    if kind == "all-reduce":
        return lax.psum(given, AXIS)
    if kind == "all-gather":
        return lax.all_gather(given, AXIS)
    if kind == "collective-permute":
        return lax.ppermute(given, AXIS, [(i, (i + 1) % count) for i in range(count)])
    parts = jnp.resize(given, (count, -(-given.size // count)))
    if kind == "reduce-scatter":
        return lax.psum_scatter(parts, AXIS)
    return lax.all_to_all(parts, AXIS, split_axis=0, concat_axis=0)


# ---------------------------------------------------------------- printed lines


def _line(row: dict[str, Any]) -> str:
    words = [
        f"{row['scaling']}, {row['num_devices']} device(s), batch {row['batch_size']}: "
        f"{row['flops_per_device'] / 1e9:.4g} GFLOP a device, {row['flops_share']:.3f} of one "
        f"alone ({row['model_flops_share']:.3f} of the model's)"
    ]
    if row["num_devices"] > 1:
        words.append(
            f"{row['collectives']} collectives of {row['collective_bytes'] / 1e6:.4g} MB "
            f"({row['collective_bytes_expected'] / 1e6:.4g} expected)"
        )
    if "step_seconds" in row:
        words.append(
            f"{row['step_seconds']:.4g} s ({row['step_seconds_min']:.4g}-"
            f"{row['step_seconds_max']:.4g}), {row['images_per_second_per_device']:.4g} img/s a "
            f"device, efficiency {row['efficiency']:.0%}, collectives alone "
            f"{row['collective_share']:.1%} of it"
        )
    return "; ".join(words)
