"""Reverse mode over a user's forward, in NumPy, and every way to get it wrong."""
