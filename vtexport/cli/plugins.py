"""Build the native libraries of the pruning ops on this machine.

Always the library for ONNX Runtime on the CPU; with an nvcc the CUDA kernels, and with TensorRT's headers its plugin.
What cannot be built is said with the reason; where --tensorrt-include asks for the plugin and there is none, the exit
code is 1. The libraries go into a folder `<cpu>-trt<x.y>-cu<x>-sm<xx>` that names what is in it, where bundles run by
this installation find them.

examples:
  vtexport plugins build
  vtexport plugins build --tensorrt-include /usr/include/aarch64-linux-gnu
  vtexport plugins build --output mini/plugins     # taken along with a bundle, for programs that name it
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vtexport.cli.console import say, say_json, tell
from vtexport.plugins.build import build_libraries
from vtexport.plugins.libraries import PLUGIN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    compile_ = actions.add_parser("build", help="compile the libraries", description=__doc__.splitlines()[0])
    extent = compile_.add_mutually_exclusive_group()
    extent.add_argument("--tensorrt-include", type=Path, metavar="DIR", help="the folder of NvInferRuntime.h")
    extent.add_argument("--cpu-only", action="store_true", help="leave out what takes an nvcc")
    compile_.add_argument("--output", "-o", type=Path, metavar="DIR", help="default: where vtexport looks for them")
    compile_.add_argument("--json", action="store_true", help="print the result as JSON")
    compile_.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Builds and reports."""
    built = build_libraries(args.output, tensorrt_include=args.tensorrt_include, cpu_only=args.cpu_only, tell=tell)
    code = int(args.tensorrt_include is not None and PLUGIN in built.missing)
    if args.json:
        say_json({"folder": str(built.folder), "libraries": built.libraries, "missing": built.missing})
        return code
    say(str(built.folder))
    for name, purpose in built.libraries.items():
        say(f"  {name}: {purpose}")
    for name, reason in built.missing.items():
        say(f"  not built: {name}: {reason}")
    return code
