"""Exceptions for mistakes of the user; they are printed as one line."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user, not of the program: printed as one line, never as a traceback.

    The message names the case, the values and the way out.
    """


class CaseError(UserError):
    """One case is unusable. It becomes a row of `failures.csv`, and the others are processed.

    Attributes:
      case: the user's own id of the case (`scan_id`, or `scan_id/L1` for one vertebra).
      reason: what is wrong, with the values.
      remedy: what the user can do about it.
    """

    def __init__(self, case: str, reason: str, remedy: str) -> None:
        super().__init__(f"{case}: {reason} {remedy}")
        self.case, self.reason, self.remedy = case, reason, remedy

    def __reduce__(self) -> tuple[type[CaseError], tuple[str, str, str]]:
        """For pickling between processes: Exception's own method would pass only the message."""
        return type(self), (self.case, self.reason, self.remedy)
