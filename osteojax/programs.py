"""The import path of 0.1; what is here lives in `osteojax.export.programs`."""

from osteojax.export.programs import tree_weights as tree_weights
