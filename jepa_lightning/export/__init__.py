"""Writes checkpoints for other libraries, reloads them there and compares."""
