"""Does pre-training learn texture, and what in it does? Frozen readouts of trabecular spacing.

    osteojax study configs/studies/texture_learning.py --workdir W
    osteojax study configs/studies/texture_learning.py --workdir W --rows primary-resnet34

Everything below was committed before the run whose page is benchmarks/texture_learning.md: cohorts,
rows, the expectation of each contrast and the smallest difference that matters. The recipe is that
of a trial on a cohort of another seed. Image pairs are also tuned by themselves, by the readout of
the main cohort's validation patients, who neither pre-train nor fit nor are scored. The cohort
"new" has a seed of its own, and nothing was chosen by it.

A first attempt on cohorts of seeds 31 and 32 was given up. Of it, the readouts of "start" and
"TP-SwAV" with ResNet34 and of "small: start" were seen, at training seed 0. It had a queue of 256
entries, and both pre-trainings collapsed early (1 to 3 prototypes in use at step 80, loss above its
flat value). The same small encoder without the queue did not, so the recipe has no queue now, the
queue is a row of its own, and the cohorts have other seeds.

"TP-SwAV, tuned" and its contrasts were added when seed 0 of the primary rows had been seen, in
which image pairs read spacing better than TP-SwAV: the recipe had been tuned for TP-SwAV in a copy
of the step, and image pairs in the step itself. "small: image pairs with a queue of 256" was added
then too: it asks whether the queue is why image pairs lost texture in the trial (.65 from .70),
while here they gain.

HU are matched (`--hu-signal 0`): mean HU, cortex, size, age and sex tell nothing of bone, and only
texture does. `configs/studies/texture_learning.py:fine` has the primary rows at 1 mm on two CPU
cores, `:full` at 1 mm with the paper's width and schedule, for a GPU. `:full` was not run. A step
of its network on 64 crops is at least 0.9 ms in float32 on an H200 (59.8 GFLOP of
docs/benchmarks.md, 67 TFLOP/s); at ten times that, its 18 pre-trainings of 30,000 steps take about
1 h 20 min, and simulating its 1,500 patients about 45 min of 16 cores, scaled from this study's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from configs.studies import texture_contrasts, texture_encoders
from launch.readouts.plan import Readout, ReadoutStudy
from launch.studies.plan import Cohort

MAIN_SEED, NEW_SEED, OTHER_SEED = 41, 42, 43
"""Seeds of the cohorts."""

MATCHED = "--levels T12-L5 --spacing-mm 1.5 --hu-signal 0"
PREPARE = "--size 64 --box vertebra --split-fractions 0.52,0.13,0.35"


def _cohorts() -> dict[str, Cohort]:
    few = f"--patients 60 {MATCHED}"
    return {
        "main": Cohort(f"--patients 240 {MATCHED}", PREPARE, MAIN_SEED),
        "new": Cohort(f"--patients 110 {MATCHED}", PREPARE, NEW_SEED),
        "no_texture": Cohort(f"--patients 120 {MATCHED} --texture-signal 0", PREPARE, MAIN_SEED),
        "with_hu": Cohort("--patients 240 --levels T12-L5 --spacing-mm 1.5", PREPARE, MAIN_SEED),
        "slices_1": Cohort(f"{few} --slice-mm 0.7", PREPARE, OTHER_SEED),
        "slices_3": Cohort(f"{few} --slice-mm 3", PREPARE, OTHER_SEED),
        "slices_5": Cohort(f"{few} --slice-mm 5", PREPARE, OTHER_SEED),
        "wide": Cohort(f"{few} --scanners wide", PREPARE, OTHER_SEED),
    }


def _primary(part: str, title: str, prefix: str) -> tuple[Readout, ...]:
    def row(name: str, encoder: str, few: bool = False) -> Readout:
        return Readout(f"{title}{name}", part, f"{prefix}{encoder}", few=few, seeds=5)

    return (
        row("start", "start", few=True),
        row("TP-SwAV", "tp_swav", few=True),
        row("image pairs", "image_pairs", few=True),
        row("image pairs, tuned", "image_pairs_tuned"),
        row("other patient's pairs", "other_patient"),
    )


def _joined(part: str) -> tuple[Readout, ...]:
    own: dict[str, Any] = {"numbers": True, "seeds": 5}
    return (
        Readout("start + numbers", part, "start", few=True, **own),
        Readout("TP-SwAV + numbers", part, "tp_swav", few=True, **own),
        Readout("small: start + numbers", part, "small_start", **own),
        Readout("small: TP-SwAV + numbers", part, "small_tp_swav", **own),
    )


def _references() -> tuple[Readout, ...]:
    part = "Ceilings"
    return (
        Readout("true spacing and anisotropy", part, ceiling="truth", few=True),
        Readout("11 numbers of the body", part, ceiling="numbers", few=True),
        Readout("means of the maps in the body", part, ceiling="maps", few=True),
        Readout("mean HU", part, ceiling="hu", few=True),
        Readout("PyRadiomics' GLCM of the body", part, ceiling="glcm", few=True),
        Readout("supervised network", part, "supervised"),
        Readout("small: supervised network", part, "small_supervised"),
        Readout("start, truths shuffled", "Controls", "start", shuffled=True, seeds=5),
        Readout("TP-SwAV, truths shuffled", "Controls", "tp_swav", shuffled=True, seeds=5),
    )


def _secondary() -> tuple[Readout, ...]:
    part = "Secondary"
    names = {
        "TP-SwAV, tuned": "tp_swav_tuned",
        "uniform pairs": "uniform",
        "one shared place": "one_place",
        "InfoNCE, image crops, no maps": "simclr",
        "VICReg, image crops, no maps": "vicreg",
        "small: InfoNCE, image crops, no maps": "small_simclr",
        "texture regression": "regression",
        "small: texture regression": "small_regression",
        "with a queue of 256": "queue",
        "small: with a queue of 256": "small_queue",
        "small: image pairs with a queue of 256": "small_image_pairs_queue",
        "with a queue of 256 from step 100": "late_queue",
        "small: with a queue of 256 from step 100": "small_late_queue",
        "0.1's assignment (epsilon 0.05, raw prototypes)": "flat",
        "z-scores of the box: start": "box_statistics_start",
        "z-scores of the box": "box_statistics",
        "strided shortcuts: start": "strided_start",
        "strided shortcuts": "strided",
        "scales one: start": "scales_one_start",
        "scales one": "scales_one",
        "small, scales zero: start": "small_scales_zero_start",
        "small, scales zero": "small_scales_zero",
        "crops of 12 mm: start": "crops_12_start",
        "crops of 12 mm": "crops_12",
        "crops of 24 mm, body share 0.95: start": "crops_24_start",
        "crops of 24 mm, body share 0.95": "crops_24",
    }
    return tuple(Readout(name, part, encoder) for name, encoder in names.items())


def _fine_tuned() -> tuple[Readout, ...]:
    """Beside the frozen readouts of 12, 36 and all patients."""
    part, own = "Label efficiency", {"few": True}
    return (
        Readout("TP-SwAV, fine-tuned", part, "tp_swav", fine_tuning="fine_tuned", **own),
        Readout("from scratch", part, "start", fine_tuning="scratch", **own),
    )


def _on_other_cohorts() -> tuple[Readout, ...]:
    """Cohorts without texture signal, and with HU that tell of bone; each pre-trains its own."""
    rows: list[Readout] = []
    for cohort, part in (("no_texture", "No texture signal"), ("with_hu", "HU not matched")):
        own = {"cohort": cohort, "new": ""}
        rows += [
            Readout(f"{part}: start", part, f"start@{cohort}", **own),
            Readout(f"{part}: TP-SwAV", part, f"tp_swav@{cohort}", **own),
            Readout(f"{part}: image pairs", part, f"image_pairs@{cohort}", **own),
            Readout(f"{part}: start + numbers", part, f"start@{cohort}", numbers=True, **own),
            Readout(f"{part}: TP-SwAV + numbers", part, f"tp_swav@{cohort}", numbers=True, **own),
            Readout(f"{part}: 11 numbers of the body", part, ceiling="numbers", **own),
            Readout(f"{part}: mean HU", part, ceiling="hu", **own),
            Readout(f"{part}: true spacing and anisotropy", part, ceiling="truth", **own),
        ]
    return tuple(rows)


def _on_other_scanners() -> tuple[Readout, ...]:
    """Readouts of the main cohort on patients of scanners that it did not have."""
    part, rows = "Other scanners", []
    for cohort, title in (
        ("slices_1", "slices of 0.7 mm"),
        ("slices_3", "slices of 3 mm"),
        ("slices_5", "slices of 5 mm"),
        ("wide", "many scanners"),
    ):
        rows += [
            Readout(f"{title}: start", part, "start", new=cohort),
            Readout(f"{title}: TP-SwAV", part, "tp_swav", new=cohort),
            Readout(f"{title}: image pairs", part, "image_pairs", new=cohort),
            Readout(f"{title}: 11 numbers of the body", part, ceiling="numbers", new=cohort),
        ]
    return tuple(rows)


def _small() -> ReadoutStudy:
    """The study for two CPU cores: 1.5 mm voxels, networks of width 16."""
    first, second = "Primary: ResNet34", "Primary: small encoder"
    return ReadoutStudy(
        name="Does pre-training learn texture?",
        size=(
            "240 simulated patients with T12-L5, of whom 125 pre-train and fit, 31 validate and 84 "
            "are held out, and 110 new ones; 1.5 mm voxels, HU matched. ResNet34 of width 16, and "
            "a small encoder of three blocks. Crops of 18 mm inside the body, batches of 32, 400 "
            "steps; eight crops a vertebra are read."
        ),
        cohorts=_cohorts(),
        encoders=texture_encoders.encoders(),
        fine_tunings=texture_encoders.fine_tunings(),
        rows=(
            *_primary(first, "", ""),
            *_primary(second, "small: ", "small_"),
            *_joined("With the numbers of the body"),
            *_references(),
            *_secondary(),
            *_fine_tuned(),
            *_on_other_cohorts(),
            *_on_other_scanners(),
            Readout("0.1 as it was: start", "0.1 as it was", "as_0_1_start"),
            Readout("0.1 as it was", "0.1 as it was", "as_0_1"),
        ),
        contrasts=texture_contrasts.all_of(("", "small: ")),
    )


def _at_1_mm(
    name: str, size: str, patients: tuple[int, int], run: Mapping[str, Any], seeds: int
) -> ReadoutStudy:
    """The primary rows at 1 mm.

    Args:
      patients: of the main and of the new cohort.
      run: changes to the recipe, network among them.
      seeds: of every row.
    """
    simulate = "--levels T12-L5 --spacing-mm 1.0 --hu-signal 0"
    prepare = "--size 96 --box body --split-fractions 0.52,0.13,0.35"
    main, new = (f"--patients {count} {simulate}" for count in patients)
    rows = (*_primary("Primary: ResNet34, 1 mm", "", ""), *_references()[:4])
    return ReadoutStudy(
        name=name,
        size=size,
        cohorts={
            "main": Cohort(main, prepare, MAIN_SEED),
            "new": Cohort(new, prepare, NEW_SEED),
        },
        encoders=texture_encoders.block("", {**texture_encoders.RESNET34, **run}),
        rows=tuple(dataclasses.replace(row, seeds=seeds) for row in rows),
        contrasts=texture_contrasts.primary(""),
    )


def get_study(variant: str = "") -> ReadoutStudy:
    """The study; variants "fine" (1 mm, two CPU cores) and "full" (1 mm, the paper's network and
    schedule, a GPU)."""
    if variant == "fine":
        size = (
            "As the study at 1.5 mm, with 1 mm voxels: crops of 18^3, ResNet34 of width 16, two "
            "seeds."
        )
        return _at_1_mm("Does pre-training learn texture, at 1 mm?", size, (240, 110), {}, 2)
    if variant == "full":
        paper = {
            "model.width": 64,
            "optim.learning_rate": 1e-4,
            "optim.train_steps": 30_000,
            "optim.warmup_steps": 10_000,
            "optim.eval_steps": 10_000,
            "optim.save_steps": 2_000,
            "objective.num_prototypes": 128,
            "objective.queue_size": 1024,
            "objective.queue_start_steps": 0,
            "objective.freeze_prototypes_steps": 945,
        }
        size = (
            "1,200 simulated patients and 300 new ones, 1 mm voxels; ResNet34 of width 64, the "
            "paper's rate; 30,000 steps of 32."
        )
        return _at_1_mm("Does pre-training learn texture, in full?", size, (1200, 300), paper, 3)
    if variant:
        raise ValueError(
            f"unknown variant {variant!r} of texture_learning; choose none, fine or full"
        )
    return _small()
