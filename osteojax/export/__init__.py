"""Exported folders: written from a workdir, loaded without training code."""
