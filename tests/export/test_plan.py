"""Plans against what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_llava import make_config

from vtexport.errors import InputError
from vtexport.export.plan import PlanSpec, check_stored, make_plans, shape_of
from vtexport.models.parts import ModelSpec
from vtexport.models.registry import family_of
from vtexport.pruning import get_method, make_options

LLAVA = family_of("llava", "")

METHODS = {"nuwa": 16, "prunesid": 16, "visionzip": 16, "vitcop": 16, "none": 64}
POST = ("vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias")
LAST = "vision_tower.encoder.layers.3.layer_norm1.bias"  # after the feature layer, the output of block 2


def plans_of(name: str, spec: ModelSpec) -> tuple[PlanSpec, ...]:
    method = get_method(name)
    return make_plans(method, [METHODS[name]] if name != "none" else None, make_options(method, {}), shape_of(spec))


@pytest.mark.parametrize("method", METHODS)
def test_blocks_behind_the_feature_layer_are_needed_by_what_reads_them(method: str, tmp_path: Path) -> None:
    spec = LLAVA.model_spec(make_config(), tmp_path)
    plans = plans_of(method, spec)
    check_stored(plans, spec, POST)
    if method != "nuwa":
        check_stored(plans, spec, (*POST, LAST))
        return
    with pytest.raises(InputError, match=rf"nuwa reads the outputs .* lacks 1 tensors .*{LAST}.*give another method"):
        check_stored(plans, spec, (*POST, LAST))


def test_a_feature_layer_at_the_end_leaves_nothing_behind(tmp_path: Path) -> None:
    config = make_config()
    config.vision_feature_layer = -1
    spec = LLAVA.model_spec(config, tmp_path)
    assert spec.optional() == tuple(f"vision_tower.post_layernorm.{part}" for part in ("weight", "bias"))
    check_stored(plans_of("nuwa", spec), spec, POST)
