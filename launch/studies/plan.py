"""The plan of a study: cohorts, pre-trainings, rows, and contrasts that are fixed before it runs.

A file of configs/studies/ has `get_study(variant) -> Study`. It is committed before the first run
and contains simulator options, expected signs and the smallest differences that matter. Choices are
tuned on a cohort seed and a training seed that are not reported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from launch.configs import given_or_shipped
from osteojax.errors import UserError
from osteojax.evaluation.statistics.metrics import DIAGNOSIS

Settings = Mapping[str, Any]
"""Dotted fields of a training config and their values: {"optim.learning_rate": 1e-3}."""

CEILINGS = ("oracle", "glcm", "hu", "hu_age")
TOLD = ("own", "unknown", "wrong")
UNITS = ("vertebra", "patient")
METRICS = (*DIAGNOSIS, "MAE")


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A cohort to simulate and prepare.

    Attributes:
      simulate: options of `osteojax simulate`, without --out, --seed and --workers.
      prepare: options of `osteojax prepare`, without --cohort, --dxa, --out and --workers.
      seed: of the cohort. Cohorts with equal `simulate` and seed are rendered once.
      splits_of: another cohort from which every patient's split is taken, so that rows on both
        compare the same people.
      hold_out_device: patients with a result of this DXA scanner become external, whatever their
        site.
    """

    simulate: str
    prepare: str
    seed: int
    splits_of: str = ""
    hold_out_device: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table, given by its differences from the study's fine-tuning config.

    Attributes:
      name: in the table.
      cohort: of `Study.cohorts`.
      pretrain: of `Study.pretrainings`; empty trains from scratch.
      pretrained_on: cohort of the pre-training; empty is the row's own. It must have the same
        splits.
      settings: of the fine-tuning config.
      tune: alternatives; the best on the tuning cohort's validation split is taken.
      like: another row whose models this row evaluates, instead of training.
      told: DXA scanner that the model is given at test: "own", "unknown" or "wrong" (the next one
        of the manifest). Thresholds are those of the model that is given its own.
      swap: whether to predict with every scanner, for the device-swap table.
      ceiling: a logistic model instead of a network: on the truth (oracle), on mean GLCM features
        of the vertebra (glcm), on mean HU (hu), on mean HU and age (hu_age).
      note: place in the paper, or purpose as a control.
    """

    name: str
    cohort: str = "main"
    pretrain: str = ""
    pretrained_on: str = ""
    settings: Settings = dataclasses.field(default_factory=dict)
    tune: tuple[Settings, ...] = ()
    like: str = ""
    told: str = "own"
    swap: bool = False
    ceiling: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A difference between two rows of one cohort that was named before the run.

    Attributes:
      first, second: rows; the difference is first - second.
      metric: of `METRICS`.
      expected: +1 or -1, the sign of the difference; 0 if there should be none that matters.
      matters: the smallest difference that matters, in the metric's unit.
      unit: vertebra or patient (any vertebra positive).
      group: internal, external, or a site of the internal split.
    """

    first: str
    second: str
    metric: str
    expected: int
    matters: float
    unit: str = "vertebra"
    group: str = "internal"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
      name: of the table.
      size: description of cohorts, network and steps, repeated in the table.
      cohorts: by name.
      pretrain_config, finetune_config: files of configs/, with their variant.
      pretrain_settings, finetune_settings: changes to these configs in every run.
      pretrainings: name -> further changes to the pre-training config.
      rows, contrasts: in the order of the table.
      seeds: training seeds that are reported.
      tuning_cohort, tuning_seed: for choosing among alternatives; neither is reported.
      resamples: of the bootstrap over patients and seeds, for the intervals of rows.
      contrast_resamples: the same for contrasts, whose p is at least 2 / (contrast_resamples + 1)
        and is multiplied by up to the number of contrasts (Holm): 10,000 leave room for 100.
    """

    name: str
    size: str
    cohorts: Mapping[str, Cohort]
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    pretrain_config: str
    finetune_config: str
    pretrain_settings: Settings = dataclasses.field(default_factory=dict)
    finetune_settings: Settings = dataclasses.field(default_factory=dict)
    pretrainings: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_cohort: str = "tuning"
    tuning_seed: int = 100
    resamples: int = 1000
    contrast_resamples: int = 10_000

    @property
    def smallest_p(self) -> float:
        """The smallest p that a contrast can have after Holm's correction over all of them."""
        return min(1.0, 2 * len(self.contrasts) / (self.contrast_resamples + 1))

    def row(self, name: str) -> Row:
        """The row of that name. Raises UserError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(
            f"study {self.name}: no row {name!r}; its rows are "
            f"{'; '.join(repr(row.name) for row in self.rows)}."
        )

    def trained(self, row: Row) -> Row:
        """The row whose models `row` evaluates: `row` itself, or the row that it is like."""
        return self.row(row.like) if row.like else row

    def trains_bmd(self, row: Row) -> bool:
        """Whether a row's BMD is valid: its head is trained, or it is a ceiling's regression."""
        settings = {**self.finetune_settings, **self.trained(row).settings}
        return bool(row.ceiling) or settings.get("objective.bmd_weight") != 0.0

    def check(self) -> None:
        """Raises UserError for a name that does not exist or an invalid value."""
        check(self)

    def tells_devices(self, row: Row) -> bool:
        """Whether a row's models are also evaluated with other DXA scanners."""
        return row.swap or any(r.like == row.name and r.told != "own" for r in self.rows)


def load_study(path: str) -> Any:
    """The study of FILE.py or FILE.py:variant, checked: a `Study`, or a
    `launch.readouts.plan.ReadoutStudy`. Raises UserError."""
    file, _, variant = path.partition(":")
    place = given_or_shipped(file)
    if not place.is_file():
        raise UserError(f"{file}: no such file. The studies are in configs/studies/.")
    spec = importlib.util.spec_from_file_location(place.stem, place)
    if spec is None or spec.loader is None:
        raise UserError(f"{file}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_study"):
        raise UserError(f"{file}: has no get_study(variant); it is not a study.")
    try:
        study = module.get_study(variant)
    except ValueError as error:
        raise UserError(str(error)) from error
    study.check()
    return study


def check(study: Study) -> None:
    """Raises UserError for a name that does not exist or an invalid value."""
    names = [row.name for row in study.rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        _refuse(study, f"two rows are called {twice[0]!r}")
    for cohort in study.cohorts.values():
        if cohort.splits_of:
            _known(study, "cohort", cohort.splits_of, study.cohorts)
    for row in study.rows:
        _check_row(study, row)
    for contrast in study.contrasts:
        first, second = study.row(contrast.first), study.row(contrast.second)
        pair = f"contrast {contrast.first!r} - {contrast.second!r}"
        if study.trained(first).cohort != study.trained(second).cohort:
            _refuse(study, f"{pair}: the rows are of two cohorts")
        _known(study, f"{pair}: metric", contrast.metric, METRICS)
        _known(study, f"{pair}: unit", contrast.unit, UNITS)
        if contrast.metric == "MAE" and contrast.unit != "vertebra":
            _refuse(study, f"{pair}: MAE is of vertebrae")
        if contrast.metric == "MAE" and not (study.trains_bmd(first) and study.trains_bmd(second)):
            _refuse(study, f"{pair}: one of them does not train its BMD head")
        if contrast.expected not in (-1, 0, 1) or contrast.matters <= 0:
            _refuse(study, f"{pair}: expected is -1, 0 or 1 and matters above 0")


def _check_row(study: Study, row: Row) -> None:
    _known(study, f"row {row.name!r}: told", row.told, TOLD)
    if row.like:
        base = study.row(row.like)
        if base.like or base.ceiling:
            _refuse(study, f"row {row.name!r} is like {row.like!r}, which trains nothing")
        return
    if row.told != "own":
        _refuse(study, f"row {row.name!r}: told another device, but not like a trained row")
    _known(study, f"row {row.name!r}: cohort", row.cohort, study.cohorts)
    if row.ceiling:
        _known(study, f"row {row.name!r}: ceiling", row.ceiling, CEILINGS)
    if row.pretrain:
        _known(study, f"row {row.name!r}: pre-training", row.pretrain, study.pretrainings)
    if row.pretrained_on:
        _known(study, f"row {row.name!r}: pretrained_on", row.pretrained_on, study.cohorts)
        if study.cohorts[row.cohort].splits_of != row.pretrained_on:
            _refuse(
                study,
                f"row {row.name!r} is pre-trained on {row.pretrained_on!r}, but cohort "
                f"{row.cohort!r} has splits of its own: patients could leak",
            )
    if row.tune:
        _known(study, f"row {row.name!r}: tuning cohort", study.tuning_cohort, study.cohorts)
        reported = {study.cohorts[r.cohort].seed for r in study.rows if not r.like}
        if study.cohorts[study.tuning_cohort].seed in reported:
            _refuse(study, f"the tuning cohort has the seed {reported} of a reported one")
        if study.tuning_seed in study.seeds:
            _refuse(study, f"tuning_seed {study.tuning_seed} is one of the reported seeds")


def _known(study: Study, what: str, name: str, choices: Any) -> None:
    if name not in choices:
        _refuse(study, f"{what} {name!r}; choose one of {', '.join(map(str, choices))}")


def _refuse(study: Study, what: str) -> None:
    raise UserError(f"study {study.name}: {what}.")


def with_settings(config: ConfigDict, settings: Settings, what: str) -> ConfigDict:
    """A copy of the config with dotted fields set, types and names checked. Raises UserError."""
    changed = config.copy_and_resolve_references()
    for name, value in settings.items():
        *path, field = name.split(".")
        place = changed
        for part in path:
            if not isinstance(place, ConfigDict) or part not in place:
                raise UserError(f"{what}: the config has no {name}.")
            place = place[part]
        if not isinstance(place, ConfigDict) or field not in place:
            raise UserError(f"{what}: the config has no {name}.")
        try:
            place[field] = value
        except TypeError as error:
            raise UserError(f"{what}: {name} = {value!r}: {error}.") from error
    return changed.lock()
