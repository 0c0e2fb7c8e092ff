"""A server that answers OpenAI's chat completions from a bundle."""
