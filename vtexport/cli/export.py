"""Export a checkpoint to a bundle of ONNX graphs and stop there, whatever this machine could build from them.

For the CPU that is all there is to a bundle, so `export` and `build` give the same; `vtexport compile` builds engines
from an exported bundle.

example:
  vtexport export --model llava --method prunesid --keep 64,128,192 -o llava-onnx
"""

from __future__ import annotations

import argparse

from vtexport.backends.targets import DEFAULT_TARGET, find_target
from vtexport.cli.build import add_export_arguments, export_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_export_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exports and says what was exported."""
    args.precision = args.precision or find_target(DEFAULT_TARGET).default_precision
    return export_bundle(args)
