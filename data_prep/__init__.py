"""Prepares data before training: shared code, a package for each kind of data, and a simulator."""
