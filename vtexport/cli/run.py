"""Ask a bundle about an image, several or none; the answer is streamed to stdout.

examples:
  vtexport run mini --image photo.jpg --prompt "What is on the table?"
  vtexport run llava-64 --image photo.jpg --prompt "Describe the scene." --temperature 0.7 --top-p 0.9 --seed 1
  vtexport run llava-64 --image photo.jpg --prompt "Describe the scene." --sampling checkpoint
  vtexport run llava-64 --image photo.jpg --prompt "Is there a person?" --json
  vtexport run llava-64 --image before.jpg --image after.jpg --prompt "What has changed?"
  vtexport run llava-64 --no-image --prompt "What is a visual token?"
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtexport.cli.console import say, say_json, tell, typed_text

if TYPE_CHECKING:
    from vtexport.runtime.pipeline import Pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_pipeline_arguments(parser, several=True)
    parser.add_argument("--prompt", type=typed_text, required=True, metavar="TEXT", help="the question")
    parser.add_argument(
        "--raw-prompt",
        action="store_true",
        help="--prompt is the whole text with a placeholder for each image, no chat template",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 128")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token; default: 0")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from this much probability; default: 1")
    parser.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    parser.add_argument(
        "--sampling",
        default="greedy",
        metavar="greedy|checkpoint",
        help="checkpoint: sampling and length by the checkpoint's generation configuration where no argument says it; "
        "default: %(default)s",
    )
    add_logits_processors_argument(parser)


def add_logits_processors_argument(parser: argparse.ArgumentParser) -> None:
    """The argument of every verb that answers."""
    parser.add_argument(
        "--no-logits-processors",
        action="store_false",
        dest="logits_processors",
        help="leave out the checkpoint's logits processors, such as a repetition penalty (`vtexport inspect`)",
    )


def add_pipeline_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The arguments of every verb that runs a bundle on an image, or on `several`: then `image` is a list of paths."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    formats = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF"
    if several:
        images = parser.add_mutually_exclusive_group(required=True)
        images.add_argument("--image", action="append", metavar="FILE", help=f"{formats}; again for each further image")
        images.add_argument("--no-image", action="store_const", const=[], dest="image", help="a question without one")
    else:
        parser.add_argument("--image", required=True, metavar="FILE", help=formats)
    parser.add_argument("--plan", metavar="NAME", help="which plan, of several (`vtexport inspect`)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one operator; default: all cores")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline that those arguments ask for."""
    from vtexport.runtime.pipeline import Pipeline

    pipeline = Pipeline.open(args.bundle, args.plan, device=args.device, threads=args.threads)
    for note in pipeline.notes:
        tell(f"note: {note}")
    return pipeline


def tell_warnings(warnings: Sequence[str]) -> None:
    """Prints what the method reports of an image that is not as it should be."""
    for warning in warnings:
        tell(f"warning: {warning}")


def run(args: argparse.Namespace) -> int:
    """Answers."""
    answer = open_pipeline(args).generate(
        args.image,
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        sampling=args.sampling,
        logits_processors=args.logits_processors,
        raw_prompt=args.raw_prompt,
        stream=None if args.json else lambda piece: say(piece, end=""),
    )
    if args.json:
        say_json(dataclasses.asdict(answer))
    else:
        say()
    tell_warnings(answer.warnings)
    if args.json:
        return 0
    times = answer.timings_ms
    stages = ", ".join(f"{name} {times[name]:.1f}" for name in ("preprocess", "vision", "prune", "prefill"))
    count = len(answer.token_ids)
    choices = [(image.plan, image.route) for image in answer.images if image.route]
    chosen = "".join(
        f"; {choice.route}: rho {choice.redundancy:.3f} wants {choice.wanted:.1f}"
        + (f", gets {plan}" if len(choices) > 1 else "")
        for plan, choice in choices
    )
    images = len(answer.images)
    visual = f"{answer.visual_tokens} visual tokens" + (f" of {images} images" if images > 1 else "")
    tell(
        f"{visual if images else 'no image'}, {answer.prompt_tokens} in the prompt; {stages} ms; "
        f"first token after {times['first_token']:.1f} ms, {count} tokens, {times['total']:.1f} ms in all "
        f"({answer.plan} on {args.device}{chosen})"
    )
    return 0
