"""Collectives of a step: read from a program's text, and what the method needs against a trace."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from launch.benchmarks.experiment import Experiment, stand_in_cohort
from launch.benchmarks.scaling import traceable_step
from osteojax.train.collectives import Collective, compiled_collectives, expected_bytes
from tests.small_runs import fine_tuning, pretraining, small

HLO = """HloModule jit_step, num_partitions=4

%region_0 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%async_computation (p: bf16[8,3]) -> bf16[2,3] {
  ROOT %scatter = bf16[2,3]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[2,8]) -> f32[2,8] {
  %one = f32[2,8]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}
  %many = (f32[1]{0}, /*index=1*/s8[4]{0}, pred[]) all-reduce(%a, %b, %c), replica_groups=[1,4]<=[4]
  %start = f32[10]{0} all-reduce-start(%x), channel_id=3, replica_groups={}
  %done = f32[10]{0} all-reduce-done(%start)
  %gather = u8[16]{0} all-gather(%y), replica_groups={{0,1,2,3}}, dimensions={0}
  %begun = (u8[4]{0}, u8[16]{0}) all-gather-start(%y), replica_groups={{0,1,2,3}}, dimensions={0}
  %swap = f16[6]{0} collective-permute(%z), source_target_pairs={{0,1},{1,0}}
  %self = f32[99]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}
  %all-reduce.7 = f32[2,8]{1,0} add(%one, %one)
}
"""


def test_collectives_are_read_from_a_program() -> None:
    assert compiled_collectives(HLO, num_devices=4) == [
        Collective("reduce-scatter", 8 * 3 * 2, 4),
        Collective("all-reduce", 2 * 8 * 4, 2),
        Collective("all-reduce", 4 + 4 + 1, 4),
        Collective("all-reduce", 40, 4),
        Collective("all-gather", 4, 4),
        Collective("all-gather", 4, 4),
        Collective("collective-permute", 12, 2),
    ]


def test_a_collective_in_a_loop_is_not_counted_once() -> None:
    loop = "  %loop = (f32[]) while(%x), condition=%test, body=%main\n}"
    with pytest.raises(ValueError, match="loop main"):
        compiled_collectives(HLO + "\nENTRY %top (x: f32[]) -> f32[] {\n" + loop, num_devices=4)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-reduce", 1500), ("all-gather", 3000), ("reduce-scatter", 750), ("all-to-all", 750)],
)
def test_what_a_ring_sends(kind: str, sent: float) -> None:
    """1000 bytes of each of 4 devices: of a sum 3 quarters twice, of a gather 3 others' whole."""
    assert Collective(kind, 1000, 4).wire_bytes == sent


SMALL = ("--config.model.rank=2", "--config.batch_size=4")
CASES = {
    "swav": (pretraining, ()),
    "swav without queue": (pretraining, ("--config.objective.queue_size=0",)),
    "swav, statistics per map": (pretraining, ("--config.model.norm=per_map",)),
    "swav, group norm": (pretraining, ("--config.model.norm=group",)),
    "simclr": (partial(small, "simclr_resnet34"), ()),
    "vicreg": (partial(small, "vicreg_resnet34"), ()),
    "multitask, bfloat16": (fine_tuning, ("--config.model.dtype=bfloat16",)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_expected_bytes_are_those_of_the_traced_step(case: str) -> None:
    shrunk, overrides = CASES[case]
    config = shrunk(*SMALL, *overrides)
    experiment = Experiment(config, stand_in_cohort(8, 4), num_devices=2)
    batch = experiment.synthetic_batch()
    step, state = traceable_step(experiment, batch)
    traced = jax.make_jaxpr(step)(state, batch, experiment.key)
    expected = expected_bytes(experiment.objective, state.params, state.model_state, 2)
    assert sum(traced_bytes(traced.jaxpr)) == sum(expected.values())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert expected["gradients"] == 4 * parameters


def traced_bytes(jaxpr: Any) -> Iterator[int]:
    """Operand bytes of every collective of a traced program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in (
            "psum",
            "psum_invariant",
            "pmax",
            "all_gather",
            "reduce_scatter",
        ):
            for variable in equation.invars:
                yield variable.aval.size * np.dtype(variable.aval.dtype).itemsize
        if equation.primitive.name == "cond":  # one form for each platform, of which one runs
            forms = {tuple(traced_bytes(branch.jaxpr)) for branch in equation.params["branches"]}
            assert len({sum(form) for form in forms}) == 1
            yield from forms.pop()
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from traced_bytes(inner)
