"""Predicts on pictures of stripes with an exported model."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from osteojax.export.load import ExportedModel
from osteojax.files import atomic_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--picture", type=Path, nargs="+", required=True, help="PNG files")


def run(args: argparse.Namespace) -> int:
    model = ExportedModel(args.model)
    pictures = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in args.picture]
    outputs = model.predict(np.stack(pictures))
    directions = np.array(model.card["directions"])
    table = pd.DataFrame(
        {
            "picture_id": [path.stem for path in args.picture],
            "direction_pred": directions[outputs["direction_probabilities"].argmax(axis=1)],
            "direction_probability": outputs["direction_probabilities"][:, 1],
            "width_pred": outputs["width_px"],
        }
    )
    with atomic_path(args.out / "predictions.csv") as temporary:
        table.to_csv(temporary, index=False)
    print(args.out / "predictions.csv")
    return 0
