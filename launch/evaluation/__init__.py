"""Evaluation of a training run, from its workdir: a library that prints nothing."""
