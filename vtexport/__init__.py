"""Vision-language models with visual tokens pruned to an exact budget, as ONNX bundles that run on the device."""

__version__ = "0.1.0"
