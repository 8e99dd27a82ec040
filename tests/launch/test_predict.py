"""Prediction on real CTs and on tables of phantoms, from files to tables, JSON and picture."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from data_prep.workers import Crew, Task, WorkerDied, run_tasks
from launch import cli
from launch.prediction import worker_pool
from launch.prediction.cases import folder_name
from launch.prediction.decision import decide
from launch.prediction.flags import MEANINGS, Flag
from osteojax.errors import CaseError
from osteojax.evaluation.report import scans_page
from osteojax.export.load import ExportedModel
from tests.data_prep.phantom import spine, write_scan, write_table
from tests.html_table import Tables


def run(model: Path, out: Path, ct: Path, *options: str) -> int:
    start = ["predict", "--model", str(model), "--ct", str(ct), "--out", str(out)]
    return cli.main([*start, *(() if "--workers" in options else ("--workers", "0")), *options])


def predict(model: Path, out: Path, ct: Path, mask: Path, scheme: str, *options: str):
    assert run(model, out, ct, "--mask", str(mask), "--label-scheme", scheme, *options) == 0
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    answer = json.loads((out / "prediction.json").read_text())
    picture = matplotlib.image.imread(out / "prediction.png")
    assert picture.std() > 0.1
    assert min(picture.shape[:2]) > 500
    assert np.isfinite(table[["probability", "bmd_pred_g_cm2", "expert_1"]].to_numpy(float)).all()
    assert len(pd.read_csv(out / "failures.csv")) == 0
    return table, answer


def test_torso_ct_with_both_label_files(
    exported_model: Path, real_data: Path, tmp_path, capsys
) -> None:
    folder = real_data / "totalsegmentator"
    ct = folder / "example_ct.nii.gz"
    whole, answer = predict(
        exported_model, tmp_path / "whole", ct, folder / "totalseg.nii.gz", "totalsegmentator_v2",
        "--attention",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "T12: cut by the border of the CT" in printed
    bodies, _ = predict(
        exported_model, tmp_path / "bodies", ct,
        folder / "totalseg_vertebrae_pp_refined.nii.gz", "verse", "--device", "hologic",
    )  # fmt: skip
    assert {"L1", "L2", "L3", "L4", "L5"} <= set(whole["level"]) & set(bodies["level"])
    cut = whole.set_index("level")
    assert cut.loc["T12", "truncated"]
    assert "cut by the border" in cut.loc["T12", "flags"]
    assert list(cut.loc[["L1", "L4", "L5"], "decides"]) == [True, True, False]
    assert answer["patient"]["osteoporosis_pred"] in (True, False)
    assert answer["patient"]["verdict"] in printed.replace("\n", " ")
    assert answer["contrast"]["suspected"] is False
    assert answer["device"] == "unknown"
    assert (whole["bmd_low"] <= whole["bmd_pred_g_cm2"]).all()  # the spread over the devices
    assert any("unknown" in note for note in answer["patient"]["notes"])


def test_dicom_series_with_a_flipped_mask(
    exported_model: Path, real_data: Path, tmp_path, capsys
) -> None:
    folder = real_data / "totalsegmentator"
    mask, scheme = folder / "example_seg_dicom.nii.gz", "totalsegmentator_v2"
    table, answer = predict(
        exported_model, tmp_path, folder / "dicom", mask, scheme, "--device", "GE Lunar"
    )
    assert list(table["level"]) == ["T11", "T12"]
    assert table["truncated"].all()
    assert answer["patient"]["osteoporosis_pred"] is None
    assert "undecided" in answer["patient"]["text"]
    assert "Caution: contrast agent suspected" in answer["patient"]["text"]
    # The series' own identifiers stay in it.
    written = (tmp_path / "prediction.json").read_text() + (
        tmp_path / "predictions.csv"
    ).read_text()
    assert "1.3.12.2.1107" not in written
    # Whoever de-identified it left no study for a result to belong to.
    asked = ("--mask", str(mask), "--label-scheme", scheme, "--dicom-out")
    assert run(exported_model, tmp_path, folder / "dicom", *asked) == 1
    assert "name no study" in capsys.readouterr().err


def test_lumbar_sample_in_another_orientation(
    exported_model: Path, real_data: Path, tmp_path
) -> None:
    folder = real_data / "tptbox"
    table, answer = predict(
        exported_model, tmp_path, folder / "sub-ct_label-22_ct.nii.gz",
        folder / "sub-ct_seg-vert_label-22_msk.nii.gz", "verse", "--device", "medix",
    )  # fmt: skip
    assert list(table["level"]) == ["L2", "L3", "L4"]
    assert not table.set_index("level").loc["L3", "truncated"]
    assert "L2 cut by the border" in answer["patient"]["caution"]
    assert "contrast_unknown" not in answer["patient"]["flags"]  # a remark, no doubt
    assert any("could not be checked" in note for note in answer["patient"]["notes"])


def test_a_mask_beside_the_bone_is_said_in_the_headline(
    exported_model: Path, real_data: Path, tmp_path
) -> None:
    folder = real_data / "tptbox"
    mask = sitk.ReadImage(str(folder / "sub-ct_seg-vert_label-22_msk.nii.gz"))
    values = np.roll(sitk.GetArrayFromImage(mask), 6, axis=0)  # 9 mm from left to right
    moved = sitk.GetImageFromArray(values)
    moved.CopyInformation(mask)
    sitk.WriteImage(moved, str(tmp_path / "moved.nii.gz"))
    ct = folder / "sub-ct_label-22_ct.nii.gz"
    _, answer = predict(exported_model, tmp_path, ct, tmp_path / "moved.nii.gz", "verse")
    assert "the mask is shifted: its surface lies" in answer["patient"]["caution"]
    assert "mask_fit" in answer["patient"]["flags"]


def test_what_is_unlike_training_is_said(
    exported_model: Path, scans: Path, tmp_path, monkeypatch, capsys
) -> None:
    features = len(
        ExportedModel(exported_model).predict(np.zeros((1, 16, 16, 16)), 0)["embedding"][0]
    )
    far = {
        "mean": np.full(features, 1e3, np.float32),
        "whitening": np.eye(features, dtype=np.float32),
        "quantiles": np.linspace(0, 2, 101, dtype=np.float32),
    }
    original = ExportedModel.__init__

    def with_statistics(self, directory) -> None:
        original(self, directory)
        self.ood = far

    monkeypatch.setattr(ExportedModel, "__init__", with_statistics)
    table, answer = predict(
        exported_model, tmp_path, scans.parent / "s2_ct.nii.gz", scans.parent / "s2_mask.nii.gz",
        "verse",
    )  # fmt: skip
    assert list(table["ood_percentile"]) == [100.0, 100.0]
    assert (table["ood_distance"] > 500).all()
    assert "Caution: L2, L3 unlike the training data" in answer["patient"]["text"]
    assert "unlike_training" in answer["patient"]["flags"]
    assert "Caution: L2, L3 unlike the training data" in capsys.readouterr().out.replace("\n", " ")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of three phantoms and three rows that cannot be predicted on."""
    folder = tmp_path_factory.mktemp("scans")
    rows = []
    for i, levels in enumerate([("L1", "L2", "L3"), ("T12",), ("L2", "L3")]):
        row = write_scan(folder, f"s{i}", spine(levels, 3.0, seed=i, bone_hu=100.0 + 60 * i))
        rows.append({"scan_id": f"s/{i}", "ct": row["ct"], "mask": row["mask"]})
    rows[0] |= {"device": "GE Lunar", "fracture": "yes"}
    rows[1] |= {"device": "hologic", "label_scheme": "verse"}
    rows += [
        {"scan_id": "absent", "ct": "absent.nii.gz", "mask": "s0_mask.nii.gz"},
        {"scan_id": "no mask", "ct": "s0_ct.nii.gz"},
        {"scan_id": "device", "ct": "s0_ct.nii.gz", "mask": "s0_mask.nii.gz", "device": "norland"},
    ]
    return write_table(folder / "scans.csv", rows)


@pytest.fixture(scope="module")
def many(exported_model: Path, scans: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("many") / "out"
    assert run(exported_model, out, scans) == 1
    return out


def test_a_table_of_scans(exported_model: Path, scans: Path, many: Path, tmp_path) -> None:
    table = pd.read_csv(many / "predictions.csv")
    assert list(table["scan_id"].unique()) == ["s/0", "s/1", "s/2"]  # the table's order
    assert list(table.groupby("scan_id").size()) == [3, 1, 2]
    assert list(table.groupby("scan_id")["device"].first()) == ["ge_lunar", "hologic", "unknown"]
    patients = pd.read_csv(many / "patients.csv", dtype=str).set_index("scan_id")
    assert patients.loc["s/0", "osteoporosis_pred"] in ("0", "1")
    assert "fracture, says the table" in patients.loc["s/0", "caution"]
    assert pd.isna(patients.loc["s/1", "osteoporosis_pred"])  # T12 only
    for scan in ("s/0", "s/1", "s/2"):
        folder = many / folder_name(scan)
        assert json.loads((folder / "prediction.json").read_text())["case"] == scan
        assert (folder / "prediction.png").stat().st_size > 10_000
    # The same vertebrae alone give the same numbers: batches do not mix patients.
    alone, _ = predict(
        exported_model, tmp_path, scans.parent / "s2_ct.nii.gz", scans.parent / "s2_mask.nii.gz",
        "verse",
    )  # fmt: skip
    together = table[table["scan_id"] == "s/2"].reset_index(drop=True)
    columns = ["probability", "bmd_pred_g_cm2", "bmd_low", "bmd_high", "expert_1", "core_hu"]
    np.testing.assert_allclose(
        together[columns].to_numpy(float), alone[columns].to_numpy(float), rtol=1e-5, atol=1e-6
    )


def test_the_index_page_has_every_scan_and_every_failure(many: Path) -> None:
    page = Tables((many / "index.html").read_text(encoding="utf-8"))
    patients = pd.read_csv(many / "patients.csv", dtype=str, keep_default_na=False)
    scans, failed = page.tables
    names, *rows = [[text for _, text in row] for row in scans]
    shown = pd.DataFrame(rows, columns=names)
    assert list(shown["scan"]) == list(patients["scan_id"])
    assert list(shown["caution"]) == list(patients["caution"])
    words = {"": "undecided", "1": "suspected", "0": "not suspected"}
    assert list(shown["osteoporosis"]) == [words[v] for v in patients["osteoporosis_pred"]]
    decided = patients["probability"] != ""
    np.testing.assert_allclose(
        shown["probability"][decided].astype(float), patients["probability"][decided].astype(float),
        atol=5e-4,
    )  # fmt: skip
    vertebrae = pd.read_csv(many / "predictions.csv")
    mean = vertebrae[vertebrae["decides"]].groupby("scan_id")["bmd_pred_g_cm2"].mean()
    assert shown.set_index("scan")["BMD, g/cm2"]["s/0"] == f"{mean['s/0']:.3f}"
    for row in scans[1:]:  # what is sorted by is what is shown
        assert [attributes["data-value"] for attributes, _ in row] == [text for _, text in row]
    assert len(page.links) == 3
    assert all((many / unquote(link)).is_file() for link in page.links)
    assert sorted(row[0][1] for row in failed[1:]) == ["absent", "device", "no mask"]


def test_an_index_page_holds_what_users_type_as_text() -> None:
    name = '<script>alert("1")</script>'
    patient = {
        "osteoporosis_pred": None, "probability": None, "threshold_patient": 0.5, "caution": "",
        "notes": [],
    }  # fmt: skip
    content = {"case": name, "device": "unknown", "patient": patient, "vertebrae": []}
    page = scans_page.render([content], ["a b/prediction.png"], [(name, "why", "do")])
    assert name not in page
    read = Tables(page)
    assert [table[1][0][1] for table in read.tables] == [name, name]
    assert read.links == ["a%20b/prediction.png"]
    assert "://" not in page  # nothing is fetched


def test_rows_that_fail_are_listed_with_a_remedy(many: Path) -> None:
    failures = pd.read_csv(many / "failures.csv").set_index("case")
    assert set(failures.index) == {"absent", "no mask", "device"}
    assert "does not exist" in failures.loc["absent", "reason"]
    assert "TotalSegmentator -i" in failures.loc["no mask", "remedy"]
    assert "hologic, ge_lunar, medix, unknown" in failures.loc["device", "remedy"]
    assert not (many / "absent").exists()


def test_a_rerun_redoes_nothing_but_what_changed(
    exported_model: Path, scans: Path, many: Path, monkeypatch, capsys
) -> None:
    before = {path: path.stat().st_mtime_ns for path in many.glob("*/prediction.json")}
    assert len(before) == 3

    def untouched(*_):
        raise AssertionError("a finished case was predicted again")

    with monkeypatch.context() as patched:
        patched.setattr(ExportedModel, "predict", untouched)
        assert run(exported_model, many, scans) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "3 failures" in capsys.readouterr().err
    # A killed run may leave an answer half-written: it is made again, the others are not.
    damaged = many / folder_name("s/1") / "prediction.json"
    damaged.write_text('{"case": "s/1"')
    assert run(exported_model, many, scans) == 1
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert changed == [damaged]
    assert len(pd.read_csv(many / "predictions.csv")) == 6


def test_a_table_that_says_too_little(exported_model: Path, tmp_path, capsys) -> None:
    table = write_table(tmp_path / "t.csv", [{"scan_id": "a", "ct": "a.nii.gz"}])
    assert run(exported_model, tmp_path / "o", table) == 1
    assert "no column mask" in capsys.readouterr().err
    assert run(exported_model, tmp_path / "o", table, "--mask", "m.nii.gz") == 1
    assert "masks are its column" in capsys.readouterr().err


def test_what_cannot_be_read_is_one_line(exported_model: Path, tmp_path, capsys) -> None:
    ct = tmp_path / "ct.nii.gz"
    ct.write_bytes(b"not an image")
    assert run(exported_model, tmp_path / "o", ct, "--mask", "m") == 1
    assert "\n" not in capsys.readouterr().err.strip()
    assert run(exported_model, tmp_path / "o", ct, "--mask", "m", "--device", "norland") == 1
    assert "hologic, ge_lunar, medix, unknown" in capsys.readouterr().err
    assert run(exported_model, tmp_path / "o", ct) == 1
    message = capsys.readouterr().err
    assert f"TotalSegmentator -i {ct}" in message
    assert "--segment" in message


@pytest.mark.parametrize(
    ("name", "plain"),
    [("A-01_b.c", True), ("a/b", False), ("../../etc", False), (".hidden", False), ("..", False),
     ("x" * 300, False), ("ä ö", False)],
)  # fmt: skip
def test_folders_of_scans_stay_inside_out(name: str, plain: bool, tmp_path: Path) -> None:
    folder = folder_name(name)
    assert (folder == name) is plain
    assert (tmp_path / folder).resolve().parent == tmp_path.resolve()
    assert len(folder) < 120


def test_like_names_get_different_folders() -> None:
    assert len({folder_name(name) for name in ("a b", "a_b", "a/b", "a  b")}) == 4


def deciding(probabilities: dict[str, float]) -> pd.DataFrame:
    table = pd.DataFrame({"level": list(probabilities), "probability": probabilities.values()})
    return table.assign(decides=table["level"].isin(["L1", "L2", "L3", "L4"]))


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [({"L1": 0.2, "L5": 0.99}, False), ({"L1": 0.2, "L3": 0.5}, True), ({"T12": 0.9}, None)],
)
def test_a_patient_is_decided_on_l1_to_l4(exported_model, probabilities, expected) -> None:
    model, table = ExportedModel(exported_model), deciding(probabilities)
    model.card["fitted"] = None  # 0.5
    answer = decide(model, table, "hologic", [[] for _ in probabilities], [])
    assert answer["osteoporosis_pred"] is expected
    assert answer["caution"] == ""
    assert answer["text"] == f"{answer['verdict']}."


def test_every_doubt_is_in_the_answer(exported_model) -> None:
    flags = [
        [Flag("unlike_training", "unlike the training data (farther than all of validation)")],
        [Flag("truncated", "cut by the border of the CT"), Flag("header_axes", "axes")],
        [Flag("metal", "metal beside L5")],
    ]
    table = deciding({"L1": 0.2, "L2": 0.3, "L5": 0.9})
    case = [Flag("contrast", "contrast agent suspected (vessels 150 HU)")]
    answer = decide(ExportedModel(exported_model), table, "hologic", flags, case)
    assert answer["caution"] == (
        "L1 unlike the training data; contrast agent suspected (vessels 150 HU); "
        "L2 cut by the border of the CT"
    )
    assert answer["text"].endswith(f"Caution: {answer['caution']}.")
    assert answer["flags"] == ["contrast", "truncated", "unlike_training"]  # L5 decides nothing


def test_flags_fit_into_dicom_codes() -> None:
    assert all(len(name) <= 16 and len(meaning) <= 64 for name, meaning in MEANINGS.items())


def _one_or_die(number: int) -> int | CaseError:
    import os

    if number == 2:
        os._exit(11)  # as a damaged header may end ITK
    return CaseError("c", "reason", "remedy") if number == 3 else number


@pytest.mark.slow
def test_a_reader_that_dies_costs_its_own_case_only() -> None:
    from collections import deque

    tasks = deque(Task(str(n), _one_or_die, (n,)) for n in range(6))
    with worker_pool.start(2) as place:
        results = {task.name: result for task, result in run_tasks(tasks, Crew(place))}
    assert isinstance(results.pop("2"), WorkerDied)
    error = results.pop("3")
    assert (error.case, error.reason, error.remedy) == ("c", "reason", "remedy")
    assert results == {"0": 0, "1": 1, "4": 4, "5": 5}


@pytest.mark.slow
def test_processes_read_and_write_as_this_one_does(
    exported_model: Path, scans: Path, many: Path, tmp_path
) -> None:
    assert run(exported_model, tmp_path, scans, "--workers", "2") == 1
    for name in ("predictions.csv", "patients.csv"):
        assert (tmp_path / name).read_bytes() == (many / name).read_bytes()
    assert set(pd.read_csv(tmp_path / "failures.csv")["case"]) == {"absent", "no mask", "device"}
