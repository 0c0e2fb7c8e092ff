"""A checkpoint's small files as transformers takes them, read once at build time."""
