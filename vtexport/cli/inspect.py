"""Say what a bundle holds: source, image and text processing, plans with budgets, engines, graphs, files.

With --verify every file is read and its SHA-256 compared with the manifest, every engine's and the proof's with their
records; damage, and engines or a proof of another manifest, end with exit code 4. With --target it estimates instead
what the plans take on a device: lower bounds of time and a sum of memory.

examples:
  vtexport inspect mini
  vtexport inspect mini --verify
  vtexport inspect mini --target orin-jetpack-7.2/orin-nano-8gb --plan prunesid-64
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import msgspec

from vtexport.backends.estimate import NEW_TOKENS, TEXT_TOKENS
from vtexport.backends.record import FoundEngines, find_engines, verify_engines
from vtexport.backends.targets import find_devices
from vtexport.bundle.adaptive import Adaptation, read_adaptations
from vtexport.bundle.manifest import Generation, Image, Manifest, Needs, Plan, Tensor
from vtexport.bundle.memory import kv_bytes, kv_bytes_by_layer
from vtexport.bundle.proof import FoundProof, read_proof
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.bundle.views import Arrangement
from vtexport.cli.adapt import say_adaptation
from vtexport.cli.compile import say_engines
from vtexport.cli.console import Progress, counted, say, say_json, size, table
from vtexport.cli.estimates import as_json, estimate, say_estimates
from vtexport.errors import BundleError, UsageError, printable

_FIRST_OF_SAMPLING = "do_sample"  # before it in `Generation` stand the logits processors, which are always done


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its SHA-256")
    parser.add_argument("--json", action="store_true", help="print the manifest and what follows from it as JSON")
    parser.add_argument(
        "--target",
        metavar="NAME[/DEVICE]",
        help="estimate time and memory on a target's devices, or on one of them; see `vtexport list targets`",
    )
    parser.add_argument("--plan", metavar="NAME", help="of the estimates; default: every plan")
    lengths = (
        ("--text-tokens", TEXT_TOKENS, "tokens of the question with its template"),
        ("--new-tokens", NEW_TOKENS, "tokens of the answer"),
    )
    for flag, default, about in lengths:
        parser.add_argument(flag, type=int, metavar="N", help=f"of the estimates: {about}; default: {default}")


def run(args: argparse.Namespace) -> int:
    """Describes, and verifies where asked; or estimates."""
    asked = {"--plan": args.plan, "--text-tokens": args.text_tokens, "--new-tokens": args.new_tokens}
    if args.target is None and (given := [flag for flag, value in asked.items() if value is not None]):
        raise UsageError(f"{' and '.join(given)} are of the estimates for a target; give --target as well")
    if args.target is not None and args.verify:
        raise UsageError("--verify and --target are two different things; give one of them")
    if args.target is not None:
        find_devices(args.target)  # refuses an unknown one before the bundle is read
    bundle = open_bundle(args.bundle)
    adaptations = read_adaptations(bundle.folder, bundle.manifest)
    engines = find_engines(bundle)
    proof, unproven = _find_proof(bundle)
    if args.target is not None:
        text_tokens = TEXT_TOKENS if args.text_tokens is None else args.text_tokens
        new_tokens = NEW_TOKENS if args.new_tokens is None else args.new_tokens
        found_for_target = estimate(bundle, args.target, args.plan, engines, text_tokens, new_tokens)
        if args.json:
            say_json(as_json(*found_for_target))
        else:
            say_estimates(*found_for_target)
        return 0
    problems = _verify(bundle) if args.verify else None
    engine_problems = [*engines.damaged, *(engines.outdated + _verify_engines(engines) if args.verify else [])]
    proof_problems = unproven if args.verify else []
    if args.json:
        manifest = msgspec.to_builtins(bundle.manifest)
        plans = bundle.manifest.plans
        kv = {plan.name: kv_bytes(bundle.manifest, plan) for plan in plans}
        layers = {
            plan.name: {"visual_tokens": plan.tokens_by_layer(), "kv_bytes": kv_bytes_by_layer(bundle.manifest, plan)}
            for plan in plans
        }
        adaptive = {name: msgspec.to_builtins(each) for name, each in adaptations.items()}
        built = [msgspec.to_builtins(record) for record in engines.usable.values()]
        unusable = engines.damaged + engines.outdated
        found = {
            "manifest": manifest,
            "image_kv_bytes": kv,
            "by_layer": layers,
            "engines": built,
            "unusable_engines": unusable,
        }
        every = None if problems is None else problems + engine_problems + proof_problems
        verified = None if every is None else not every
        found |= {"proof": _proof_json(proof), "unusable_proof": unproven}
        say_json(found | {"adaptive": adaptive, "verified": verified, "problems": every})
    else:
        _describe(bundle, engines, adaptations)
        _describe_proof(proof, unproven)
    if problems:
        raise BundleError(f"{bundle.folder} is damaged: {_first(problems)}; build or copy the bundle again")
    if engine_problems:
        raise BundleError(_first(engine_problems))
    if proof_problems:
        raise BundleError(_first(proof_problems))
    if problems is not None and not args.json:
        say(f"verified: all {len(bundle.manifest.files)} files have the SHA-256 that the manifest states")
        if count := _count(engines):
            say(f"verified: {counted(count, 'engine')} with the SHA-256 that engines.json states")
        if proof is not None:
            files = counted(len(proof.proof.files), "file")
            say(f"verified: {files} of the proof with the SHA-256 that proof.json states")
    return 0


def _find_proof(bundle: Bundle) -> tuple[FoundProof | None, list[str]]:
    """The proof, every file of it hashed, or why it is none of this bundle."""
    try:
        return read_proof(bundle.folder, bundle.manifest), []
    except BundleError as error:
        return None, [str(error)]


def _proof_json(found: FoundProof | None) -> dict[str, object] | None:
    if found is None:
        return None
    proof = found.proof
    return {
        "plans": sorted(proof.plans),
        "without_proof": proof.without_proof,
        "images": len(proof.images),
        "prompts": len(proof.prompts),
        "bytes": sum(file.bytes for file in proof.files.values()),
    }


def _describe_proof(found: FoundProof | None, problems: list[str]) -> None:
    """Prints the plans that a proof is of, or the reason why it cannot be used."""
    if found is None and not problems:
        return
    say()
    for sentence in problems:
        say(sentence)
    if found is not None:
        proof = found.proof
        asked = f"{counted(len(proof.images), 'image')}, {counted(len(proof.prompts), 'prompt')}"
        total = size(sum(file.bytes for file in proof.files.values()))
        say(f"proof of {', '.join(sorted(proof.plans)) or 'no plan'} ({asked}, {total})")
        for name, why in sorted(proof.without_proof.items()):
            say(f"  none of {name}: {why}")


def _first(problems: list[str]) -> str:
    """The first of them, and how many there are beyond it."""
    return problems[0] + (f" and {len(problems) - 1} more" if len(problems) > 1 else "")


def _verify(bundle: Bundle) -> list[str]:
    total = sum(file.bytes for file in bundle.manifest.files.values())
    with Progress().bytes_done("verifying", total) as done:
        return bundle.verify(lambda _, count: done(count))


def _count(engines: FoundEngines) -> int:
    return sum(len(record.engines) for record in engines.usable.values())


def _verify_engines(engines: FoundEngines) -> list[str]:
    if not _count(engines):
        return []
    total = sum(engine.bytes for record in engines.usable.values() for engine in record.engines.values())
    with Progress().bytes_done("verifying engines", total) as done:
        return verify_engines(engines, done)


def _describe(bundle: Bundle, engines: FoundEngines, adaptations: Mapping[str, Adaptation]) -> None:
    manifest = bundle.manifest
    source, vision, decoder = manifest.source, manifest.vision, manifest.decoder
    weights = f"random weights, seed {source.seed}" if source.weights == "random" else "stored weights"
    revision = f" at {source.revision}" if source.revision else ""
    total = sum(file.bytes for file in manifest.files.values())
    say(f"{manifest.name}: {manifest.family}, {manifest.precision}, {len(manifest.files)} files, {size(total)}")
    say(f"  source   {source.id}{revision} ({source.kind}, {weights})")
    say(f"  made     {manifest.created_at} by vtexport {manifest.versions.get('vtexport')}: {manifest.command}")
    for arrangement in vision.arrangements:
        say(f"  vision   {_views(arrangement)} = {arrangement.tokens} tokens of {vision.hidden_size}")
    heads = f"{decoder.num_attention_heads} heads, {decoder.num_key_value_heads} of keys and values"
    say(f"  decoder  {decoder.num_hidden_layers} layers of {decoder.hidden_size}, {heads}")
    say(f"  weights  {_stored(manifest)}")
    _describe_processing(manifest)
    say()
    rows = []
    for plan in manifest.plans:
        share = plan.visual_tokens / vision.largest.tokens
        rows.append(
            (plan.name, str(plan.visual_tokens), f"{100 * share:.1f} %", size(kv_bytes(manifest, plan)), plan.positions,
             plan.paper or "-", _parameters(plan))
        )  # fmt: skip
    say(table(rows, ("plan", "visual tokens", "of all", "image KV", "positions", "paper", "parameters")))
    for plan in manifest.plans:
        if plan.steps:
            say()
            say(f"{plan.name} inside the language model, {plan.keep} visual tokens a layer on average:")
            by_layer = plan.tokens_by_layer(), kv_bytes_by_layer(manifest, plan)
            layers = [(str(n), str(tokens), size(kv)) for n, (tokens, kv) in enumerate(zip(*by_layer, strict=True))]
            say(table(layers, ("layer", "visual tokens", "image KV")))
    for each in manifest.adaptive_plans:
        say()
        say(f"adaptive plan {each.name}: each image to one of {', '.join(each.plans)}, mean {each.mean}")
        if each.name in adaptations:
            say_adaptation(adaptations[each.name])
        else:
            say(f"  not set by images yet: vtexport adapt {bundle.folder} --images FOLDER")
    for record in engines.usable.values():
        say()
        say_engines(record)
    for name, graph in sorted(manifest.graphs.items()):
        say()
        say(f"{name} ({graph.file}, {size(manifest.files[graph.file].bytes)}, {_needs(graph.needs)})")
        for direction, tensors in (("in ", graph.inputs), ("out", graph.outputs)):
            for line in _tensor_lines(tensors):
                say(f"  {direction}  {line}")
    for sentence in engines.outdated:
        say()
        say(sentence)


def _describe_processing(manifest: Manifest) -> None:
    """Prints transformers' decisions on images, text and generation, the comparison with it, and the build's notes."""
    text, generation = manifest.text, manifest.generation
    say(f"  images   {manifest.image.processor}: {_image_steps(manifest.image)}")
    source = "vtexport's own for the family" if text.chat_template_source == "vtexport" else text.chat_template_source
    ends = ", ".join(map(str, text.eos_token_ids))
    say(f"  text     chat template: {source or text.chat_template}; image token {text.image_token}; end tokens: {ends}")
    names = Generation.__struct_fields__
    first = names.index(_FIRST_OF_SAMPLING)
    if always := _set_in(generation, names[:first]):
        say(f"  answers  {always}")
    if asked := _set_in(generation, names[first:]):
        say(f"           with --sampling checkpoint: {asked}")
    if (check := manifest.self_check) is not None:
        kinds = f"pixels ({', '.join(check.images)}) and token ids ({', '.join(check.conversations)})"
        levels = check.torchvision_levels
        beside = "" if levels is None else f"; its torchvision form's pixels differ by up to {levels:g} of 255"
        say(f"  checked  {kinds} equal transformers'{beside}")
    for note in manifest.notes:
        say(f"  note     {printable(note)}")


def _stored(manifest: Manifest) -> str:
    """`decoder 5.9 MB (float32), embedding 240.6 kB (float32)`."""
    return ", ".join(
        f"{part.replace('_', ' ')} {size(group.bytes)} ({group.dtype})"
        for part, groups in manifest.weights.items()
        for group in groups
    )


def _views(arrangement: Arrangement) -> str:
    """`336 x 336 px, 24 x 24`, or such a text for each view."""
    return " + ".join(
        f"{view.height} x {view.width} px, {view.grid_height} x {view.grid_width}" for view in arrangement.views
    )


def _image_steps(image: Image) -> str:
    """The steps from an upright RGB image to pixel values, in their order."""
    steps = []
    if image.pad_to_square is not None:
        steps.append(f"padded to a square with {tuple(image.pad_to_square)}")
    if image.resize_shortest is not None:
        steps.append(f"shorter side to {image.resize_shortest} px ({image.resample})")
    elif image.resize_height is not None:
        steps.append(f"resized to {image.resize_height} x {image.resize_width} px ({image.resample})")
    if image.crop_height is not None:
        steps.append(f"centre {image.crop_height} x {image.crop_width} px")
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (image.mean, image.std))
    return ", ".join([*steps, f"times {image.rescale:.4g}, mean {mean}, std {std}"])


def _set_in(generation: Generation, names: tuple[str, ...]) -> str:
    """The settings among `names` that are not the default's."""
    default = Generation()
    set_here = {name: getattr(generation, name) for name in names}
    return ", ".join(f"{name}={value}" for name, value in set_here.items() if value != getattr(default, name))


def _needs(needs: Needs) -> str:
    """`opset 23`, and the native ops that a graph cannot do without."""
    return ", ".join([f"opset {needs.opset}", *(f"native {op}" for op in needs.native_ops)])


def _parameters(plan: Plan) -> str:
    return ", ".join(f"{name}={value}" for name, value in plan.parameters.items()) or "-"


def _tensor_lines(tensors: list[Tensor]) -> list[str]:
    """One line a tensor; the layers' keys and values, which differ only in the number, share one."""
    lines: dict[str, list[str]] = {}
    for tensor in tensors:
        parts = tensor.name.split(".")
        number = parts[1] if len(parts) == 3 and parts[1].isdigit() else None
        shown = f"{parts[0]}.*.{parts[2]}" if number is not None else tensor.name
        key = f"{shown} [{', '.join(map(str, tensor.shape))}] {tensor.dtype}"
        lines.setdefault(key, []).append(number or "")
    return [f"{line} (layers {ns[0]} to {ns[-1]})" if ns[0] else line for line, ns in lines.items()]
