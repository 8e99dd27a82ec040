"""Thin mains, one per verb."""
