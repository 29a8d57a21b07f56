"""What a model costs: parameters, operations, photos per second."""
