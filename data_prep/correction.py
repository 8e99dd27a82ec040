"""Continues a folder with corrected tables: what is finished stays, and its rows follow the tables.

items.json    [case, source] of every item, in order; written beside settings.json
.moved/       parts of finished items under their new numbers, until they replace parts/ and shards/

A corrected row may change the number of every item behind it, and the split or the labels of any
item. Records are moved, rows are made again from the tables, and no image is read again: the
folder becomes the one that the corrected tables would have given. Tables that lack a finished item,
or name other files for it, are those of another cohort and are refused.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from data_prep.folder import names, refuse_settings
from data_prep.parts import load_report, part_path, save_report
from data_prep.recipe import Cohort, Recipe, Report
from data_prep.records import ShardReader, write_records
from data_prep.shards import membership
from osteojax.errors import UserError
from osteojax.files import write_json

ITEMS, MOVED, READY = "items.json", ".moved", "ready.json"
OTHER_TABLES = "the cohort's tables have other contents"


def follow_tables(
    recipe: Recipe, cohort: Cohort, out: Path, settings: dict[str, Any], changed: bool
) -> int:
    """Makes the finished part of a locked folder that of the cohort's tables.

    Args:
      settings: whole content of settings.json with these tables.
      changed: whether the folder's settings.json is of tables with other bytes.

    Returns:
      number of finished items that are in another split now.

    Raises:
      UserError: the tables are of another cohort.
    """
    if not cohort.sources:  # a kind that does not say what its items' records are made from
        if changed:
            refuse_settings(out, OTHER_TABLES)
        return 0
    items = [[own.case, source] for own, source in zip(cohort.items, cohort.sources, strict=True)]
    known = _known_items(out)
    if changed and known is None:
        refuse_settings(out, OTHER_TABLES)
    if known is not None and known != items:
        _follow_items(recipe, out, settings, known, items)
    if known != items:
        write_json(out / ITEMS, items)
    if changed:
        (out / "manifest.json").unlink(missing_ok=True)
        write_json(out / "settings.json", settings)
    return _relabel(recipe, cohort, out)


def finish_move(out: Path) -> None:
    """Completes a move that an interrupted run had prepared, or removes what it had begun."""
    moved = out / MOVED
    if (moved / READY).exists():
        content = json.loads((moved / READY).read_text(encoding="utf-8"))
        (out / "manifest.json").unlink(missing_ok=True)
        if (moved / "parts").is_dir():
            shutil.rmtree(out / "shards", ignore_errors=True)
            shutil.rmtree(out / "parts", ignore_errors=True)
            (moved / "parts").rename(out / "parts")
        write_json(out / ITEMS, content["items"])
        write_json(out / "settings.json", content["settings"])
    shutil.rmtree(moved, ignore_errors=True)


def _known_items(out: Path) -> list[list[str]] | None:
    """Content of items.json; None in a folder that an earlier version began."""
    path = out / ITEMS
    if not path.exists():
        return None
    try:
        return [[str(case), str(source)] for case, source in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Name another folder.") from error


def _follow_items(
    recipe: Recipe,
    out: Path,
    settings: dict[str, Any],
    known: list[list[str]],
    items: list[list[str]],
) -> None:
    """Moves finished items to their new numbers. Raises UserError if one is gone or has others."""
    number = {case: index for index, (case, _) in enumerate(items)}
    finished = {
        index: report
        for index in range(len(known))
        if part_path(out, index, "json").exists()
        and not (report := load_report(out, index)).failures
    }
    for index in finished:
        case, source = known[index]
        if case not in number:
            refuse_settings(out, f"{OTHER_TABLES}: {case}, which is finished, is not among them")
        if items[number[case]][1] != source:
            refuse_settings(out, f"{OTHER_TABLES}: other files for {case}, which is finished")
    moves = {index: number[known[index][0]] for index in finished}
    per_shard = settings["scans_per_shard"]
    shards = membership(recipe.shard_prefix, len(known), per_shard)
    in_place = all(index == new for index, new in moves.items())
    if in_place and list(shards) == list(membership(recipe.shard_prefix, len(items), per_shard)):
        for index in range(len(items), len(known)):  # rows that had failed and are gone
            part_path(out, index, "json").unlink(missing_ok=True)
            part_path(out, index, "array_record").unlink(missing_ok=True)
        return
    shutil.rmtree(out / MOVED, ignore_errors=True)
    (out / MOVED / "parts").mkdir(parents=True)
    for name, indices in shards.items():
        own = {index: finished[index] for index in indices if index in finished}
        _move_shard(recipe, out, out / "shards" / name, own, moves)
    write_json(out / MOVED / READY, {"settings": settings, "items": items})
    finish_move(out)


def _move_shard(
    recipe: Recipe, out: Path, path: Path, reports: dict[int, Report], moves: dict[int, int]
) -> None:
    """Copies the parts of a shard's finished items under their new numbers.

    An item whose records are nowhere is left behind, so that it is prepared again.
    """
    old = ShardReader(path, len(recipe.fields)) if path.exists() else None
    positions = defaultdict(list)
    for position, meta in enumerate(old.metas() if old else ()):
        positions[meta[recipe.item_column]].append(position)
    for index, report in reports.items():
        part = part_path(out, index, "array_record")
        new = part_path(out / MOVED, moves[index], "array_record")
        own = positions[report.rows[0][recipe.item_column]] if report.rows else []
        if part.exists():
            shutil.copyfile(part, new)
        elif own and old is not None and len(own) == len(report.rows):
            write_records(new, (old.records(position) for position in own))
        elif report.rows:
            continue
        save_report(out / MOVED, moves[index], report)


def _relabel(recipe: Recipe, cohort: Cohort, out: Path) -> int:
    """Makes the rows of finished items follow the tables; returns how many changed their split."""
    parts, moved = names(out / "parts"), 0
    for item in cohort.items:
        if part_path(out, item.index, "json").name not in parts:
            continue
        report = load_report(out, item.index)
        if report.failures:
            continue  # it is prepared again
        if report.rows and report.rows[0][recipe.item_column] != item.case:
            refuse_settings(out, "this version reads the tables in another way")
        new = recipe.relabelled(item, report)
        if new != report:
            (out / "manifest.json").unlink(missing_ok=True)  # the shards are not up to date
            save_report(out, item.index, new)
            moved += [row["split"] for row in new.rows] != [row["split"] for row in report.rows]
    return moved
