"""The import path of 0.1 for names of `osteojax.export.programs`."""

from osteojax.export.programs import tree_weights as tree_weights
