"""Pruning a Hugging Face LLaVA in eager PyTorch."""
