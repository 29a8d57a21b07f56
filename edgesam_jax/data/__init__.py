"""Examples, transforms and the input pipeline.  NumPy only: data workers never start JAX."""
