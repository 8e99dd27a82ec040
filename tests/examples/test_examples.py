"""The scripts of examples/, in interpreters that have never heard of this repository."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from launch.evaluation.run import predictions_table
from osteojax.evaluation import predictions
from tests.small_runs import on_devices

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

STRANGER = """
import os, runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Absent())
try:
    import osteojax
except ImportError:
    sys.argv = sys.argv[2:]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as `python script` does
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    sys.exit("osteojax can be imported")
"""


def in_a_fresh_interpreter(script: str, *arguments: object, absent: str = "") -> str:
    """Standard output of an example; what `absent` names cannot be imported there."""
    hidden = ",".join(filter(None, ("osteojax,data_prep,launch,flax,orbax,ml_collections", absent)))
    command = [sys.executable, "-c", STRANGER, hidden, str(EXAMPLES / script)]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=os.sep,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_rois(workdir: Path, pool: Path, folder: Path) -> tuple[Path, pd.DataFrame]:
    """(ROIs of the test split, what `evaluate` wrote of them)."""
    table, _, cohort = predictions_table(workdir, pool, ("test",), "best", True)
    predictions.write(folder / "predictions.csv", table)
    rows, window = cohort.rows("test", labelled=True), cohort.about.window
    codes = np.stack([cohort.array(int(row), "image")[window] for row in rows])
    body = np.stack([cohort.array(int(row), "mask")[2][window] for row in rows])
    hu = cohort.about.maps[0].decode(codes)
    written = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
    np.savez(folder / "rois.npz", hu=hu, body=body, device=written["device"].to_numpy(str))
    return folder / "rois.npz", written


@pytest.fixture(scope="module")
def rois(
    tiny_pool: Path, fine_tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    with on_devices(1):
        return write_rois(fine_tuned, tiny_pool, tmp_path_factory.mktemp("rois"))


@pytest.fixture(scope="module")
def body_rois(
    body_pool: Path, fine_tuned_body: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    with on_devices(1):
        return write_rois(fine_tuned_body, body_pool, tmp_path_factory.mktemp("rois"))


def compare(output: str, written: pd.DataFrame, tolerance: float) -> None:
    got = json.loads(output)
    np.testing.assert_allclose(got["probability"], written["probability"], atol=tolerance)
    np.testing.assert_allclose(got["bmd_g_cm2"], written["bmd_pred_g_cm2"], atol=tolerance)
    gates = written[["expert_1", "expert_2", "expert_3"]].astype(float)
    np.testing.assert_allclose(got["gate"], gates, atol=tolerance)
    levels = np.array(got["level_probabilities"])
    np.testing.assert_allclose(levels.max(1), written["level_probability"], atol=tolerance)
    np.testing.assert_array_equal(levels.argmax(1) + 1, written["level_pred"])


def test_jax_alone_predicts_what_evaluate_wrote(exported_model: Path, rois) -> None:
    path, written = rois
    output = in_a_fresh_interpreter(
        "evaluate_exported.py", exported_model, path, absent="safetensors,torch"
    )
    compare(output, written, 1e-5)


def test_jax_alone_cuts_crops(exported_body_model: Path, body_rois) -> None:
    path, written = body_rois
    output = in_a_fresh_interpreter("evaluate_exported.py", exported_body_model, path)
    compare(output, written, 1e-5)


def test_weights_are_read_without_a_library(exported_model: Path) -> None:
    path = exported_model / "weights.safetensors"
    got, expected = load_example("evaluate_exported").read_safetensors(path), load_file(path)
    assert set(got) == set(expected)
    assert all(np.array_equal(got[name], expected[name]) for name in got)


def test_the_script_is_short_and_the_docs_show_it() -> None:
    text = (EXAMPLES / "evaluate_exported.py").read_text()
    assert len(text.splitlines()) < 60
    body = text[text.index("import json") :]
    assert body in (ROOT / "docs" / "export.md").read_text()


def test_pytorch_predicts_what_evaluate_wrote(exported_model: Path, rois) -> None:
    pytest.importorskip("torch")
    path, written = rois
    output = in_a_fresh_interpreter("resnet3d_pytorch.py", exported_model, path, absent="jax")
    compare(output, written, 1e-5)


def test_pytorch_cuts_crops(exported_body_model: Path, body_rois) -> None:
    pytest.importorskip("torch")
    path, written = body_rois
    output = in_a_fresh_interpreter("resnet3d_pytorch.py", exported_body_model, path, absent="jax")
    compare(output, written, 2e-5)


# Groups of two channels and one voxel, as 32^2 would have, normalise rounding errors to one.
@pytest.mark.parametrize(
    ("rank", "norm", "edge", "form"),
    [
        (3, "batch", 32, {}),  # as a card of 0.1 says it
        (3, "batch", 36, {"shortcut": "average"}),  # stages of 9, 5, 3 and 2: odd edges
        (3, "per_map", 32, {"shortcut": "average"}),
        (2, "group", 128, {"shortcut": "average"}),
        (2, "batch", 45, {"shortcut": "average", "stem_window": 5, "max_pool": False}),
        (2, "batch", 33, {"stem_window": 3, "stem_stride": 1, "block_scale": 0.5}),
    ],
)
def test_resnet34_is_the_same_in_pytorch(rank: int, norm: str, edge: int, form: dict) -> None:
    """The paper's 3-4-6-3 blocks, with statistics and scales that are not those of a start."""
    torch = pytest.importorskip("torch")
    import jax

    from osteojax.export.programs import flat_weights
    from osteojax.models.resnet import resnet34

    example = load_example("resnet3d_pytorch")
    model = resnet34(width=8, rank=rank, norm=norm, **form)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *(edge,) * rank, 1)).astype(np.float32)
    start = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    scale = {"kernel": 0.06, "bias": 0.1, "mean": 0.1}

    def drawn(path, leaf):
        name = path[-1].key
        if name in scale:
            return (scale[name] * rng.normal(size=leaf.shape)).astype(np.float32)
        return rng.uniform(0.5, 1.0, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, start)
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False)["pooled"])(variables, x)
    inner = {part: {"backbone": tree} for part, tree in variables.items()}
    weights = flat_weights(inner)
    card = {"stage_sizes": (3, 4, 6, 3), "width": 8, "rank": rank, "norm": norm, **form}
    network = example.ResNet(card)
    state = {n.removeprefix("backbone."): t for n, t in example.state_dict(weights).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        got = network.eval()(torch.from_numpy(np.moveaxis(x, -1, 1))).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("sees", ["", "body_"])
def test_onnx_goes_through_pytorch(
    sees: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    for name in ("torch", "onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    exported_model = request.getfixturevalue(f"exported_{sees}model")
    path, written = request.getfixturevalue(f"{sees}rois")
    target = tmp_path / "model.onnx"
    printed = in_a_fresh_interpreter("export_onnx.py", exported_model, target, absent="jax")
    assert [line.split(":")[0] for line in printed.splitlines()[-2:]] == ["batch 1", "batch 5"]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    card = json.loads((exported_model / "model.json").read_text())
    data = np.load(path)
    device = np.array([card["devices"].index(name) for name in data["device"]])
    names = [output.name for output in session.get_outputs()]
    feed = {"hu": data["hu"], "device": device, "body": data["body"]}
    found = session.run(names, {n: v for n, v in feed.items() if n in card["inputs"]})
    compare(json.dumps({n: v.tolist() for n, v in zip(names, found, strict=True)}), written, 2e-5)
