"""The cost of models: parameters, operations, speed and memory."""
