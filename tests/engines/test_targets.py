from __future__ import annotations

from pathlib import Path

import pytest

from vtexport.engines.targets import find_target, list_targets
from vtexport.errors import UsageError, VtexportError


def test_recipes_of_the_repository() -> None:
    targets = {target.name: target for target in list_targets()}
    assert targets["cpu"].buildable
    for target in targets.values():
        assert (target.tensorrt is not None) == (target.runtime == "tensorrt"), target.name
        if target.tensorrt is not None:
            # opset 23's Attention, RMSNormalization and RotaryEmbedding came with TensorRT 10.15
            version = tuple(map(int, target.tensorrt.split(".")))
            assert target.dialect == ("modern" if version >= (10, 15) else "classic"), target.name


def test_a_misspelt_target() -> None:
    assert find_target("cpu").runtime == "onnxruntime"
    with pytest.raises(UsageError, match=r"'orin-jetpak-7.2' is not known; did you mean orin-jetpack-7.2\? known: cpu"):
        find_target("orin-jetpak-7.2")


@pytest.mark.parametrize("text", ["title = ", 'title = "x"', 'title = "x"\nruntime = "caffe"', 'speed = "fast"'])
def test_a_wrong_recipe_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(VtexportError, match=r"a.toml is not a target recipe"):
        list_targets(tmp_path)
