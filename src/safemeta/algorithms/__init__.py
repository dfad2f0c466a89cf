"""Algorithms: one file each, and the few loops that they share. Importing this package does not import JAX."""
