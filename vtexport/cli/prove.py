"""Record what PyTorch answers with a bundle's checkpoint, as a proof that `vtexport validate` replays on a device.

Takes PyTorch, the checkpoint, and the memory that its weights take in float32; what it will take is said first.

examples:
  vtexport prove mini --checkpoint mini
  vtexport prove llava-64 --checkpoint llava --plan prunesid-64
  vtexport prove llava-64 --checkpoint llava --image street.jpg --image desk.png --prompt "What is in front?"
"""

from __future__ import annotations

import argparse
import os

from vtexport.bundle.proof import Proof, command_for, read_proof
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.cli.console import Progress, command_line, counted, say, say_json, size, typed_text
from vtexport.errors import BundleError, VtexportError

# Up to here a build makes a proof without being asked.
MOST_BYTES, MOST_SECONDS = 4e9, 60.0
SWITCH = "VTEXPORT_PROOF"  # "0" keeps a build from making one by itself


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="alias, hub id or folder that the bundle was made of; default: the one that its manifest names",
    )
    parser.add_argument(
        "--plan", action="append", metavar="NAME", dest="plans", help="a plan; may be repeated; default: all"
    )
    parser.add_argument(
        "--image",
        action="append",
        metavar="FILE",
        dest="images",
        help="a picture to ask about, copied into the bundle; may be repeated; default: the earlier proof's, or two "
        "that are generated",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        type=typed_text,
        metavar="TEXT",
        dest="prompts",
        help="a question, the first for the first picture and so on; may be repeated; default: the earlier proof's, or "
        "two fixed ones",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="where random weights are kept; default: $VTEXPORT_CACHE or ~/.cache/vtexport",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Makes the proof and says what is in it."""
    progress = Progress(args.quiet)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    bundle = open_bundle(args.bundle)
    from vtexport.assemble.progress import BuildProgress
    from vtexport.proof import prove

    proof = prove(
        bundle,
        args.checkpoint,
        plans=args.plans,
        images=args.images,
        prompts=args.prompts,
        cache_dir=args.cache_dir,
        report=BuildProgress(progress.stage, progress.note, progress.bytes_done),
        command=command_line(),
    )
    progress.stage("done")
    if args.json:
        say_json({"bundle": str(bundle.folder), **proof_summary(proof)})
    else:
        say_proof(proof)
    return 0


def check_torch() -> None:
    """Refuses a proof without PyTorch.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from vtexport.proof import reference

    reference.check_torch()


def prove_built(bundle: Bundle, args: argparse.Namespace, progress: Progress, wanted: bool | None) -> Proof | None:
    """The proof of a bundle that was just built, of those plans that have none; None with a note where none is made.

    Where nobody said whether it is `wanted`, it is made if PyTorch is there and the estimate is small enough, and what
    then goes wrong is a note as well: the bundle is in place.
    """
    if wanted is False:
        return None
    from vtexport.assemble.progress import BuildProgress
    from vtexport.proof import prove
    from vtexport.proof.prove import PRUNED_FAMILIES

    if wanted is None and os.environ.get(SWITCH) == "0":
        return None
    if wanted is None and bundle.manifest.family not in PRUNED_FAMILIES:
        return None
    later = f"`{command_for(bundle.folder, bundle.manifest)}` makes one"
    plans = _without_proof(bundle)
    if wanted is None and (why := _why_not(bundle, plans)) is not None:
        progress.note(f"no proof was recorded, because {why}; {later}")
        return None
    try:
        return prove(
            bundle,
            args.model,
            plans=plans,
            cache_dir=args.cache_dir,
            report=BuildProgress(progress.stage, progress.note, progress.bytes_done),
            command=command_line(),
        )
    except VtexportError as error:
        if wanted:
            raise
        progress.note(f"no proof was recorded ({error}); {later}")
        return None


def _without_proof(bundle: Bundle) -> list[str] | None:
    """Plans that have no proof yet; None for all."""
    try:
        found = read_proof(bundle.folder, bundle.manifest)
    except BundleError:  # it is made anew
        found = None
    if found is None:
        return None
    return [plan.name for plan in bundle.manifest.plans if plan.name not in found.proof.plans] or None


def _why_not(bundle: Bundle, names: list[str] | None) -> str | None:
    """The reason why a build makes no proof by itself; None where it does."""
    from importlib.util import find_spec

    from vtexport.proof.estimate import available_bytes, estimate
    from vtexport.proof.prove import NEW_TOKENS, PROMPTS

    if find_spec("torch") is None:
        return "PyTorch is not installed"
    plans = [plan for plan in bundle.manifest.plans if names is None or plan.name in names]
    takes = estimate(bundle.manifest, plans, len(PROMPTS), NEW_TOKENS)
    free = available_bytes()
    if takes.memory_bytes > MOST_BYTES or takes.seconds > MOST_SECONDS:
        return f"it would take {takes}"
    if free is not None and takes.memory_bytes > free / 2:
        return f"it would take {takes}, more than half of the {free / 1e9:.1f} GB that are free"
    return None


def proof_summary(proof: Proof) -> dict[str, object]:
    """A proof as `--json` tells of it."""
    return {
        "plans": sorted(proof.plans),
        "without_proof": proof.without_proof,
        "images": [each.origin for each in proof.images],
        "prompts": proof.prompts,
        "bytes": sum(each.bytes for each in proof.files.values()),
    }


def say_proof(proof: Proof) -> None:
    """A line on the whole and one for each plan."""
    total = sum(each.bytes for each in proof.files.values())
    asked = f"{counted(len(proof.images), 'image')}, {counted(len(proof.prompts), 'prompt')}"
    say(f"proof of {counted(len(proof.plans), 'plan')}: {asked}, {proof.new_tokens} tokens each; {size(total)}")
    for name, plan in sorted(proof.plans.items()):
        noise = plan.noise.get("logits")
        known = f"; rounding moves its logits by {noise.rms:.1e} of their root mean square" if noise else ""
        say(f"  {name}: {size(proof.files[plan.file].bytes)}{known}")
    for name, why in sorted(proof.without_proof.items()):
        say(f"  {name}: none, because {why}")
