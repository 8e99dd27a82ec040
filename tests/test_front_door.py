"""`osteojax` itself: its names, what importing it loads, and the code of docs/python.md."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import SimpleITK as sitk

import osteojax

ROOT = Path(__file__).resolve().parents[1]


def test_every_name_is_there() -> None:
    assert osteojax.__all__ == sorted(osteojax._PLACES) == list(osteojax._PLACES)
    for name in osteojax.__all__:
        assert callable(getattr(osteojax, name))
    assert set(osteojax.__all__) <= set(dir(osteojax))


def test_no_name_is_a_subpackage() -> None:
    """Importing `osteojax.train` would replace a function of that name."""
    assert not {module.name for module in pkgutil.iter_modules(osteojax.__path__)} & set(
        osteojax.__all__
    )


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "osteojax" / "__init__.pyi").read_text(encoding="utf-8"))
    places = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert places == osteojax._PLACES


def test_importing_loads_nothing_heavy() -> None:
    code = "import osteojax, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "osteojax" in loaded
    assert not {"jax", "numpy", "pandas", "flax", "SimpleITK", "launch", "data_prep"} & set(loaded)


def test_a_typo_gives_the_names_that_are_close() -> None:
    with pytest.raises(AttributeError, match=r"'open_cohrt'; did you mean open_cohort"):
        osteojax.open_cohrt
    with pytest.raises(AttributeError, match=r"'trian'; did you mean .*train_model"):
        osteojax.trian
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from osteojax import nothing  # noqa: F401


# ---------------------------------------------------------------- the code on the page


def blocks(path: Path) -> dict[str, str]:
    """Heading -> the first Python block under it."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", text, re.S | re.M)
    return dict(found)


PAGE = blocks(ROOT / "docs" / "python.md") | blocks(ROOT / "README.md")


@pytest.fixture(scope="module")
def place(tiny_pool: Path, exported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page names: a CT of a phantom, its mask, a pool, a model, ..."""
    from osteojax.evaluation import predictions
    from tests.data_prep.phantom import spine
    from tests.evaluation.tables import synthetic

    folder = tmp_path_factory.mktemp("front_door")
    phantom = spine(levels=("L1", "L2"), spacing_mm=3.0)
    sitk.WriteImage(phantom.ct, str(folder / "ct.nii.gz"))
    sitk.WriteImage(phantom.mask, str(folder / "mask.nii.gz"))
    (folder / "pool").symlink_to(tiny_pool, target_is_directory=True)
    (folder / "model").symlink_to(exported_model, target_is_directory=True)
    evaluation = folder / "finetune" / "evaluation"
    evaluation.mkdir(parents=True)
    predictions.write(evaluation / "predictions.csv", synthetic(40, "test", seed=1))
    (folder / "parameters.yaml").write_text(
        "featureClass:\n  glcm: [Contrast]\nvoxelSetting:\n  kernelRadius: 1\n"
    )
    return folder


def run(heading: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a block leaves, run in `place`; its last line's value is `last`."""
    code = PAGE[heading]
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(place)
    *body, last = ast.parse(code).body
    names: dict[str, Any] = {}
    exec(compile(ast.Module(body, []), heading, "exec"), names)
    assert isinstance(last, ast.Expr)
    names["last"] = eval(compile(ast.Expression(last.value), heading, "eval"), names)
    return names


def test_texture_maps(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("Texture maps of an image and a mask", place, monkeypatch)
    assert found["last"].shape == found["mask"].shape
    assert (found["last"][~found["mask"]] == 0).all()
    assert float(found["last"].max()) > 0


def test_a_folder_and_a_picture(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("A prepared folder, and a picture of a vertebra", place, monkeypatch)
    assert (place / "vertebra.png").stat().st_size > 10_000


@pytest.mark.parametrize("heading", ["Predicting on a CT and a mask", "From Python"])
def test_predicting(heading: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(place.rglob("*"))
    found = run(heading, place, monkeypatch)
    assert found["last"]["level"].tolist() == ["L1", "L2"]
    assert found["last"]["probability"].between(0, 1).all()
    assert sorted(place.rglob("*")) == before


def test_predicting_gives_what_the_verb_writes(place: Path, tmp_path: Path) -> None:
    from launch import cli

    words = ["predict", "--model", str(place / "model"), "--ct", str(place / "ct.nii.gz")]
    words += ["--mask", str(place / "mask.nii.gz"), "--device", "hologic", "--out", str(tmp_path)]
    assert cli.main([*words, "--workers", "0"]) == 0
    written = pd.read_csv(tmp_path / "predictions.csv")
    model = osteojax.load_model(place / "model")
    files = (place / "ct.nii.gz", place / "mask.nii.gz")
    table = osteojax.predict_scan(model, *files, device="hologic")
    for name in ("probability", "bmd_pred_g_cm2", "core_hu"):
        pd.testing.assert_series_equal(table[name], written[name], rtol=1e-6)
    with pytest.raises(osteojax.UserError, match="the model knows hologic"):
        osteojax.predict_scan(model, *files, device="holgic")
    with pytest.raises(osteojax.UserError, match=r"no\.nii\.gz"):
        osteojax.predict_scan(model, place / "no.nii.gz", files[1])


def test_scores(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = run("predictions.csv with intervals", place, monkeypatch)["last"]
    assert last["low"] <= last["estimate"] <= last["high"]


def test_training(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the network and the steps of `tests.small_runs`, whose programs are compiled already."""
    from tests.small_runs import SMALL

    small = "".join(f"{setting.removeprefix('--')}\n" for setting in SMALL)
    code = PAGE["Training from a config"]
    assert len(code.strip().splitlines()) <= 10
    code = code.replace("config.optim.train_steps = 100\n", small)
    assert small in code
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool").symlink_to(place / "pool", target_is_directory=True)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), found)
    assert found["best"]["step"] > 0
    assert (tmp_path / "finetune" / "best").is_dir()


def test_pyradiomics_call(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("PyRadiomics' call", place, monkeypatch)
    inside = sitk.GetArrayFromImage(sitk.ReadImage(str(place / "mask.nii.gz"))) == 20
    assert found["last"] == inside.sum()
    assert sitk.GetArrayFromImage(found["result"]["original_glcm_Contrast"]).max() > 0
