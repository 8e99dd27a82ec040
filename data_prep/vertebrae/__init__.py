"""CT + vertebra mask + DXA table -> texture pools: all that `prepare` knows of vertebrae."""
