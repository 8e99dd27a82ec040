"""The import path of 0.1; what is here lives in `osteojax.export.load`."""

from osteojax.export.load import ExportedModel as ExportedModel
