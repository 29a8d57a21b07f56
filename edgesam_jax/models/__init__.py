"""The networks: the only place that imports flax.linen."""
