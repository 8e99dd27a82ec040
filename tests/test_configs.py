"""Shipped configs: in the variant "paper" the values of 0.1 but for those named here; what the
default changes of it; and every field can be set."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
from ml_collections import ConfigDict

from osteojax.models import build_backbone, resnet
from tests.small_runs import CONFIGS, load_config
from tests.stored import STORED

# Written by 0.1.0: {"FILE" or "FILE:smoke": every field of the config}.
WRITTEN = json.loads((STORED / "configs-0.1.0.json").read_text(encoding="utf-8"))

CHANGED: dict[str, dict[str, object]] = {
    "moe_multitask_resnet34:smoke": {
        "model.stage_sizes": [2, 2, 2, 2],
        "optim.train_epochs": 20.0,
        "optim.warmup_epochs": 2.0,
        "optim.eval_epochs": 5.0,
        "optim.save_epochs": 5.0,
    },
    "tp_swav_resnet34": {"objective.sinkhorn_epsilon": 0.02},
    "tp_swav_resnet34:smoke": {
        "model.stage_sizes": [2, 2, 2, 2],
        "objective.num_prototypes": 64,
        "objective.queue_size": 0,
        "objective.sinkhorn_epsilon": 0.02,
    },
}
"""File -> fields of 0.1 that a later version ships with another value. 0.1's value can still be
set, and stored configs keep theirs."""

OF_PAIRS: dict[str, object] = {
    "checkpoint.best_metric": ("label_probe_auroc", "step"),
    "data.pairs": ("uniform", "cross_group"),
    "data.statistics": ("box", "body"),
    "data.views.region": ("box", "body"),
}
BEYOND_THE_PAPER: dict[str, dict[str, object]] = {
    "moe_multitask_resnet34": {
        "data.sees": ("vertebra", "both"),
        "data.statistics": ("box", "body"),
    },
    "simclr_resnet34": OF_PAIRS,
    "tp_swav_resnet34": OF_PAIRS,
    "vicreg_resnet34": OF_PAIRS,
}
"""File -> fields in which the default differs from the paper's variant: (paper, default)."""

NAMES = sorted(path.stem for path in CONFIGS.glob("*_*.py") if path.stem != "__init__")


def fields(config: dict, prefix: str = "--config") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in config.items():
        inner = fields(value, f"{prefix}.{name}") if isinstance(value, dict) else None
        found |= {f"{prefix}.{name}": value} if inner is None else inner
    return found


@pytest.mark.parametrize("name", WRITTEN)
def test_configs_of_0_1_have_its_fields_and_values_but_for_named_changes(name: str) -> None:
    file, _, variant = name.partition(":")
    parts = ",".join(filter(None, ("paper", variant)))
    config = importlib.import_module(f"configs.{file}").get_config(parts)
    found, written = fields(json.loads(config.to_json()), ""), fields(WRITTEN[name], "")
    assert written.keys() <= found.keys()
    changed = {field[1:]: found[field] for field in written if found[field] != written[field]}
    assert changed == CHANGED.get(name, {})
    assert isinstance(config.model.stage_sizes, tuple)


@pytest.mark.parametrize("smoke", ["", "smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_the_default_differs_from_the_paper_in_named_fields(name: str, smoke: str) -> None:
    get_config = importlib.import_module(f"configs.{name}").get_config
    default, paper = (fields(get_config(f"{v}{smoke}").to_dict(), "") for v in ("", "paper,"))
    assert default.keys() == paper.keys()
    changed = {f[1:]: (paper[f], default[f]) for f in paper if paper[f] != default[f]}
    assert changed == BEYOND_THE_PAPER[name]
    assert fields(get_config(f"body,{smoke}").to_dict(), "") == default


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_writes_every_field_of_its_network(name: str) -> None:
    """So that a workdir says in full what was trained, whatever a later version's defaults are."""
    model = importlib.import_module(f"configs.{name}").get_config().model
    known = {field.name for field in dataclasses.fields(resnet.ResNet)}
    known -= {"parent", "name", "axis_name", "lowering"}  # of the run, and of the machine
    assert set(model) == known | {"name"}
    assert model.shortcut == "average"


@pytest.mark.parametrize("name", WRITTEN)
def test_a_config_of_0_1_builds_the_network_of_0_1(name: str) -> None:
    model = ConfigDict(WRITTEN[name]["model"])
    assert not {"shortcut", "stem_window", "stem_stride", "max_pool", "block_scale"} & set(model)
    assert build_backbone(model, None) == resnet.ResNet(
        (3, 4, 6, 3), model.width, shortcut="strided", stem_window=7, stem_stride=2, max_pool=True,
        block_scale=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_a_shipped_config_can_be_set(name: str) -> None:
    path = str(CONFIGS / f"{name}.py")
    unset = {"ema_decay": 0.5, "init_from": "elsewhere"}

    def another(field: str, value: object) -> object:
        if value is None:
            return unset.get(field.rpartition(".")[2], 7)
        if isinstance(value, bool):
            return not value
        if isinstance(value, str):
            return value + "x"
        return (1, 2) if isinstance(value, tuple) else value + 1

    before = load_config(path, [])
    wanted = {field: another(field, value) for field, value in fields(before.to_dict()).items()}
    after = load_config(path, [f"{field}={value}" for field, value in wanted.items()])
    assert fields(after.to_dict()) == wanted
    assert load_config(path, []).to_json() == before.to_json()
