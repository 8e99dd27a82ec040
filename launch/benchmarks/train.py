"""A training step: seconds, images/s/device, utilisation, its floor, hours for the paper's run.

    osteojax benchmark train                                     # minutes on two CPU cores
    osteojax benchmark train --size 96 --batch 32 --width 64 --dtype bfloat16 --data resident \\
        --steps-per-dispatch 8 --peers pytorch --json train.json  # the real one, on a GPU

"Compute" is a step on one batch of noise on the devices. With --data disk or resident the same step
is timed with input as well. --data disk reads --folder, or a simulated folder that it writes first.
Compute and resident need only jax, flax, optax and orbax.

Utilisation is the rate of model FLOPs (convolutions and matrix products, without padding and
recomputation) divided by the rate of matrix products on these devices in the same run and dtype.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from launch.benchmarks import feeding, measure, peaks
from launch.benchmarks.experiment import (
    DTYPES,
    Experiment,
    check_numbers,
    config_of,
    stand_in_cohort,
)
from launch.benchmarks.floor import Rates, floor_rows, floor_seconds, floor_table
from osteojax.data.online import TEXTURES
from osteojax.data.view_settings import REGIONS
from osteojax.errors import UserError
from osteojax.train.costs import StepCost
from osteojax.train.parallel import ENGINES
from osteojax.train.timing import device_memory

DATA = ("synthetic", "disk", "resident")
PEERS = ("pytorch",)
SIZE = 32
PAPER_VERTEBRAE, PAPER_EPOCHS = 30_256, 300
RESIDENT_BATCHES = 8
"""Number of batches of noise in device memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=DATA, default=DATA[0], help="(default: %(default)s)")
    _add_step_arguments(parser)
    parser.add_argument("--devices", type=int, help="the first so many (default: all)")
    parser.add_argument(
        "--steps-per-dispatch", type=int, default=1, help="of --data resident (default: 1)"
    )
    parser.add_argument("--folder", metavar="DIR", help="prepared folder: its volumes and size")
    parser.add_argument("--vertebrae", type=int, help="of noise, or simulated (default: 8 batches)")
    parser.add_argument("--peers", default="", help="comma-separated: pytorch (the same SwAV step)")
    parser.add_argument(
        "--floor", action="store_true", help="print the floor, layer by layer, and take no step"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed windows (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="writes environment and rows")


def _add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe a step."""
    parser.add_argument(
        "--objective", default="swav", help="of a shipped config (default: %(default)s)"
    )
    parser.add_argument(
        "--textures", choices=TEXTURES, default="offline", help="of swav (default: %(default)s)"
    )
    parser.add_argument(
        "--region", choices=REGIONS, default=REGIONS[0],
        help="what is seen: boxes, or crops of the body (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--size", type=int, help=f"edge of a volume in voxels (default: {SIZE})")
    parser.add_argument(
        "--batch", type=int, default=8, help="vertebrae a step, global (default: %(default)s)"
    )
    parser.add_argument(
        "--width", type=int, default=16, help="of the first stage (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of compute (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    peers = _checked(args)
    if peers:  # JAX must leave memory for the peer
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with contextlib.ExitStack() as stack:
        experiment = Experiment(config_of(args), _cohort(args, stack), args.devices)
        batch = experiment.synthetic_batch()
        cost, rates = experiment.cost(batch), _rates(experiment, args.repeats)
        settings = _settings(args, experiment)
        rows = [settings | _floor_row(cost, rates)]
        print(_floor_line(rows[0]), flush=True)
        if args.floor:
            layers = floor_rows(cost, rates)
            rows += [settings | {"measurement": "layer"} | row for row in layers]
            print(floor_table(layers))
        else:
            rows += _measured(args, experiment, batch, settings, cost, rates, peers)
    if args.json:
        measure.write_results(args.json, measure.environment("flax", "optax", "torch"), rows)
        print(f"written to {args.json}")
    return 0


def _checked(args: argparse.Namespace) -> list[str]:
    """Checks the arguments and returns the peers."""
    numbers = ("size", "batch", "width", "devices", "steps_per_dispatch", "vertebrae", "repeats")
    check_numbers(args, *numbers)
    peers = [peer for peer in args.peers.split(",") if peer]
    if unknown := set(peers) - set(PEERS):
        raise UserError(f"--peers {', '.join(unknown)}: unknown; choose from {', '.join(PEERS)}.")
    if peers and (args.objective != "swav" or args.textures != "offline"):
        raise UserError("--peers pytorch supports only --objective swav --textures offline.")
    if peers and args.region != "box":
        raise UserError("--peers pytorch takes whole boxes: leave out --region.")
    if peers and (args.devices or 1) != 1:
        raise UserError("--peers pytorch runs on one device: compare with --devices 1.")
    if args.data == "resident":
        feeding.check_resident(args.engine)
    elif args.steps_per_dispatch > 1:
        raise UserError("--steps-per-dispatch: several steps per dispatch need --data resident.")
    if args.folder and args.size:
        raise UserError("--size is for noise and simulated volumes; leave it out with --folder.")
    return peers


def _cohort(args: argparse.Namespace, stack: contextlib.ExitStack) -> Any:
    vertebrae = args.vertebrae or RESIDENT_BATCHES * args.batch
    if args.folder or args.data == "disk":
        # Imported here, because some machines lack the packages that it needs.
        from launch.benchmarks.stand_in_folder import write_stand_in_folder
        from osteojax.data.cohort import PreparedCohort

        if args.folder:
            return PreparedCohort(args.folder)
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="osteojax-")))
        return PreparedCohort(write_stand_in_folder(temporary, args.size or SIZE, vertebrae))
    return stand_in_cohort(args.size or SIZE, vertebrae)


def _rates(experiment: Experiment, repeats: int) -> Rates:
    mesh = experiment.devices.mesh
    dtype = experiment.config.model.dtype
    return Rates(
        peaks.matrix_flops_per_second(mesh, dtype, repeats),
        peaks.copy_bytes_per_second(mesh, repeats),
    )


def _settings(args: argparse.Namespace, experiment: Experiment) -> dict[str, Any]:
    return {
        "objective": args.objective,
        "textures": args.textures,
        "region": args.region,
        "image_size": experiment.cohort.about.size,
        "image_shape": list(experiment.cohort.about.shape),
        "batch_size": args.batch,
        "width": args.width,
        "dtype": args.dtype,
        "devices": experiment.devices.num_devices,
    }


def _measured(
    args: argparse.Namespace,
    experiment: Experiment,
    batch: dict[str, Any],
    settings: dict[str, Any],
    cost: StepCost,
    rates: Rates,
    peers: list[str],
) -> list[dict[str, Any]]:
    """A row for compute, one per peer, one for the step with input. Compute and peers are timed in
    turn, so that a busy minute of the machine is one of both."""
    alike = {args.engine: feeding.same_batch(experiment, batch)}
    if "pytorch" in peers:
        alike["pytorch"] = _pytorch(experiment, batch)
    timings = measure.seconds_in_turn([feed.call for feed in alike.values()], args.repeats)
    rows = [
        settings | _step_row(engine, "synthetic", feed, timing, settings, cost, rates)
        for (engine, feed), timing in zip(alike.items(), timings, strict=True)
    ]
    for row in rows:
        print(_step_line(row), flush=True)
    if args.data != "synthetic":
        feed = _fed(args, experiment)
        timing = measure.seconds_per_call(feed.call, args.repeats)
        row = settings | _step_row(args.engine, args.data, feed, timing, settings, cost, rates)
        print(_step_line(row), flush=True)
        rows.append(row)
    return rows


def _fed(args: argparse.Namespace, experiment: Experiment) -> feeding.Feed:
    resident, steps = args.data == "resident", args.steps_per_dispatch
    if resident and not args.folder:
        vertebrae = args.vertebrae or RESIDENT_BATCHES * args.batch
        return feeding.from_noise_in_memory(experiment, steps, vertebrae)
    return feeding.from_folder(experiment, resident=resident, steps_per_call=steps)


def _pytorch(experiment: Experiment, batch: dict[str, Any]) -> feeding.Feed:
    try:
        from launch.benchmarks.peer_pytorch import swav_step
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            "--peers pytorch: PyTorch is not installed. pip install torch, or leave it out."
        ) from None
    platform = experiment.devices.mesh.devices.flat[0].platform
    affine = experiment.cohort.about.map_affine()
    return feeding.Feed(swav_step(experiment.config, batch, affine, platform))


def _floor_row(cost: StepCost, rates: Rates) -> dict[str, Any]:
    return {
        "measurement": "floor",
        "flops_per_step": cost.flops,
        "padded_flops_per_step": cost.padded_flops,
        "bytes_per_step": cost.bytes,
        "num_parameters": cost.num_parameters,
        "matmul_flops_per_second": rates.flops_per_second,
        "copy_bytes_per_second": rates.bytes_per_second,
        "floor_seconds": floor_seconds(cost, rates),
    }


def _step_row(
    engine: str,
    data: str,
    feed: feeding.Feed,
    timing: dict[str, float],
    settings: dict[str, Any],
    cost: StepCost,
    rates: Rates,
) -> dict[str, Any]:
    step_seconds = timing["median"] / feed.steps_per_call
    images = settings["batch_size"] / step_seconds
    row = {
        "measurement": "step",
        "engine": engine,
        "data": data,
        "steps_per_dispatch": feed.steps_per_call,
        "step_seconds": step_seconds,
        "step_seconds_min": timing["min"] / feed.steps_per_call,
        "step_seconds_max": timing["max"] / feed.steps_per_call,
        "first_call_seconds": timing["first"],
        "data_wait_seconds": feed.wait_seconds(),
        "resident_bytes_per_device": feed.resident_bytes,
        "images_per_second_per_device": images / settings["devices"],
        "flops_per_step": cost.flops,
        "flops_count": "without padding",
        "matmul_flops_per_second": rates.flops_per_second,
        "model_flops_utilization": cost.flops / step_seconds / rates.flops_per_second,
        "floor_seconds": floor_seconds(cost, rates),
        **(device_memory() if engine != "pytorch" else {}),
    }
    if "of_first" in timing:
        names = {"of_first": "ours_over_this", "of_first_min": "ours_over_this_min"}
        names["of_first_max"] = "ours_over_this_max"
        row |= {name: timing[key] for key, name in names.items()}
    if settings["objective"] == "swav":
        steps = math.ceil(PAPER_VERTEBRAE * PAPER_EPOCHS / settings["batch_size"])
        row["paper_pretraining_hours"] = steps * step_seconds / 3600
    return row


# ---------------------------------------------------------------- printed lines


def _floor_line(row: dict[str, Any]) -> str:
    seen = f"{row['image_size']}^3"
    if row["region"] == "body":
        seen += ", crops of the body"
    return (
        f"{row['objective']}, {seen} x {row['batch_size']}, width {row['width']}, "
        f"{row['dtype']}, {row['num_parameters'] / 1e6:.1f} M parameters: "
        f"{row['flops_per_step'] / 1e9:.4g} GFLOP a step without padding "
        f"({row['padded_flops_per_step'] / 1e9:.4g} with), {row['bytes_per_step'] / 1e9:.3g} GB\n"
        f"measured on {row['devices']} device(s): matrix product "
        f"{row['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s, copy "
        f"{row['copy_bytes_per_second'] / 1e9:.3g} GB/s: floor "
        f"{1e3 * row['floor_seconds']:.3g} ms a step"
    )


def _step_line(row: dict[str, Any]) -> str:
    line = (
        f"{row['engine']:9s} {row['data']:9s} {1e3 * row['step_seconds']:.4g} ms a step "
        f"({1e3 * row['step_seconds_min']:.4g}-{1e3 * row['step_seconds_max']:.4g}), "
        f"{row['images_per_second_per_device']:.4g} images/s/device, "
        f"{row['model_flops_utilization']:.1%} of the matrix product, "
        f"{row['step_seconds'] / row['floor_seconds']:.1f} times the floor; "
        f"first after {row['first_call_seconds']:.1f} s"
    )
    if "ours_over_this" in row:
        line += (
            f"\n          ours takes {row['ours_over_this']:.2f} times as long "
            f"({row['ours_over_this_min']:.2f}-{row['ours_over_this_max']:.2f}, windows in turn)"
        )
    if row["data"] != "synthetic":
        line += f"; host busy with data {1e3 * row['data_wait_seconds']:.2g} ms a step"
    if "paper_pretraining_hours" in row:
        line += (
            f"\n          the paper's pre-training at this size, width and batch: "
            f"{row['paper_pretraining_hours']:.3g} hours"
        )
    return line
