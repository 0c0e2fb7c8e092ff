"""Build engines of an exported bundle's graphs for a target; today TensorRT-RTX, which needs no GPU for that.

The engines are put into the bundle's folder engines/TARGET with a record of their own; nothing else in it changes.

examples:
  vtexport compile mini --target rtx
  vtexport compile mini --target rtx --compute-capability 8.6,8.9,12.0
"""

from __future__ import annotations

import argparse

import msgspec

from vtexport.backends.record import FOLDER, TEXT_TOKENS, Engines
from vtexport.backends.registry import compile_bundle, compiler_for
from vtexport.backends.targets import find_target
from vtexport.bundle.reader import open_bundle
from vtexport.cli.console import Progress, say, say_json, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--target", required=True, metavar="NAME", help="see `vtexport list targets`")
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `compile` and `build` share."""
    parser.add_argument(
        "--compute-capability",
        type=lambda text: text.split(","),
        default=[],
        metavar="X.Y[,X.Y...]",
        help="GPUs the engines are for, such as 8.6,8.9,12.0; default: portable engines",
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=TEXT_TOKENS,
        metavar="N",
        help="the longest text that an engine takes beside the image in one prefill; default: %(default)s",
    )


def run(args: argparse.Namespace) -> int:
    """Builds the engines and says which."""
    target = find_target(args.target)
    compiler_for(target)  # refuses a target without engines before the bundle is read
    progress = Progress(args.quiet)
    bundle = open_bundle(args.bundle)
    record = compile_bundle(bundle, target, args.compute_capability, args.text_tokens, progress.stage)
    progress.stage("done")
    if args.json:
        memory = {name: engine.peak_memory_bytes for name, engine in record.engines.items()}
        plugins = {name: engine.plugins for name, engine in record.engines.items()}
        library = msgspec.to_builtins(record.plugin_library)
        say_json(
            {
                "bundle": str(bundle.folder),
                "engines": sizes(record),
                "peak_memory_bytes": memory,
                "plugins": plugins,
                "plugin_library": library,
            }
        )
    else:
        say_engines(record)
    return 0


def sizes(record: Engines) -> dict[str, int]:
    """Bytes of each engine by the name of its graph."""
    return {name: engine.bytes for name, engine in record.engines.items()}


def say_engines(record: Engines) -> None:
    """A line for the target and one for each engine."""
    built_for = ", ".join(record.compute_capabilities) or "portable"
    most = max(engine.peak_memory_bytes for engine in record.engines.values())
    say(
        f"{FOLDER}/{record.target}: {len(record.engines)} engines by {record.builder} ({built_for}), "
        f"each built in {size(most)} of memory or less"
    )
    for name, engine in record.engines.items():
        ranges = ", ".join(profile.name for profile in engine.profiles)
        profiles = f", profiles {ranges}" if ranges else ""
        plugins = f", plugin {', '.join(engine.plugins)}" if engine.plugins else ""
        say(f"  {name}: {size(engine.bytes)}{profiles}{plugins}")
    if (library := record.plugin_library) is not None:
        say(f"  plugins of {library.file} (SHA-256 {library.sha256[:12]}), which has to be loaded before the engines")
