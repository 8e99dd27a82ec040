"""A disk that is full or cannot be written, where a library reports it in words of its own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from osteojax.errors import UserError

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS)


def disk_error(error: BaseException) -> int | None:
    """The number of the operating system's error that `error` is or names; None for others.

    ArrayRecord and TensorStore raise RuntimeError and ValueError with the system's words in them.
    """
    if isinstance(error, OSError) and error.errno in ERRORS:
        return error.errno
    return next((number for number in ERRORS if os.strerror(number) in str(error)), None)


@contextlib.contextmanager
def checkpoint_on_disk(folder: Path, needed: int) -> Iterator[None]:
    """Raises UserError, in one line, where a checkpoint in `folder` cannot be written.

    needed: bytes of its arrays; what is written is compressed and may be smaller.
    """
    try:
        yield
    except Exception as error:
        number = disk_error(error)
        if number is None:
            raise
        free = shutil.disk_usage(folder).free
        raise UserError(
            f"{folder}: {os.strerror(number)}: a checkpoint needs up to {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free. The steps saved before are kept: make room, then "
            "rerun the same command."
        ) from error


class NoDiskTracebacks(logging.Filter):
    """Drops records with the traceback of a disk error. Orbax logs one for each of its threads and
    raises the error too, which is then said in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        named = error if error is not None else Exception(record.getMessage())
        return "orbax" not in record.pathname or disk_error(named) is None
