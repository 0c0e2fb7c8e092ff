"""Vision towers, written from their specs."""
