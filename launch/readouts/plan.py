"""The plan of a study of frozen readouts: encoders, rows, contrasts that are fixed before it runs.

An encoder is a network, pre-trained or as initialised. A row fits linear models on the embeddings
of a cohort's training patients and is scored on its test patients ("held") and on all patients of a
second cohort, which no choice ever saw ("new"). A file of configs/studies/ has
`get_study(variant) -> ReadoutStudy`, beside those of `launch.studies.plan`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from launch.studies.folders import slug
from launch.studies.plan import Cohort, Settings
from osteojax.errors import UserError

METRICS = ("r", "AUROC", "MAE", "r_number")
"""Pearson's r of log trabecular spacing; AUROC of the label; mean absolute error of BMD; and
Pearson's r of the texture number, the target of the probe that needs no truth (docs/data.md)."""

GROUPS = ("held", "new")
CEILINGS = ("truth", "numbers", "maps", "glcm", "hu")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network whose embeddings are read.

    Attributes:
      config: a pre-training config of configs/, with its variant.
      settings: changes to it.
      trained: False takes the network as initialised, with running statistics of its images.
      cohort: of `ReadoutStudy.cohorts`; its training patients pre-train the encoder.
      tune: alternatives. Each is pre-trained with the tuning seed, and the one whose readout of
        spacing has the highest r on the cohort's validation patients is taken.
    """

    config: str
    settings: Settings = dataclasses.field(default_factory=dict)
    trained: bool = True
    cohort: str = "main"
    tune: tuple[Settings, ...] = ()


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How rows are fine-tuned.

    Attributes:
      config: configs/studies/fine_tuning.py, or one with its fields.
      settings: changes to it; the network must be the encoder's.
    """

    config: str
    settings: Settings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Readout:
    """One row of the table: what a linear model is given, and whom it is fitted and scored on.

    Attributes:
      name: in the table.
      part: heading of its table. Rows are made in the order of their parts.
      encoder: of `ReadoutStudy.encoders`; empty for a ceiling.
      numbers: whether the 11 plain numbers of the body join the embedding.
      ceiling: a reference without a network: the true spacing and anisotropy (truth), the plain
        numbers of the body (numbers), means of the texture maps in the body (maps), PyRadiomics'
        GLCM features of the body (glcm), mean HU (hu).
      cohort: its training patients fit the readout, its test patients are "held".
      new: the second cohort, all of whose vertebrae are scored; empty for none.
      few: whether the readout is also fitted on few patients (`ReadoutStudy.few`).
      fine_tuning: of `ReadoutStudy.fine_tunings`; empty for a frozen readout. The whole network is
        trained on the patients that a readout would be fitted on, from the encoder, or from scratch
        if that is untrained. The label and BMD are the model's own answers, spacing is read from
        its embedding.
      shuffled: a control: truths are shuffled over the training vertebrae.
      seeds: how many of the study's seeds it takes.
    """

    name: str
    part: str
    encoder: str = ""
    numbers: bool = False
    ceiling: str = ""
    cohort: str = "main"
    new: str = "new"
    few: bool = False
    fine_tuning: str = ""
    shuffled: bool = False
    seeds: int = 2


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A difference between two rows that was named before the run.

    Attributes:
      first, second: rows; the difference is first - second.
      metric: of `METRICS`.
      expected: +1 or -1, the sign of the difference; 0 if there should be none that matters.
      matters: the smallest difference that matters, in the metric's unit.
      group: held or new.
      primary: whether it is one of the questions that the study was made for. Holm's correction is
        over the primary contrasts, and over all others apart from them.
      patients: how many patients fit the readouts; 0 is all.
    """

    first: str
    second: str
    metric: str = "r"
    expected: int = 1
    matters: float = 0.05
    group: str = "new"
    primary: bool = False
    patients: int = 0


@dataclasses.dataclass(frozen=True)
class ReadoutStudy:
    """A study of frozen readouts.

    Attributes:
      name: of the table.
      size: description of cohorts, networks and steps, repeated in the table.
      cohorts: by name.
      encoders: by name.
      rows, contrasts: in the order of the tables.
      fine_tunings: by name.
      seeds: training seeds that are reported; rows take the first of them.
      tuning_seed: training seed for choosing among `Encoder.tune`; not reported.
      few: numbers of training patients for rows with `few`.
      resamples, contrast_resamples: of the bootstrap over patients and seeds, for the intervals of
        rows and for contrasts (`launch.studies.plan.Study`).
    """

    name: str
    size: str
    cohorts: Mapping[str, Cohort]
    encoders: Mapping[str, Encoder]
    rows: tuple[Readout, ...]
    contrasts: tuple[Contrast, ...]
    fine_tunings: Mapping[str, FineTuning] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seed: int = 100
    few: tuple[int, ...] = (12, 36)
    resamples: int = 1000
    contrast_resamples: int = 10_000

    def row(self, name: str) -> Readout:
        """The row of that name. Raises UserError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(
            f"study {self.name}: no row {name!r}; its rows are "
            f"{'; '.join(repr(row.name) for row in self.rows)}."
        )

    @property
    def parts(self) -> list[str]:
        """The parts in the order of their first rows."""
        return list(dict.fromkeys(row.part for row in self.rows))

    @property
    def questioned(self) -> list[Readout]:
        """Rows of primary contrasts, and ceilings of the same cohorts."""
        named = {name for c in self.contrasts if c.primary for name in (c.first, c.second)}
        people = {(row.cohort, row.new) for row in self.rows if row.name in named}
        return [
            row
            for row in self.rows
            if row.name in named or (row.ceiling and (row.cohort, row.new) in people)
        ]

    def chosen(self, words: list[str]) -> list[Readout]:
        """The rows that some words name: a row's name or folder, or a part with all of its rows;
        all rows for no words. Raises UserError."""
        if not words:
            return list(self.rows)
        folders = {slug(row.name): row.name for row in self.rows}
        found: list[Readout] = []
        for word in words:
            of_part = [row for row in self.rows if word in (row.part, slug(row.part))]
            found += of_part or [self.row(folders.get(word, word))]
        return list(dict.fromkeys(found))

    def seeds_of(self, row: Readout) -> tuple[int, ...]:
        """The row's seeds. A ceiling is not random, so it has one."""
        return self.seeds[: 1 if row.ceiling else row.seeds]

    def check(self) -> None:
        """Raises UserError for a name that does not exist or an invalid value."""
        for what, names in (("rows", [row.name for row in self.rows]), ("parts", self.parts)):
            slugs = [slug(name) for name in names]
            if len(set(slugs)) < len(slugs):
                self._refuse(f"two {what} have one name or one folder")
        for name, encoder in self.encoders.items():
            self._known(f"encoder {name!r}: cohort", encoder.cohort, self.cohorts)
            if encoder.tune and self.tuning_seed in self.seeds:
                self._refuse(f"tuning_seed {self.tuning_seed} is one of the reported seeds")
        for cohort in self.cohorts.values():
            if cohort.splits_of:
                self._known("splits_of", cohort.splits_of, self.cohorts)
        for row in self.rows:
            self._check_row(row)
        held, new = {row.cohort for row in self.rows}, {row.new for row in self.rows}
        if both := held & new:
            self._refuse(f"cohort {min(both)!r} both fits readouts and is new to them")
        for contrast in self.contrasts:
            self._check_contrast(contrast)

    def _check_row(self, row: Readout) -> None:
        self._known(f"row {row.name!r}: cohort", row.cohort, self.cohorts)
        if row.new:
            self._known(f"row {row.name!r}: new", row.new, self.cohorts)
        if bool(row.ceiling) == bool(row.encoder):
            self._refuse(f"row {row.name!r} has either an encoder or a ceiling")
        if row.ceiling:
            self._known(f"row {row.name!r}: ceiling", row.ceiling, CEILINGS)
            return
        self._known(f"row {row.name!r}: encoder", row.encoder, self.encoders)
        if not 1 <= row.seeds <= len(self.seeds):
            self._refuse(f"row {row.name!r}: {row.seeds} seeds of {len(self.seeds)}")
        if row.fine_tuning:
            self._known(f"row {row.name!r}: fine_tuning", row.fine_tuning, self.fine_tunings)
            if row.numbers or row.shuffled:
                self._refuse(f"row {row.name!r} is fine-tuned: it has no numbers and no shuffling")
        trained_on = self.encoders[row.encoder].cohort
        if trained_on not in (row.cohort, self.cohorts[row.cohort].splits_of):
            self._refuse(
                f"row {row.name!r}: its encoder is pre-trained on {trained_on!r}, but cohort "
                f"{row.cohort!r} has splits of its own: patients could leak"
            )

    def _check_contrast(self, contrast: Contrast) -> None:
        first, second = self.row(contrast.first), self.row(contrast.second)
        pair = f"contrast {contrast.first!r} - {contrast.second!r}"
        self._known(f"{pair}: metric", contrast.metric, METRICS)
        self._known(f"{pair}: group", contrast.group, GROUPS)
        names = [row.new if contrast.group == "new" else row.cohort for row in (first, second)]
        if names[0] != names[1] or not names[0]:
            self._refuse(f"{pair}: the rows are scored on two cohorts")
        if contrast.expected not in (-1, 0, 1) or contrast.matters <= 0:
            self._refuse(f"{pair}: expected is -1, 0 or 1 and matters above 0")
        few_of_both = contrast.patients in self.few and first.few and second.few
        if contrast.patients and not few_of_both:
            self._refuse(f"{pair}: one of them has no readout of {contrast.patients} patients")

    def _known(self, what: str, name: str, choices: Any) -> None:
        if name not in choices:
            self._refuse(f"{what} {name!r}; choose one of {', '.join(map(str, choices))}")

    def _refuse(self, what: str) -> None:
        raise UserError(f"study {self.name}: {what}.")
