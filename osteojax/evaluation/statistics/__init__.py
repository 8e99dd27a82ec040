"""Metrics, intervals, tests and calibration, computed from arrays."""
