"""Compile a training step, or texture maps, for chips that are not here: memory, bytes, bounds.

Any config of pre-training or fine-tuning; its fields can be set as --config.FIELD=VALUE. Nothing is
measured: bytes and memory are the compiler's, times are bounds or its estimates. The compilers live
in an environment of their own, which `make compile-env` makes once.

Examples:
  osteojax compile --topology h200:1x1x1 --size 96 --batch 32 --config.model.dtype=bfloat16 \\
      --config configs/tp_swav_resnet34.py:paper --json before.json
  osteojax compile --topology h100:1x1x1 --size 96 --batch 512 --fits \\
      --config configs/tp_swav_resnet34.py:paper
  osteojax compile --topology h200:1x1x1 --textures box --size 96 --batch 32
  osteojax compile --compare before.json after.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.compiled import environment
from launch.compiled.chips import EXAMPLES, chip_of, devices_of
from launch.compiled.tables import compared, tables_of
from launch.configs import load_config
from osteojax.errors import UserError
from osteojax.files import write_json, write_text

TEXTURES = ("box", "masked", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", help=f"chips: {EXAMPLES}")
    parser.add_argument("--config", help="a file of configs/, FILE.py or FILE.py:paper")
    parser.add_argument(
        "--textures",
        choices=TEXTURES,
        help="instead of a step: the paper's four maps of whole boxes or inside masks, or all 16",
    )
    parser.add_argument(
        "--radius", type=int, default=3, help="of the maps' windows (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=96, help="edge of a box in voxels (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=32, help="vertebrae a step, global (default: %(default)s)"
    )
    parser.add_argument("--devices", type=int, help="the first so many (default: all)")
    parser.add_argument(
        "--fits", action="store_true", help="find the largest batch that fits, and compile that"
    )
    parser.add_argument("--text", metavar="FILE", help="writes the compiled program")
    parser.add_argument("--json", metavar="FILE", help="writes the figures")
    parser.add_argument(
        "--compare", nargs=2, metavar="JSON", help="prints two files of --json, beside one another"
    )


def run(args: argparse.Namespace) -> int:
    if args.compare:
        _compare(*(_read(path) for path in args.compare))
        return 0
    if not args.topology or not (args.config or args.textures):
        raise UserError(
            "--topology and --config are needed (or --textures), or --compare with two files."
        )
    if args.textures and (args.config or args.overrides or args.fits or args.devices):
        raise UserError(
            "--textures compiles maps for one device: leave out --config, --fits and --devices."
        )
    for name in ("size", "batch", "devices", "radius"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: a number from 1 is needed.")
    platform = chip_of(args.topology).platform
    if not environment.has_compiler(platform):
        return environment.run_elsewhere(args.command, platform)
    environment.set_variables()
    result, text = (_textures if args.textures else _compiled)(args)
    if args.text:
        write_text(args.text, text)
    if args.json:
        write_json(args.json, result)
    if args.textures:
        from launch.compiled.textures import texture_tables

        _print(texture_tables(result))
    else:
        _print(tables_of(result))
    if args.json:
        print(f"written to {args.json}")
    return 0


def _compiled(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What --json has, and the program's text."""
    # Imported here, because they import jax, which reads the environment's variables then.
    from launch.compiled.fits import largest_batch
    from launch.compiled.step import compiler

    config = load_config(args.config, args.overrides)
    found = devices_of(args.topology, args.devices)
    one = compiler(config, args.size, chip_of(args.topology), found)
    batch = args.batch
    if args.fits:
        batch, figures, text = largest_batch(one, batch, len(found), print)
    else:
        figures, text = one(batch)
    program = {
        "topology": args.topology,
        "devices": len(found),
        "config": args.config,
        "overrides": list(args.overrides),
        "size": args.size,
        "batch": batch,
        "dtype": config.model.dtype,
    }
    return {"environment": _versions(), "program": program, "figures": figures}, text


def _textures(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """As `_compiled`, of texture maps."""
    from launch.compiled.textures import compiled_textures

    device = devices_of(args.topology, 1)[0]
    chip = chip_of(args.topology)
    figures, text = compiled_textures(
        args.textures, args.size, args.batch, args.radius, chip, device
    )
    named = ("topology", "textures", "size", "batch", "radius")
    program = {name: getattr(args, name) for name in named}
    return {"environment": _versions(), "program": program, "figures": figures}, text


def _versions() -> dict[str, Any]:
    from launch.benchmarks.measure import environment as this_environment

    return this_environment("flax", "optax", "jax-cuda12-plugin", "libtpu")


def _compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    kinds = {"textures" in result["program"] for result in (before, after)}
    if kinds == {False}:
        _print(compared(before, after))
        return
    if len(kinds) > 1:
        raise UserError("--compare: one file is of a step, the other one of texture maps.")
    from launch.compiled.textures import texture_tables

    for result in (before, after):
        _print(texture_tables(result))


def _print(tables: Iterable[Any]) -> None:
    console = Console(highlight=False)
    for table in tables:
        console.print(table)


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {path}: not readable ({error}).") from error
    if "figures" not in found:
        raise UserError(f"--compare {path}: not written by `osteojax compile --json`.")
    return found
