"""OsteoJAX: opportunistic osteoporosis diagnosis from CT, on JAX and Flax."""

__version__ = "0.1.0"
