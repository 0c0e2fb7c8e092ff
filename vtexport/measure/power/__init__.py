"""Electric power: readers of what a machine's own sensors say, and the integral over a span of time."""
