"""What transformers makes of a checkpoint's small files, read once at build time."""
