"""Evaluates a training run from its workdir; prints nothing."""
