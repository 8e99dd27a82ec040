"""What `osteojax compile` does in the environment that has the compilers."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

from launch.benchmarks import measure
from launch.benchmarks.experiment import stand_in_cohort
from launch.compiled import tables
from launch.compiled.chips import chip_of, devices_of
from launch.compiled.figures import Figures, compiled_figures
from launch.compiled.fits import largest_batch
from launch.compiled.step import cost_of_one_device, lowered_step
from launch.configs import load_config
from osteojax.errors import UserError
from osteojax.files import write_json, write_text


def compile_step(args: argparse.Namespace) -> None:
    """Compiles, prints and writes what the arguments of the verb ask for."""
    config, found = load_config(args.config, args.overrides), devices_of(args.topology)
    if args.devices and args.devices > len(found):
        raise UserError(f"--devices {args.devices}: {args.topology} has {len(found)}.")
    found = found[: args.devices]
    one = _compiler(args, config, found)
    if args.fits:
        batch, figures, text = largest_batch(one, args.batch, len(found), tables.say)
    else:
        batch, (figures, text) = args.batch, one(args.batch)
    program = {
        "topology": args.topology,
        "devices": len(found),
        "config": args.config,
        "overrides": list(args.overrides),
        "size": args.size,
        "batch": batch,
        "dtype": config.model.dtype,
    }
    result = {"environment": _environment(), "program": program, "figures": figures}
    if args.text:
        write_text(args.text, text)
    if args.json:
        write_json(args.json, result)
    tables.show(result)
    if args.json:
        print(f"written to {args.json}")


def _compiler(
    args: argparse.Namespace, config: Any, found: list[Any]
) -> Callable[[int], tuple[Figures, str]]:
    """A function: global batch -> figures and text."""
    chip, cohort = chip_of(args.topology), stand_in_cohort(args.size)

    def one(batch: int) -> tuple[Figures, str]:
        own = copy.deepcopy(config)
        with own.unlocked():
            own.batch_size = batch
        cost = cost_of_one_device(own, cohort, len(found))
        return compiled_figures(
            lambda: lowered_step(own, cohort, found), chip, cost, own.model.dtype
        )

    return one


def _environment() -> dict[str, Any]:
    packages = ("flax", "optax", "jax-cuda12-plugin", "libtpu")
    return measure.environment(*packages)
