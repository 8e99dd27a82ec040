"""`osteojax compile`: reading a program, finding the batch that fits, mistakes of the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.cli import main
from launch.compiled.chips import CHIPS
from launch.compiled.environment import PYTHON
from launch.compiled.figures import OutOfMemory
from launch.compiled.fits import largest_batch
from launch.compiled.program import convolution_dtypes, kernels
from launch.configs import SHIPPED
from osteojax.errors import UserError

HLO = """HloModule jit_steps, is_scheduled=true

%fused (p: f32[4,8]) -> bf16[8,4] {
  %p = f32[4,8]{1,0} parameter(0)
  %c = bf16[4,8]{1,0} convert(%p), metadata={op_name="jit(s)/jvp(Net)/stem/convert"}
  ROOT %t = bf16[8,4]{1,0} transpose(%c), metadata={op_name="jit(s)/jvp(Net)/stem/transpose"}
}

%adam (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %m = f32[4,8]{1,0} multiply(%p, %p)
}

%body (s: (f32[4,8])) -> (f32[4,8]) {
  %s = (f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%s), index=0
  %y = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%adam, backend_config={"estimated_cycles":"70"}
  ROOT %r = (f32[4,8]{1,0}) tuple(%y)
}

%small (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  ROOT %n = f32[4,8]{1,0} negate(%x)
}

%large (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %n = f32[4,8]{1,0} negate(%x)
  ROOT %o = f32[4,8]{1,0} negate(%n)
}

ENTRY %main (w: f32[4,8], m: f32[4,8]) -> f32[4,8] {
  %w = f32[4,8]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params"}
  %m = f32[4,8]{1,0} parameter(1), metadata={op_name="state.opt_state[0]"}
  %k = bf16[8,4]{1,0} fusion(%w), kind=kInput, calls=%fused
  %conv = (bf16[2,16]{1,0}, u8[0]{0}) custom-call(%k, %k), window={size=3x3}, custom_call_target="__cudnn$convForward", metadata={op_name="jit(s)/while/body/transpose(jvp(Net))/backbone/stage1_block1/conv1/cond/branch_0_fun/conv_general_dilated"}, backend_config={"estimated_cycles":"11"}
  %g = bf16[2,16]{1,0} get-tuple-element(%conv), index=0
  %sum-start = f32[4,8]{1,0} all-reduce-start(%w), replica_groups={}
  %norm = f32[4,8]{1,0} fusion(%w), kind=kLoop, calls=%adam, metadata={op_name="jit(s)/jvp(Net)/backbone/stem_norm/norm/mul;jit(s)/jvp(Net)/other/add"}
  %sum-done = f32[4,8]{1,0} all-reduce-done(%sum-start)
  %late-start = f32[4,8]{1,0} all-reduce-start(%sum-done), replica_groups={}
  %late-done = f32[4,8]{1,0} all-reduce-done(%late-start)
  %step = f32[4,8]{1,0} fusion(%w, %m), kind=kLoop, calls=%adam, metadata={op_name="jit(s)/while/body/mul"}
  %t = (f32[4,8]{1,0}) tuple(%step)
  %loop = (f32[4,8]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %either = f32[4,8]{1,0} conditional(%p, %w, %w), true_computation=%small, false_computation=%large
  %wide = s64[4]{0} custom-call(%w), custom_call_target="sort"
  ROOT %copy = f32[4,8]{1,0} copy(%step)
}
"""  # noqa: E501
ARRAY = 4 * 8 * 4


def test_kernels_of_a_program() -> None:
    found = {kernel.name: kernel for kernel in kernels(HLO)}
    moved = {name: kernel.bytes for name, kernel in found.items()}
    assert moved == {
        "k": ARRAY + 64,
        "conv": 2 * 64 + 64,
        "sum-start": 2 * ARRAY,
        "norm": 2 * ARRAY,
        "late-start": 2 * ARRAY,
        "step": 3 * ARRAY,
        "y": 3 * 2 * ARRAY,  # three turns of the loop
        "n": 2 * ARRAY,  # of the branch that moves more
        "o": 2 * ARRAY,
        "wide": ARRAY + 32,
        "copy": 2 * ARRAY,
    }
    assert {name: kernel.layer for name, kernel in found.items() if kernel.layer} == {
        "k": "stem",
        "conv": "backbone/stage1_block1/conv1",
        "norm": "backbone/stem_norm",
        "step": "optimiser",
    }
    assert {name for name, kernel in found.items() if kernel.backward} == {"conv"}
    assert {name for name, kernel in found.items() if kernel.convolution} == {"conv"}
    assert {name for name, kernel in found.items() if kernel.moves_only} == {"k", "copy"}
    assert {name for name, kernel in found.items() if kernel.overlapped} == {"sum-start"}
    assert {name for name, kernel in found.items() if kernel.collective} == {
        "sum-start",
        "late-start",
    }
    assert {name for name, kernel in found.items() if kernel.wide} == {"wide"}
    cycles = {name: k.cycles for name, k in found.items() if k.cycles is not None}
    assert cycles == {"conv": 11, "y": 210}
    assert convolution_dtypes(HLO) == {"bf16": 1}


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize(("each", "fixed", "devices"), [(1.0, 100.0, 1), (3.7, 0.0, 8), (90, 5, 4)])
def test_the_largest_batch_that_fits(
    each: float, fixed: float, devices: int, squeezed: bool
) -> None:
    tried: list[int] = []

    def compile_one(batch: int) -> tuple[dict, str]:
        tried.append(batch)
        peak = fixed + each * batch + 3 * (batch % 7)  # about linear
        peak = min(peak, 900 + 0.1 * peak) if squeezed else peak  # found room when it had to
        if peak > 1000:
            raise OutOfMemory("no room")
        figures = {"peak_bytes": peak, "room_bytes": 1000, "argument_bytes": fixed}
        return figures, f"program of {batch}"

    batch, figures, text = largest_batch(compile_one, 32, devices, lambda line: None)
    assert figures["peak_bytes"] <= 1000
    assert text == f"program of {batch}"
    assert batch % devices == 0
    next_larger = min(other for other in tried if other > batch)  # it was seen not to fit
    assert next_larger - batch <= max(devices, batch // 64)
    assert len(tried) == len(set(tried)) <= 12


def test_not_even_one_vertebra_fits() -> None:
    def compile_one(batch: int) -> tuple[dict, str]:
        raise OutOfMemory("no room")

    with pytest.raises(UserError, match="not even a batch of 4"):
        largest_batch(compile_one, 64, 4, lambda line: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "b200:1x1x1"), "--topology b200:1x1x1: unknown. Choose as h200:1x1x1"),
        (("--topology", "h200"), "--topology h200: unknown"),
        (("--topology", "v5e:2xtwo"), "--topology v5e:2xtwo: unknown"),
        ((), "--topology and --config are needed"),
        (("--topology", "h200:1x1x1", "--size", "0"), "--size 0: a number from 1"),
        (("--topology", "h200:1x1x1"), "Run `make compile-env` in"),
        (("--topology", "h200:1x1x1", "--textures", "box"), "--textures compiles maps for one"),
        (("--topology", "h200:1x1x1", "--radius", "0"), "--radius 0: a number from 1"),
        (("--compare", "absent.json", "absent.json"), "--compare absent.json: not readable"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(PYTHON, "no/such/python")
    config = ("--config", "configs/tp_swav_resnet34.py") if arguments else ()
    assert main(["compile", *config, *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_two_files_beside_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "peak_bytes": 2**31,
        "room_bytes": 2**37,
        "argument_bytes": 2**29,
        "bytes_moved": 45_000_000_000,
        "least_bytes": 10_800_000_000,
        "flops": 7_095_000_000_000,
        "flop_bound_ms": 7.2,
        "byte_bound_ms": 9.4,
        "estimate_ms": None,
        "without_estimate": [],
        "collectives": [],
        "convolutions": {"bf16": 107},
        "wide_arrays": 0,
        "compile_seconds": 40,
        "layers": [{"layer": "stem", "convolutions": 2_000_000, "between": 5_000_000}],
    }
    program = dict.fromkeys(("topology", "config", "overrides", "size", "dtype"), "same")
    paths = []
    for name, batch, moved in (("a", 32, 45.0), ("b", 64, 33.0)):
        one = {**figures, "bytes_moved": int(moved * 1e9)}
        paths.append(str(tmp_path / f"{name}.json"))
        text = json.dumps({"program": {**program, "batch": batch}, "figures": one})
        Path(paths[-1]).write_text(text)
    assert main(["compile", "--compare", *paths]) == 0
    told = capsys.readouterr().out
    for expected in ("45.00 GB", "33.00 GB", "batch", "2.00 of 128.0 GiB", "stem", "107 in bf16"):
        assert expected in told
    assert "same" not in told  # what does not differ is not repeated


def test_texture_maps_beside_one_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = SHIPPED / "benchmarks" / "compiled"
    before, after = (str(committed / f"{name}h200_textures_box.json") for name in ("before/", ""))
    assert main(["compile", "--compare", before, after]) == 0
    told = capsys.readouterr().out
    for expected in ("233.3 a voxel", "85.2 a voxel", "17 a voxel", "20.6 Gvoxel/s"):
        assert expected in told
    step = str(committed / "h200x8_small.json")
    assert main(["compile", "--compare", before, step]) == 1
    assert "one file is of a step" in capsys.readouterr().err


def test_the_rates_of_a_chip_are_in_order() -> None:
    """Of units: petaflops, terabytes a second, gigabytes."""
    for chip in CHIPS.values():
        assert 1e14 < chip.flops_per_second["bfloat16"] < 1e15
        assert chip.flops_per_second["float32"] <= chip.flops_per_second["bfloat16"]
        assert 5e11 < chip.bytes_per_second < 5e12
        assert 1e10 < chip.room_bytes < 2e11
