"""Metrics, intervals, tests and calibration: numbers from arrays, no tables of people."""
