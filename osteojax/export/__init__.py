"""Writes exported folders from a workdir, and loads them without training code."""
