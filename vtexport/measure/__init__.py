"""Measurements of a bundle on this machine: times, memory, energy; their record, and limits that they are held to."""
