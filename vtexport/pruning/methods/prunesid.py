"""PruneSID (arXiv 2603.09480): group tokens by principal components, thin every group, share the budget among groups.

The defaults are those of the authors' LLaVA code; `variant` has those of the paper's text and of the authors' Qwen2-VL
code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vtexport.errors import UsageError
from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.prunesid import PruneSID
from vtexport.pruning.options import Option, Options, settings_of
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import ModelShape, after_space

_OFFICIAL: dict[str, Any] = {
    "center": "token",
    "nms_score": "cls_attention",
    "cls_slot": True,
    "redundancy": "pairs",
    "shares": "bounded",
    "space": "vision",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "official": _OFFICIAL,
    "paper": _OFFICIAL | {"center": "feature", "nms_score": "abs_v", "cls_slot": False, "shares": "proportional"},
    "qwen": _OFFICIAL | {"nms_score": "abs_v", "cls_slot": False, "redundancy": "triangle", "space": "projected"},
}
_QWEN_MOST_BY_GROUP = 150  # that code sorts what it keeps to raster order when there are more
_SMALLEST_KEEP = 4


@register
class PruneSIDMethod(Method):
    """One op, behind the vision tower or, in the Qwen2-VL code, behind the projector."""

    name = "prunesid"
    title = "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity"
    arxiv = "2603.09480"
    acts = "between the vision tower and the projector"
    budget = "visual tokens per image, the CLS token included unless cls_slot is off"
    op = PruneSID
    adaptive = True
    options = (
        Option(
            "variant",
            kind=str,
            default="official",
            choices=("official", "paper", "qwen"),
            about="where the other defaults come from: the authors' LLaVA code, the paper's text, their Qwen2-VL code",
        ),
        *settings_of(PruneSID),
        Option(
            "space",
            kind=str,
            choices=("vision", "projected"),
            about="features before the projector, or behind it (qwen)",
        ),
    )

    def takes_cls(self, options: Options, *, has_cls: bool = True) -> bool:
        if options["cls_slot"] is None:
            return bool(_default(options, "cls_slot")) and has_cls
        return bool(options["cls_slot"])

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        tokens, qwen, space = model.tokens, options["variant"] == "qwen", _space(options)
        takes_cls = self.takes_cls(options, has_cls=model.has_cls)
        if takes_cls and not model.has_cls:
            raise UsageError("cls_slot=True is not allowed: this vision tower has no CLS token; give cls_slot=false")
        if takes_cls and space == "projected":
            raise UsageError("cls_slot=True is not allowed with space=projected, where CLS is not; give cls_slot=false")
        slot = int(takes_cls)
        unit = "CLS included" if slot else "patches"
        keep = check_keep(self.name, keep, smallest=_SMALLEST_KEEP, largest=tokens + slot, unit=unit)
        groups = options.set_or("groups", max(keep // 4, 4 if qwen else 1))
        if groups > keep - slot:  # every group that is not empty gives at least one token
            raise UsageError(
                f"groups={groups} is not allowed with keep={keep}; give a whole number from 1 to {keep - slot}"
            )
        by_variant = ("center", "nms_score", "redundancy", "shares")
        op = PruneSID.of(
            options,
            groups=groups,
            threshold_scale=options.set_or("threshold_scale", max(18 * keep / tokens, 1.0) if qwen else keep / 32),
            order=options.set_or("order", "raster" if qwen and keep > _QWEN_MOST_BY_GROUP else "group"),
            cls_slot=takes_cls,
            **{name: options.set_or(name, _default(options, name)) for name in by_variant},
        )
        return PlacedOp(after_space(space), op, tokens, keep)

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        schedule, space = super().plan(options, model, keep), _space(options)
        # Eq. 7 of the paper gives an image tokens by 1 - rho, rho being that of the features before the projector.
        adaptive = space == "vision" and schedule.settings["redundancy"] == "pairs"
        return dataclasses.replace(schedule, settings={**schedule.settings, "space": space}, adaptive=adaptive)


def _default(options: Options, name: str) -> Any:
    return _DEFAULTS[options["variant"]][name]


def _space(options: Options) -> str:
    return str(options.set_or("space", _default(options, "space")))
