"""Estimates what training on a large cohort with many accelerators needs, from named inputs.

Every input states its origin: measured or counted by us, a goal, or an assumption about a machine
that we have not used. `osteojax benchmark scaling --plan` prints the tables of docs/scaling.md (a
test compares the two); `--assume NAME=VALUE` changes an input.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

from osteojax.errors import UserError


class Input(NamedTuple):
    """A number that the estimate starts from; kind: measured, counted, goal or assumed."""

    value: float
    kind: str
    source: str


class Result(NamedTuple):
    """A number that follows from the inputs, with its formula."""

    quantity: str
    formula: str
    value: str


class Load(NamedTuple):
    """Needed amount divided by available amount of a resource; above 1 it limits the run."""

    what: str
    needed: str
    there: str
    ratio: float


INPUTS = {
    "vertebrae": Input(1e6, "assumed", "the cohort"),
    "accelerators": Input(256, "assumed", "the machine"),
    "accelerators_per_host": Input(8, "assumed", "the machine"),
    "memory_gb": Input(80, "assumed", "of an accelerator"),
    "link_gb_s": Input(450, "assumed", "between accelerators of a host: NVLink, one way"),
    "network_gb_s": Input(50, "assumed", "of a host: 400 Gbit/s"),
    "latency_us": Input(30, "assumed", "of a small sum over all accelerators"),
    "file_system_gb_s": Input(100, "assumed", "reads, for all hosts together"),
    "cores_per_host": Input(128, "assumed", "the machine"),
    "mtbf_hours": Input(
        50677, "assumed", "of an accelerator: 419 stops of 16,384 in 54 days (Llama 3)"
    ),
    "epochs": Input(300, "goal", "the paper's pre-training"),
    "batch": Input(32, "goal", "on each accelerator; the paper's batch"),
    "steps_per_s": Input(39.4, "goal", "30,256 x 300 / 32 steps of 96^3 in two hours"),
    "volume_bytes": Input(96**3, "counted", "codes of a 96^3 volume"),
    "sum_bytes": Input(255409668, "counted", "a step's sums, SwAV: scaling_counts_cpu.json"),
    "sums": Input(87, "counted", "a step's sums, SwAV: scaling_counts_cpu.json"),
    "state_bytes": Input(766971164, "counted", "parameters, two moments, statistics, queue"),
    "pool_mb": Input(2.54, "measured", "a vertebra on disk: data.md"),
    "image_mb": Input(0.60, "measured", "the same, image alone: data.md"),
    "prepare_core_s": Input(0.615, "measured", "65 vertebrae in 20 s on 2 cores: data.md"),
    "reads_per_core_s": Input(202, "measured", "405/s on 2 cores: storage_cpu.json"),
    "checkpoint_mb_s": Input(53, "measured", "212 MB in 4 s: training.md"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", action="store_true", help="prints the arithmetic of docs/scaling.md instead"
    )
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another input of --plan; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    inputs = dict(INPUTS)
    for text in args.assume:
        name, _, value = text.partition("=")
        if name not in inputs:
            raise UserError(f"--assume {text}: choose one of {', '.join(inputs)}.")
        inputs[name] = inputs[name]._replace(value=_number(text, value), source="--assume")
    print("\n\n".join(tables(inputs)))
    return 0


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"--assume {text}: a number above 0 is needed.")
    return number


def tables(inputs: dict[str, Input]) -> list[str]:
    """Three tables in Markdown: the inputs, the results, and the loads of the machine's parts."""
    values = {name: entry.value for name, entry in inputs.items()}
    known = [(f"`{n}`", f"{e.value:,.10g}", e.kind, e.source) for n, e in inputs.items()]
    broken = sorted(loads(values), key=lambda load: -load.ratio)
    return [
        _table(("input", "value", "kind", "source"), known),
        _table(("quantity", "formula", "value"), results(values)),
        _table(
            ("what", "needed", "there is", "needed / there is"),
            [(load.what, load.needed, load.there, f"{load.ratio:.2g}") for load in broken],
        ),
    ]


def _table(heads: tuple[str, ...], rows: list) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------- the arithmetic


class Run:
    """Quantities that several results share; units are in the names."""

    def __init__(self, v: dict[str, float]) -> None:
        per_host = min(v["accelerators_per_host"], v["accelerators"])
        self.hosts = v["accelerators"] / per_host
        self.batch = v["accelerators"] * v["batch"]
        self.steps = v["vertebrae"] * v["epochs"] / self.batch
        self.step_s = 1 / v["steps_per_s"]
        self.hours = self.steps * self.step_s / 3600
        self.epoch_s = v["vertebrae"] / self.batch * self.step_s
        self.host_reads_per_s = per_host * v["batch"] * v["steps_per_s"]
        # A pair shows two of the five members of a pool.
        self.read_mb = 0.4 * v["pool_mb"]
        self.reads_gb_s = self.hosts * self.host_reads_per_s * self.read_mb / 1e3
        self.decode_cores = self.host_reads_per_s / v["reads_per_core_s"]
        self.pool_gb = 5 * v["vertebrae"] * v["volume_bytes"] / v["accelerators"] / 1e9
        # Every device sums the whole global batch, two views (osteojax/data/resident.py).
        self.gather_gb = 2 * self.batch * v["volume_bytes"] / 1e9
        inside = (per_host - 1) / per_host / v["link_gb_s"]
        between = (self.hosts - 1) / self.hosts / v["network_gb_s"]
        # An all-reduce is a reduce-scatter and an all-gather, inside hosts and between them.
        self.sum_inside_s = 2 * inside * v["sum_bytes"] / 1e9
        self.sum_between_s = 2 * between * v["sum_bytes"] / 1e9
        self.gather_s = (inside + between) * self.gather_gb
        self.shown_gb = 2 * v["batch"] * v["volume_bytes"] / 1e9
        self.shown_s = per_host * self.shown_gb * between
        self.latency_s = v["sums"] * v["latency_us"] / 1e6
        self.save_s = v["state_bytes"] / 1e6 / v["checkpoint_mb_s"]
        self.mtbf_h = v["mtbf_hours"] / v["accelerators"]
        # Best interval between checkpoints: Young 1974, the first order of Daly 2006.
        self.interval_h = math.sqrt(2 * self.save_s / 3600 * self.mtbf_h)
        self.growth = self.batch / 32


def results(v: dict[str, float]) -> list[Result]:
    """Results that follow from the inputs, by name."""
    run = Run(v)
    return [
        Result("global batch", "accelerators x batch", f"{run.batch:,.0f}"),
        Result("steps", "vertebrae x epochs / global batch", f"{run.steps:,.0f}"),
        Result("time of an epoch", "vertebrae / global batch / steps_per_s", _s(run.epoch_s)),
        Result("time of the run", "steps / steps_per_s", f"{run.hours:.3g} h"),
        Result("pools on disk", "vertebrae x pool_mb", _tb(v["vertebrae"] * v["pool_mb"])),
        Result("images on disk", "vertebrae x image_mb", _tb(v["vertebrae"] * v["image_mb"])),
        Result(
            "preparing",
            "vertebrae x prepare_core_s",
            f"{v['vertebrae'] * v['prepare_core_s'] / 3600:,.0f} core-hours",
        ),
        Result(
            "vertebrae read, a host",
            "n x batch x steps_per_s",
            f"{run.host_reads_per_s:,.0f}/s",
        ),
        Result(
            "read from disk, a host",
            "the same x 2/5 pool_mb",
            f"{run.host_reads_per_s * run.read_mb / 1e3:.3g} GB/s",
        ),
        Result(
            "the same, online textures",
            "x image_mb",
            f"{run.host_reads_per_s * v['image_mb'] / 1e3:.3g} GB/s",
        ),
        Result("read from disk, all hosts", "x hosts", f"{run.reads_gb_s:.3g} GB/s"),
        Result(
            "cores that read, a host",
            "vertebrae read / reads_per_core_s",
            f"{run.decode_cores:.0f}",
        ),
        Result(
            "resident pools, an accelerator",
            "5 x vertebrae x volume_bytes / accelerators",
            f"{run.pool_gb:.3g} GB",
        ),
        Result("resident images, an accelerator", "a fifth", f"{run.pool_gb / 5:.3g} GB"),
        Result(
            "gathering a resident batch",
            "2 x global batch x volume_bytes, on every accelerator",
            f"{run.gather_gb:.3g} GB",
        ),
        Result(
            "time of it",
            "x ((n - 1)/n / link_gb_s + (hosts - 1)/hosts / network_gb_s)",
            _ms(run.gather_s),
        ),
        Result(
            "volumes that an accelerator shows",
            "2 x batch x volume_bytes",
            f"{1e3 * run.shown_gb:.3g} MB",
        ),
        Result(
            "time of sending them alone",
            "x n (hosts - 1)/hosts / network_gb_s",
            _ms(run.shown_s),
        ),
        Result("sums, inside hosts", "2 x (n - 1)/n sum_bytes / link_gb_s", _ms(run.sum_inside_s)),
        Result(
            "sums, between hosts",
            "2 x (hosts - 1)/hosts sum_bytes / network_gb_s",
            _ms(run.sum_between_s),
        ),
        Result("sums, latency", "sums x latency_us", _ms(run.latency_s)),
        Result("a step", "1 / steps_per_s", _ms(run.step_s)),
        Result("a checkpoint", "state_bytes", f"{v['state_bytes'] / 1e6:.0f} MB"),
        Result("writing it", "/ checkpoint_mb_s", _s(run.save_s)),
        Result("time between failures", "mtbf_hours / accelerators", f"{run.mtbf_h:.0f} h"),
        Result(
            "best time between saves",
            "(2 x writing x time between failures)^1/2",
            f"{run.interval_h:.2g} h",
        ),
        Result(
            "failures in the run",
            "time of the run / time between failures",
            f"{run.hours / run.mtbf_h:.2g}",
        ),
        Result("growth of the batch, k", "global batch / 32", f"{run.growth:.0f}"),
        Result("learning rate", "1e-4 x k^1/2", f"{1e-4 * math.sqrt(run.growth):.2g}"),
        Result("beta1 by the same rule", "1 - k (1 - 0.9)", f"{1 - 0.1 * run.growth:.3g}"),
        Result("beta2 by the same rule", "1 - k (1 - 0.999)", f"{1 - 0.001 * run.growth:.3g}"),
    ]


def loads(v: dict[str, float]) -> list[Load]:
    """Load of each part of the machine."""
    run = Run(v)
    sums_s = run.sum_inside_s + run.sum_between_s
    step = f"{_ms(run.step_s)} a step"

    def memory(what: str, gigabytes: float) -> Load:
        there = f"{v['memory_gb']:.3g} GB"
        return Load(what, f"{gigabytes:.3g} GB", there, gigabytes / v["memory_gb"])

    return [
        Load("resident: gathering the batch", _ms(run.gather_s), step, run.gather_s / run.step_s),
        memory("resident: the gathered batch in memory", run.gather_gb),
        memory("resident: pools in memory", run.pool_gb),
        Load(
            "saving every epoch",
            _s(run.save_s),
            f"{_s(run.epoch_s)} an epoch",
            run.save_s / run.epoch_s,
        ),
        Load(
            "disk: file system",
            f"{run.reads_gb_s:.3g} GB/s",
            f"{v['file_system_gb_s']:.3g} GB/s",
            run.reads_gb_s / v["file_system_gb_s"],
        ),
        Load(
            "disk: cores of a host",
            f"{run.decode_cores:.0f}",
            f"{v['cores_per_host']:.0f}",
            run.decode_cores / v["cores_per_host"],
        ),
        Load("sums of gradients", _ms(sums_s), step, sums_s / run.step_s),
        Load("latency of small sums", _ms(run.latency_s), step, run.latency_s / run.step_s),
        Load(
            "failures",
            f"{run.hours:.2g} h",
            f"{run.mtbf_h:.3g} h between two",
            run.hours / run.mtbf_h,
        ),
    ]


def _s(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _tb(megabytes: float) -> str:
    return f"{megabytes / 1e6:.3g} TB"
