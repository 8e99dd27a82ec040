"""Damaged bytes, drawn by Hypothesis: overwritten, cut out, repeated, cut off."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

TELLING = (
    b"\x00", b"\xff", b"\xff\x7f", b"\x00\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00",
    *(struct.pack("<f", value) for value in (float("nan"), float("inf"), -1.0, 1e30, 1e-30)),
    b"\n", b",", b'"', b"-1", b"1e999", b"nan", b"../../x", b"\xc3", b"[]", b"{}", b"null",
)  # fmt: skip
"""Values that often break readers."""


def fuzz(examples: int) -> Any:
    """Settings: the same examples in every run, and no deadline, because machines may be busy."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, head: int | None = None) -> bytes:
    """`content` after one to four changes, within its first `head` bytes."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(changed), head or len(changed))
        if end == 0:
            break
        at = draw(st.integers(0, end - 1))
        kind = draw(st.sampled_from(("byte", "value", "cut", "insert", "end")))
        if kind == "byte":
            changed[at] = draw(st.integers(0, 255))
        elif kind == "value":
            value = draw(st.sampled_from(TELLING))
            changed[at : at + len(value)] = value
        elif kind == "cut":
            del changed[at : at + draw(st.integers(1, 12))]
        elif kind == "insert":
            changed[at:at] = draw(st.sampled_from(TELLING))
        else:
            del changed[at:]
    return bytes(changed)
