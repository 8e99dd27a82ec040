"""Patient-level split: given in the cohort, or made reproducibly, stratified by site and label.

All items of a patient are in one split. External sites never enter training.
"""

from __future__ import annotations

import dataclasses
import hashlib

from osteojax.data.schema import SPLITS
from osteojax.errors import UserError

MADE_SPLITS = SPLITS[:3]
DEFAULT_FRACTIONS = (0.6, 0.1, 0.3)
"""Default shares of the training, validation and test split."""


@dataclasses.dataclass(frozen=True)
class SplitPatient:
    """A patient, with what the split depends on.

    Attributes:
      patient_id: the user's id.
      sites: of all the patient's scans.
      given: splits named in the cohort table; empty where it names none.
      label: "positive" if any item is, else "negative", or "unlabelled".
    """

    patient_id: str
    sites: frozenset[str]
    given: frozenset[str]
    label: str


def assign_splits(
    patients: list[SplitPatient],
    external_sites: frozenset[str] = frozenset(),
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> dict[str, str]:
    """Split of each patient.

    Patients without a given split are ordered by site, label and a hash of seed and id; then each
    goes to the split that is furthest behind its share. So every stratum is divided in proportion,
    remainders are carried to the next stratum, and totals are within one patient of their share.

    Returns:
      patient_id -> one of `SPLITS`.

    Raises:
      UserError: a patient in two splits, in an external and another site, or of an external site
        in another split; an external site that no patient has.
    """
    known = frozenset[str]().union(*(p.sites for p in patients)) if patients else frozenset()
    if external_sites - known:
        raise UserError(
            f"--external-sites {', '.join(sorted(external_sites - known))}: no such site in the "
            f"cohort; its sites are {', '.join(sorted(known))}."
        )
    splits = {}
    for patient in patients:
        split = _given_split(patient, external_sites)
        if split is not None:
            splits[patient.patient_id] = split
    rest = [p for p in patients if p.patient_id not in splits]
    rest.sort(key=lambda p: (sorted(p.sites), p.label, _hash(seed, p.patient_id)))
    assigned = [0, 0, 0]
    for number, patient in enumerate(rest, start=1):
        # Rounded, so that equal deficits tie and the earlier split of MADE_SPLITS wins.
        behind = [round(f * number - n, 9) for f, n in zip(fractions, assigned, strict=True)]
        choice = behind.index(max(behind))
        assigned[choice] += 1
        splits[patient.patient_id] = MADE_SPLITS[choice]
    return splits


def _given_split(patient: SplitPatient, external_sites: frozenset[str]) -> str | None:
    name, given = patient.patient_id, set(patient.given)
    if patient.sites & external_sites:
        if not patient.sites <= external_sites:
            raise UserError(
                f"patient {name} has scans at sites {', '.join(sorted(patient.sites))}, of which "
                f"{', '.join(sorted(patient.sites & external_sites))} is external. Take the "
                "patient out of one of them."
            )
        given.add("external")
    if len(given) > 1:
        raise UserError(
            f"patient {name} is in the splits {' and '.join(sorted(given))}. Give all scans of a "
            "patient one split."
        )
    return given.pop() if given else None


def _hash(seed: int, patient_id: str) -> str:
    return hashlib.sha256(f"{seed}:{patient_id}".encode()).hexdigest()
