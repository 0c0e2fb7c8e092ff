"""Pruning ops that act inside the language model, between two decoder layers; one file each."""
