"""Contrasts of the study of texture, fixed before it runs: expected signs, and the smallest
differences that matter. configs/studies/texture_learning.py has the rows and the story."""

from __future__ import annotations

import dataclasses

from launch.readouts.plan import Contrast

R_MATTERS, AUROC_MATTERS = 0.05, 0.05


def all_of(networks: tuple[str, ...]) -> tuple[Contrast, ...]:
    """Every contrast of the study, the questions of each network first.

    Args:
      networks: what the names of their rows begin with.
    """
    asked = [contrast for title in networks for contrast in _questions(title)]
    besides = [contrast for title in networks for contrast in _also(title)]
    return (*asked, *besides, *_others(), *_label_efficiency())


def primary(title: str) -> tuple[Contrast, ...]:
    """The contrasts of one network."""
    return (*_questions(title), *_also(title))


def _questions(title: str) -> tuple[Contrast, ...]:
    """The questions that the study was made for, of one network, on the new cohort."""
    tp = f"{title}TP-SwAV"
    others = ("start", "image pairs", "image pairs, tuned", "other patient's pairs")
    return tuple(
        Contrast(tp, f"{title}{name}", "r", +1, R_MATTERS, "new", primary=True) for name in others
    )


def _also(title: str) -> tuple[Contrast, ...]:
    """The same on held-out patients, by label, and with few patients."""
    tp, start, images = (f"{title}{name}" for name in ("TP-SwAV", "start", "image pairs"))
    held = [dataclasses.replace(c, group="held", primary=False) for c in _questions(title)]
    return (
        *held,
        Contrast(tp, start, "AUROC", +1, AUROC_MATTERS),
        Contrast(tp, images, "AUROC", +1, AUROC_MATTERS),
        Contrast(tp, start, "r", +1, R_MATTERS, patients=12),
        Contrast(tp, start, "r", +1, R_MATTERS, patients=36),
    )


def _label_efficiency() -> tuple[Contrast, ...]:
    """Of the trial: frozen .67 against .57 from scratch with 12 patients, .82 against .82 with 36;
    fine-tuning added nothing and .01."""

    def auroc(first: str, second: str, patients: int, expected: int) -> Contrast:
        return Contrast(first, second, "AUROC", expected, AUROC_MATTERS, patients=patients)

    frozen, tuned, scratch = "TP-SwAV", "TP-SwAV, fine-tuned", "from scratch"
    return (
        *(auroc(frozen, scratch, n, +1 if n == 12 else 0) for n in (12, 36, 0)),
        *(auroc(tuned, scratch, n, +1 if n == 12 else 0) for n in (12, 36, 0)),
        *(auroc(tuned, frozen, n, 0) for n in (12, 36, 0)),
        Contrast(tuned, frozen, "r", 0, R_MATTERS),
        Contrast(tuned, scratch, "r", +1, R_MATTERS),
    )


def _others() -> tuple[Contrast, ...]:
    def r(first: str, second: str, expected: int) -> Contrast:
        return Contrast(first, second, "r", expected, R_MATTERS)

    def auroc(first: str, second: str, expected: int, group: str = "new") -> Contrast:
        return Contrast(first, second, "AUROC", expected, AUROC_MATTERS, group)

    tp, numbers = "TP-SwAV", "11 numbers of the body"
    return (
        # Is a cheap fixed input worth more than pre-training?
        r(numbers, tp, +1),
        r("start + numbers", tp, +1),
        # Four means of GLCM maps tied with TP-SwAV in the trial; there are 23 features here.
        r("PyRadiomics' GLCM of the body", tp, +1),
        r("TP-SwAV + numbers", "start + numbers", 0),
        r("small: TP-SwAV + numbers", "small: start + numbers", 0),
        auroc("TP-SwAV + numbers", "start + numbers", 0),
        auroc("start + numbers", tp, 0),
        # What in the method matters
        r("TP-SwAV, tuned", tp, 0),
        r("TP-SwAV, tuned", "image pairs, tuned", 0),
        r(tp, "uniform pairs", 0),
        r(tp, "one shared place", 0),
        r(tp, "InfoNCE, image crops, no maps", 0),
        r("small: TP-SwAV", "small: InfoNCE, image crops, no maps", 0),
        r(tp, "VICReg, image crops, no maps", 0),
        # Of the trial with the small network: .76 for regression, .83 for TP-SwAV. ResNet34 gained
        # less than 0.05 by TP-SwAV, which leaves no room for such a difference.
        r(tp, "texture regression", 0),
        r("small: TP-SwAV", "small: texture regression", +1),
        r("supervised network", tp, 0),
        r("small: supervised network", "small: TP-SwAV", 0),
        r(tp, "with a queue of 256", +1),
        r("small: TP-SwAV", "small: with a queue of 256", +1),
        r("small: image pairs", "small: image pairs with a queue of 256", +1),
        r(tp, "with a queue of 256 from step 100", 0),
        r("small: TP-SwAV", "small: with a queue of 256 from step 100", 0),
        r(tp, "0.1's assignment (epsilon 0.05, raw prototypes)", +1),
        r(tp, "z-scores of the box", +1),
        r(tp, "strided shortcuts", 0),
        r("start", "strided shortcuts: start", +1),
        r(tp, "scales one", +1),
        r("start", "scales one: start", +1),
        r(tp, "crops of 12 mm", +1),
        r(tp, "crops of 24 mm, body share 0.95", +1),
        r(tp, "0.1 as it was", +1),
        # Controls
        auroc("No texture signal: TP-SwAV", "No texture signal: mean HU", 0, "held"),
        auroc("HU not matched: TP-SwAV", "HU not matched: start", +1, "held"),
        auroc("HU not matched: TP-SwAV + numbers", "HU not matched: start + numbers", 0, "held"),
    )
