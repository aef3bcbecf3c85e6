"""Sweeps: every method is tuned with the same budget, on validation subjects alone."""
