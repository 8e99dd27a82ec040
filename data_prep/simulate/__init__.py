"""A multi-site, multi-device cohort with known truth, written as the files a user brings.

    patients.py   who: site, sex, age, true bone of every level, DXA results
    dxa.py        DXA devices, their cross-calibration and references
    bone.py       trabecular structure at 0.3 mm
    anatomy.py    sizes, curvature and shape of vertebrae
    soft_tissue.py  everything around the spine
    scanner.py    kernel, noise, slices, calibration
    render.py     patient -> CT and labels
    cohort_writer.py  files, tables, workers, resuming

It is never clinical evidence: every number below is either a published one, named where it
stands, or invented and called so.
"""
