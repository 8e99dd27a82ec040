"""Predicts on new CTs: reads cases, fills batches across cases, writes answers."""
