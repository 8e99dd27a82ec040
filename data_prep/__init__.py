"""The offline pipeline: CT + vertebra masks + DXA table -> texture-pool shards."""
