"""Names in configs find modules, ours and other people's, and mistakes say what to write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from osteojax.choices import choices, chosen_module
from osteojax.errors import UserError

PACKAGE = "osteojax.objectives"


def chosen(name: str):
    return chosen_module("objective.name", name, PACKAGE)


def test_what_has_build_is_a_choice_and_nothing_is_imported() -> None:
    script = (
        "import sys; from osteojax.choices import choices\n"
        f"found = choices({PACKAGE!r})\n"
        "assert 'swav' in found and 'embedding' not in found, found\n"
        "assert 'jax' not in sys.modules and 'osteojax.objectives.swav' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


def test_plain_and_dotted_names() -> None:
    assert chosen("swav").__name__ == "osteojax.objectives.swav"
    assert chosen("osteojax.objectives.swav") is chosen("swav")
    assert chosen_module("x", "osteojax.types", PACKAGE, "TrainState").__name__ == "osteojax.types"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swaw", r"objective.name is 'swaw'; choose one of multitask.*, swav"),
        ("embedding", "choose one of"),  # ours, and no objective
        ("../swav", "choose one of"),
        (".swav", "choose one of"),
        ("mylab.method", "no module mylab. Install it, or put the folder"),
        ("tests.no_such", r"no module tests\.no_such"),
        ("tests.small_runs", r"small_runs\.py defines no 'build'"),
    ],
)
def test_mistakes(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        chosen(name)
    assert "\n" not in str(error.value)


def test_a_module_that_misses_something_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "method.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        chosen("lab.method")


def test_the_choices_of_a_package() -> None:
    assert {"swav", "multitask"} <= set(choices(PACKAGE))
