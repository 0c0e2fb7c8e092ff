"""Bundles in other projects' tools."""
