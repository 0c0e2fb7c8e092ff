"""Connectors between vision towers and language models."""
