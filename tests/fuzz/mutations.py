"""Damaged bytes, drawn by Hypothesis or by NumPy: overwritten, cut out, repeated, cut off."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

TELLING = (
    b"\x00", b"\xff", b"\xff\x7f", b"\x00\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00",
    *(struct.pack("<f", value) for value in (float("nan"), float("inf"), -1.0, 1e30, 1e-30)),
    b"\n", b",", b'"', b"-1", b"1e999", b"nan", b"../../x", b"\xc3", b"[]", b"{}", b"null",
)  # fmt: skip
"""Values that often break readers."""

KINDS = ("byte", "digit", "value", "cut", "insert", "end")


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


def damage(content: bytes, seed: int, head: int) -> bytes:
    """`content` after one to four changes: every other seed changes the first `head` bytes alone.

    Like `damaged`, without Hypothesis, which takes longer than reading a small file.
    """
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        end = min(len(changed), head if seed % 2 else len(changed))
        if end == 0:
            break
        at = int(rng.integers(end))
        kind = rng.choice(
            ["byte", "digit", "value", "cut", "insert", "end"], p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]
        )
        value = TELLING[rng.integers(len(TELLING))]
        if kind == "byte":
            changed[at] = int(rng.integers(256))
        elif kind == "digit":
            changed[at] = int(rng.integers(ord("0"), ord("9") + 1))
        elif kind == "value":
            changed[at : at + len(value)] = value
        elif kind == "cut":
            del changed[at : at + int(rng.integers(1, 13))]
        elif kind == "insert":
            changed[at:at] = value
        else:
            del changed[at:]
    return bytes(changed)
