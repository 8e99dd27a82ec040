"""Checks before a run starts; a workdir belongs to one config and one cohort."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from osteojax import __version__
from osteojax.data.cohort import PreparedCohort
from osteojax.errors import UserError
from osteojax.files import write_json, write_text
from osteojax.models import form_of

MAY_DIFFER = ("data.placement", "steps_per_dispatch")
"""Settings that may differ on resume; they do not affect results."""

log = logging.getLogger(__name__)


def check_processes(config: ConfigDict, cohort: PreparedCohort) -> None:
    """Raises UserError unless all processes were started for the same run."""
    if jax.process_count() == 1:
        return
    manifest = (cohort.directory / "manifest.json").read_text(encoding="utf-8")
    text = f"{__version__}\n{config.to_json(sort_keys=True)}\n{manifest}"
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    everyone = multihost_utils.process_allgather(digest)
    if (everyone != everyone[0]).any():
        raise UserError(
            "the processes were started with different configs, cohorts or versions of osteojax. "
            "Start the same command everywhere; only --process-id may differ."
        )


def claim(workdir: Path, config: ConfigDict, cohort: PreparedCohort) -> ConfigDict:
    """Writes the config and the manifest, or checks that they are those of an earlier start.

    Returns:
      the config to run with. A run that an earlier version began goes on without the fields that
      it did not have, because their absence means what that version did.

    Raises:
      UserError: the workdir holds a run of another config or cohort, or is damaged.
    """
    wanted = json.loads(config.to_json())
    path = workdir / "config.json"
    if path.exists():
        found, known = _read_claim(workdir)
        config = _as_begun(config, found)
        if differences := _differences(found, json.loads(config.to_json())):
            raise UserError(
                f"{workdir} holds a run with another config: {'; '.join(differences[:6])}. Resume "
                "it with the earlier values (--config.FIELD=VALUE; this version may have another "
                "default), or use another --workdir."
            )
        if known != (cohort.directory / "manifest.json").read_text(encoding="utf-8"):
            raise UserError(
                f"{workdir} was trained on another cohort than {cohort.directory}. Use the same "
                "--data to resume, or another --workdir."
            )
        return config
    _check_start(config)
    if jax.process_index() == 0:
        # The text is copied unchanged, also of a folder that an earlier version wrote.
        manifest = (cohort.directory / "manifest.json").read_text(encoding="utf-8")
        write_text(workdir / "manifest.json", manifest)
        write_json(path, {"config": wanted, "osteojax": __version__, "data": str(cohort.directory)})
    return config


def _check_start(config: ConfigDict) -> None:
    """Raises UserError where the encoder of `init_from` has parameters of the same shapes, and this
    run's network would compute something else from them or see other z-scores. Whether it saw boxes
    or crops may differ."""
    source = config.get("init_from")
    if not source:
        return
    try:
        text = (Path(source) / "config.json").read_text(encoding="utf-8")
        content = ConfigDict(json.loads(text)["config"])
        theirs, region = content.model, content.get("data", {}).get("statistics", "box")
    except (OSError, ValueError, KeyError, AttributeError):
        return  # a folder that cannot be read is refused where its checkpoint is read
    own_region = config.data.get("statistics", "box")
    if region != own_region:
        paper = ", as the variant paper has it that sees whole boxes (FILE.py:paper)"
        raise UserError(
            f"{source} was trained with data.statistics={region}, and this run has {own_region}: "
            f"its encoder would see other z-scores. Add --config.data.statistics={region}"
            f"{paper if region == 'box' else ''}, or pre-train again."
        )
    if theirs.get("name") != config.model.name:
        return  # another backbone has other parameters, which the warm start refuses
    wanted = form_of(config.model)
    for name, value in form_of(theirs).items():
        if value != wanted[name]:
            raise UserError(
                f"{source} was trained with model.{name}={value}, and this run has {wanted[name]}: "
                f"its weights would mean something else. Add --config.model.{name}={value}, or "
                "pre-train again."
            )


def _read_claim(workdir: Path) -> tuple[dict[str, Any], str]:
    """(config, text of the manifest) that an earlier start wrote."""
    try:
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]
        return config, (workdir / "manifest.json").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{workdir}: config.json or manifest.json cannot be read ({error}). Restore them, or "
            "use another --workdir."
        ) from error


def _as_begun(config: ConfigDict, found: dict[str, Any], name: str = "") -> ConfigDict:
    """A copy of the config without the fields that `found`, an earlier start's, lacks."""
    kept = config.copy_and_resolve_references().unlock()
    for key in sorted(kept.keys()):
        inner = f"{name}.{key}".lstrip(".")
        if inner in MAY_DIFFER:
            continue
        if key not in found:
            log.warning(
                "%s = %r is new since this run began, which goes on without", inner, kept[key]
            )
            del kept[key]
        elif isinstance(kept[key], ConfigDict) and isinstance(found[key], dict):
            kept[key] = _as_begun(kept[key], found[key], inner)
    return kept.lock()


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Fields that differ, in words, without those of `MAY_DIFFER`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = []
        for key in sorted({*found, *wanted}):
            inner = f"{name}.{key}".lstrip(".")
            if inner not in MAY_DIFFER:
                parts += _differences(found.get(key), wanted.get(key), inner)
        return parts
    return [] if found == wanted else [f"{name} was {found!r}, is {wanted!r}"]
