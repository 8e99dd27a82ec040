"""Selects vertebrae of a prepared folder to draw, and reads or computes their maps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from data_prep.vertebrae.texture import TextureSettings, texture_pool
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import POOL, About
from osteojax.errors import UserError


def spread(count: int, rows: int) -> np.ndarray:
    """i64[<= count] positions out of 0..rows-1, evenly spread; with two or more, the first and the
    last are among them."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(int))


def choose(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Vertebrae spread evenly over the folder, in record order; only labelled ones if there are
    enough."""
    labelled = rows[rows["osteoporosis"].notna()]
    rows = labelled if len(labelled) >= count else rows
    return rows.iloc[spread(count, len(rows))]


def named(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The vertebrae with some names SCAN_ID/LEVEL, in that order.

    Raises:
      UserError: a name that the folder does not have.
    """
    own = rows["scan_id"] + "/" + rows["level"]
    found = []
    for name in names:
        matching = np.flatnonzero(own == name)
        if not matching.size:
            close = own[own.str.startswith(name.rpartition("/")[0] or name)]
            example = ", ".join((close if len(close) else own).head(5))
            raise UserError(
                f"--slices {name}: no such vertebra in the folder. A name is SCAN_ID/LEVEL, for "
                f"instance {example}; `vertebrae.csv` lists them."
            )
        found.append(int(matching[0]))
    return rows.iloc[found]


def stores_maps(about: About) -> bool:
    """Whether the folder has a record for every member of the pool."""
    return set(POOL) <= set(about.stored)


def shown_codes(cohort: PreparedCohort, row: int) -> np.ndarray:
    """uint8[len(POOL), D, H, W] codes of one vertebra's shown window (`pool_codes`)."""
    return pool_codes(cohort, row)[(..., *cohort.about.window)]


def shown_planes(cohort: PreparedCohort, row: int) -> np.ndarray:
    """bool[2 or 3, D, H, W]: the mask record of one vertebra's shown window."""
    return cohort.array(row, "mask")[(..., *cohort.about.window)]


def shape_text(shape: tuple[int, ...]) -> str:
    """A box's edges in words: "96^3" or "64 x 88 x 104"."""
    return f"{shape[0]}^3" if len(set(shape)) == 1 else " x ".join(map(str, shape))


def pool_codes(cohort: PreparedCohort, row: int) -> np.ndarray:
    """uint8[len(POOL), D, H, W] codes of one vertebra's stored box.

    Maps that the folder does not store are computed from the stored image with the folder's texture
    settings, as in training; their codes are those that `prepare` would store.
    """
    about = cohort.about
    if stores_maps(about):
        return cohort.members(row, list(POOL))
    image = cohort.members(row, [POOL[0]])[0]
    settings = dataclasses.replace(TextureSettings(**about.texture), engine="jax")
    mask = cohort.array(row, "mask")[0] if settings.domain == "vertebra" else None
    maps = texture_pool(image, mask, settings)
    codes = np.stack([image, *(spec.encode(maps[spec.name]) for spec in about.maps[1:])])
    return codes if mask is None else np.where(mask, codes, np.uint8(0))


def title(row: pd.Series, separator: str = "\n") -> str:
    """Scan, level, device and label of a vertebra."""
    device = row["device"] or "no DXA"
    label = {0: "no osteoporosis", 1: "osteoporosis"}.get(row["osteoporosis"], "no label")
    flags = " (truncated)" if row["truncated"] else ""
    return separator.join((row["scan_id"], f"{row['level']}{flags}, {device}", label))
