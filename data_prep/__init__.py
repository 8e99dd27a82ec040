"""Prepares data offline: shared machinery, a folder for each kind of data, and a simulator."""
