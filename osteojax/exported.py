"""The import path of 0.1 for names of `osteojax.export.load`."""

from osteojax.export.load import ExportedModel as ExportedModel
