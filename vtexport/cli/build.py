"""Build a bundle from a checkpoint, ready to run on this machine.

The model is an alias (`vtexport list models`), a hub id or a folder in Hugging Face layout. The bundle holds the ONNX
graphs, the weights, the tokenizer and a manifest; it is put in place whole or not at all.

examples:
  vtexport build --model mini --method prunesid --keep 64
  vtexport build --model llava --method prunesid --keep 64 -o llava-64
  vtexport build --model ./my-llava --method none
  vtexport build --model mini --keep 64,128 --target rtx      (TensorRT-RTX engines beside the graphs)
  vtexport build --model ./my-llava --precision fp16 --keep 64 --link-weights -o ./my-llava   (no copy of the weights)
  vtexport build --model mini --keep 32,64,128 --dynamic      (each image gets one of the budgets)
  vtexport build --model llava --weights random --keep 64     (true shapes, no download, answers are noise)
"""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

from vtexport.backends.recipe import Target
from vtexport.backends.registry import compile_bundle, compiler_for, runtimes
from vtexport.backends.targets import DEFAULT_TARGET, check_precision, find_target
from vtexport.bundle.manifest import Plan
from vtexport.bundle.onnxruntime import TYPES
from vtexport.cli.compile import add_engine_arguments, say_engines, sizes
from vtexport.cli.console import Progress, command_line, say, say_json, size
from vtexport.cli.prove import MOST_BYTES, MOST_SECONDS, check_torch, proof_summary, prove_built, say_proof
from vtexport.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_export_arguments(parser)
    parser.add_argument(
        "--target",
        default=DEFAULT_TARGET,
        metavar="NAME",
        help="what the bundle is built for: cpu (ONNX Runtime, the default) or rtx (TensorRT-RTX engines beside the "
        "graphs); see `vtexport list targets`",
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--proof",
        action=argparse.BooleanOptionalAction,
        help="record what PyTorch answers, for `vtexport validate`; default: where PyTorch is installed and that takes "
        f"at most {MOST_BYTES / 1e9:.0f} GB of memory and {MOST_SECONDS:.0f} s",
    )


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `build` and `export` share."""
    parser.add_argument(
        "-m", "--model", required=True, metavar="MODEL", help="alias, hub id or folder of the checkpoint"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="the bundle's folder; default: the model's name, here")
    parser.add_argument("--method", default="prunesid", metavar="NAME", help="pruning method; default: %(default)s")
    parser.add_argument(
        "--keep",
        type=budgets,
        metavar="N[,N...]",
        help="visual tokens per image, CLS included: those that enter the language model, or the mean over its layers "
        "for methods that also prune inside it; several make several plans",
    )
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="also an adaptive plan, by which each image gets one of the budgets (`vtexport adapt` sets it)",
    )
    parser.add_argument(
        "--mean", type=int, metavar="N", help="the average budget --dynamic aims at; default: the middle one"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=option,
        metavar="NAME=VALUE",
        dest="options",
        help="a parameter of the method (see `vtexport list methods`); may be repeated",
    )
    parser.add_argument(
        "--precision",
        metavar="fp32|fp16|bf16",
        help="of weights and matrix products; default: fp32, fp16 for target rtx; bf16 is for engines, ONNX Runtime "
        "does not run it on the CPU",
    )
    parser.add_argument(
        "--weights",
        default="stored",
        choices=("stored", "random"),
        help="stored: the checkpoint's own; random: the true shapes with seeded random values, no download",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for --weights random; default: 0")
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="where random weights are kept; default: $VTEXPORT_CACHE or ~/.cache/vtexport",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="discard a bundle that stands at the output; without it, plans are added to one of the same checkpoint",
    )
    parser.add_argument(
        "--link-weights",
        action="store_true",
        help="copy no weights: reflink them where the file system can, or put the graphs beside them with -o naming "
        "the checkpoint's own folder; needs the checkpoint's own precision",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Builds and says what was built."""
    target = find_target(args.target)
    if not target.buildable:
        raise UsageError(f"target {target.name} ({target.title}) cannot be built yet; leave --target out for cpu")
    args.precision = args.precision or target.default_precision
    check_precision(target, args.precision)
    if not runtimes()[target.runtime].has_engines:
        if args.compute_capability:
            raise UsageError(
                f"--compute-capability is for engines, and target {target.name} has none; give --target rtx"
            )
        return export_bundle(args, proof=args.proof)
    # Before the export, which takes minutes for a large model.
    compiler_for(target).check(target, args.compute_capability)
    return export_bundle(args, target, proof=args.proof)


def export_bundle(args: argparse.Namespace, target: Target | None = None, *, proof: bool | None = False) -> int:
    """Exports the bundle, builds its engines where a `target` has some, makes its proof, and says what is in it.

    Without a value for `proof` that is done where it takes little.
    """
    if proof:
        check_torch()  # before the export, too
    progress = Progress(args.quiet)
    progress.stage("loading the exporter")
    # A build needs no PyTorch, and transformers advises to install it; what does need it says so itself.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from vtexport.build import BuildProgress, build

    bundle = build(
        args.model,
        args.output,
        method=args.method,
        keep=args.keep,
        options=_once_each(args.options),
        dynamic=args.dynamic,
        mean=args.mean,
        precision=args.precision,
        weights=args.weights,
        seed=args.seed,
        cache_dir=args.cache_dir,
        replace=args.replace,
        link_weights=args.link_weights,
        report=BuildProgress(progress.stage, progress.note, progress.bytes_done),
        command=command_line(),
    )
    engines = None
    if target is not None:
        engines = compile_bundle(bundle, target, args.compute_capability, args.text_tokens, progress.stage)
    proved = prove_built(bundle, args, progress, proof)
    progress.stage("done")
    manifest = bundle.manifest
    total = sum(file.bytes for file in manifest.files.values())
    if args.json:
        plans = [{"name": plan.name, "visual_tokens": plan.visual_tokens} for plan in manifest.plans]
        adaptive = [{"name": each.name, "plans": each.plans, "mean": each.mean} for each in manifest.adaptive_plans]
        result = {"bundle": str(bundle.folder), "plans": plans, "adaptive_plans": adaptive, "bytes": total}
        result |= {"proof": proof_summary(proved)} if proved else {}
        say_json(result | ({"engines": sizes(engines)} if engines else {}))
        return 0
    say(f"{bundle.folder}: {len(manifest.files)} files, {size(total)}")
    for plan in manifest.plans:
        say(f"  {plan.name}: {manifest.vision.largest.tokens} -> {_tokens(plan)}")
    for each in manifest.adaptive_plans:
        say(f"  {each.name}: each image to one of {', '.join(each.plans)}, mean {each.mean}")
    if engines is not None:
        say_engines(engines)
    if proved is not None:
        say_proof(proved)
    if manifest.precision not in TYPES:  # ONNX Runtime cannot run it
        say(f"next: vtexport inspect {shlex.quote(str(bundle.folder))}")
        return 0
    if args.dynamic:
        say(f"next: vtexport adapt {shlex.quote(str(bundle.folder))} --images FOLDER")
        return 0
    built = manifest.plans[-max(1, len(args.keep or ()))]  # the plans of this build stand after those it found
    plan_flag = f" --plan {built.name}" if len(manifest.plans) > 1 else ""
    if engines is not None:
        say("the engines are for TensorRT-RTX in an application; vtexport run uses ONNX Runtime and the graphs")
    say(f'next: vtexport run {shlex.quote(str(bundle.folder))}{plan_flag} --image PHOTO --prompt "What is this?"')
    return 0


def _tokens(plan: Plan) -> str:
    """`64 visual tokens`, or `112 visual tokens, 16 from layer 16 on (64.0 a layer on average)`."""
    words = f"{plan.visual_tokens} visual tokens"
    if not plan.steps:
        return words
    by_layer = plan.tokens_by_layer()
    steps = ", ".join(f"{step.keep} from layer {step.layer} on" for step in plan.steps)
    return f"{words}, {steps} ({sum(by_layer) / len(by_layer):.1f} a layer on average)"


def _once_each(options: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(options)
    if len(given) < len(options):
        names = [name for name, _ in options]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"--set {twice} is given twice; give it once")
    return given


def budgets(text: str) -> list[int]:
    """`64` or `64,128,192`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a list of numbers such as 64,128") from None


def option(text: str) -> tuple[str, Any]:
    """`name=value`."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name.strip().replace("-", "_"), value
