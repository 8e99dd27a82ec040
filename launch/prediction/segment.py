"""Makes missing masks with TotalSegmentator, run as a separate program.

Its task `total` is openly available for any use (its README). It downloads its weights when it
first runs, and sends anonymous usage statistics by default.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import SimpleITK as sitk

from data_prep.dicom_series import is_list
from data_prep.volumes import read_volume
from osteojax.data.vertebrae import LEVELS
from osteojax.errors import CaseError, UserError
from osteojax.files import atomic_path

PROGRAM = "TotalSegmentator"
SCHEME = "totalsegmentator_v2"
SEGMENTED = LEVELS[LEVELS.index("T10") : LEVELS.index("L5") + 1]
"""The deciding levels L1-L4 and the neighbours that are needed for axes and flags."""
INSTALL = f"pip install {PROGRAM}"


def command(ct: Path, mask: Path) -> list[str]:
    """The call that segments the vertebrae of one CT, a file or a folder with a DICOM series."""
    levels = [f"vertebrae_{level}" for level in SEGMENTED]
    return [PROGRAM, "-i", str(ct), "-o", str(mask), "--ml", "--roi_subset", *levels]


def how_to(ct: Path) -> str:
    """Advice for a missing mask."""
    if is_list(ct):
        return f"Let predict make it with {PROGRAM} ({INSTALL}): --segment."
    call = shlex.join(command(ct, Path("mask.nii.gz")))
    return (
        f"Make one with {PROGRAM} ({INSTALL}): {call} ; then give --mask mask.nii.gz "
        f"--label-scheme {SCHEME} (in a table: the columns mask and label_scheme). "
        "Or let predict run it: --segment."
    )


def check_installed() -> None:
    """Raises UserError if the program is not on PATH."""
    if shutil.which(PROGRAM) is None:
        raise UserError(
            f"--segment: {PROGRAM} is not on PATH. Install it ({INSTALL}; it needs PyTorch and "
            "fetches its weights when it first runs), or give --mask."
        )


def make_mask(ct: Path, mask: Path, case: str) -> None:
    """Segments `ct` into `mask`, a NIfTI file in `SCHEME`; an existing mask is kept.

    Raises:
      CaseError: the program failed. Its output is not repeated, because it may quote DICOM headers.
    """
    if mask.exists():
        return
    with tempfile.TemporaryDirectory() as folder, atomic_path(mask) as temporary:
        temporary.unlink()  # the program creates it
        if is_list(ct):  # which the program does not know
            whole = Path(folder) / "ct.nii.gz"
            sitk.WriteImage(read_volume(ct, case), str(whole))
            ct = whole
        call = command(ct, temporary)
        done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode or not temporary.is_file():
            shown = shlex.join(command(ct, Path("mask.nii.gz")))
            raise CaseError(
                case,
                f"{PROGRAM} ended with status {done.returncode} and no mask.",
                f"Run it to see why: {shown}",
            )
