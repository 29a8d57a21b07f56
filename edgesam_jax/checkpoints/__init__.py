"""Any file of weights as a ``Model``, and the checkpoints that this project writes."""
