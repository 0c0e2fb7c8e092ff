"""The pruning methods, one file each; a file added here is found by itself (docs/adding-a-method.md)."""
