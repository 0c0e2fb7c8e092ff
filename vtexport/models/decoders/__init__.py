"""Language models, written from their configurations."""
