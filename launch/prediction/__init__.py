"""Prediction on new CTs: reads cases, fills batches across them, writes answers."""
