"""Simulates a cohort of several sites and DXA scanners with known truth, as a user's files.

    patients.py   patients: site, split, devices, DXA results
    people.py     true bone of every level, by age and sex
    dxa.py        DXA scanners, their cross-calibration and references, measurement
    bone.py       trabecular structure at 0.3 mm
    anatomy.py    sizes, curvature and shape of vertebrae
    implants.py   screws and rods
    soft_tissue.py  everything around the spine
    scanner.py    kernel, noise, slices, kVp, calibration
    render.py     patient -> CT and labels
    cohort_writer.py  files, tables, workers, resuming
    texture_survival.py  how much of the structure is left in a CT

The simulation is not clinical evidence: every number is either published, with its source beside
it, or invented and marked as such.
"""
