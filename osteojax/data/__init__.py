"""Reads prepared folders and turns them into batches."""
