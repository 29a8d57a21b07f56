"""SAM's prompt encoder and mask decoder."""
