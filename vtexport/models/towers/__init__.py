"""Vision towers, written from their configurations."""
