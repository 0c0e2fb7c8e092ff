"""Backends, which run a bundle's graphs on a device, one folder each; target recipes; the record of built engines."""
