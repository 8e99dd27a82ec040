"""A mask where there is none: TotalSegmentator, as a program of its own.

Its task `total` is openly available for any use (its README); it fetches its weights from the
internet when it first runs, and sends anonymous usage statistics unless told otherwise.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from osteojax.data.vertebrae import LEVELS
from osteojax.errors import CaseError, UserError
from osteojax.files import atomic_path

PROGRAM = "TotalSegmentator"
SCHEME = "totalsegmentator_v2"
SEGMENTED = LEVELS[LEVELS.index("T10") : LEVELS.index("L5") + 1]
"""The levels that are decided on, and the neighbours that their axes and flags need."""
INSTALL = f"pip install {PROGRAM}"


def command(ct: Path, mask: Path) -> list[str]:
    """The call that segments the vertebrae of one CT, a file or a folder with a DICOM series."""
    levels = [f"vertebrae_{level}" for level in SEGMENTED]
    return [PROGRAM, "-i", str(ct), "-o", str(mask), "--ml", "--roi_subset", *levels]


def how_to(ct: Path) -> str:
    """What to do about a missing mask."""
    call = shlex.join(command(ct, Path("mask.nii.gz")))
    return (
        f"Make one with {PROGRAM} ({INSTALL}): {call} ; then give --mask mask.nii.gz "
        f"--label-scheme {SCHEME} (in a table: the columns mask and label_scheme). "
        "Or let predict run it: --segment."
    )


def check_installed() -> None:
    """Raises UserError where the program is not on PATH."""
    if shutil.which(PROGRAM) is None:
        raise UserError(
            f"--segment: {PROGRAM} is not on PATH. Install it ({INSTALL}; it needs PyTorch and "
            "fetches its weights when it first runs), or give --mask."
        )


def make_mask(ct: Path, mask: Path, case: str) -> None:
    """Segments `ct` into `mask`, a NIfTI file in `SCHEME`; a mask that is there is kept.

    Raises:
      CaseError: the program failed. What it said is not repeated: it may name what is in DICOM
        headers.
    """
    if mask.exists():
        return
    with atomic_path(mask) as temporary:
        temporary.unlink()  # the program makes its own
        call = command(ct, temporary)
        done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode or not temporary.is_file():
            shown = shlex.join(command(ct, Path("mask.nii.gz")))
            raise CaseError(
                case,
                f"{PROGRAM} ended with status {done.returncode} and no mask.",
                f"Run it to see why: {shown}",
            )
