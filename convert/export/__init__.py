"""What every export shares: the torch modules written for it, the contract, and the gate it must pass."""
