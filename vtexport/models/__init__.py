"""Model families, one file each, made of parts: vision towers, connectors and decoders."""
