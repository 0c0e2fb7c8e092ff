"""Polygraphy on every graph of a bundle of mini, of the four methods with papers: `inspect model` and `run --onnxrt`.

docs/polygraphy.md shows the commands.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import onnx
import pytest

from vtexport.build import build

METHODS = ("prunesid", "svdprune", "vitcop", "nuwa")
LENGTHS = {"S": 200, "P": 7}
# Where the visual tokens begin, as the prompt has it; without it polygraphy takes a number up to 25
RANGES = ["visual_start:[5,5]", "labels:[0,63]", "position_ids:[7,206]", "[0.0,1.0]"]
# Of graphs whose op only a native library has
NO_FUNCTION = ".native.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("polygraphy") / "mini"
    for method in METHODS:
        build("mini", bundle, method=method, keep=64)
    return bundle / "onnx"


def polygraphy(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command of polygraphy."""
    from polygraphy.tools import main

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = main([str(each) for each in arguments])
    return int(code or 0), shown.getvalue()


def shapes(path: Path) -> list[str]:
    """Shapes of all inputs as `--input-shapes` takes them."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    sizes = {v.name: [LENGTHS.get(d.dim_param, d.dim_value) for d in v.type.tensor_type.shape.dim] for v in inputs}
    return [f"{name}:[{','.join(map(str, shape))}]" for name, shape in sizes.items()]


def test_every_kind_of_graph_is_there(folder: Path) -> None:
    kinds = {path.stem.partition("-64.")[2] or path.stem.partition(".")[0] for path in folder.glob("*.onnx")}
    assert {"prune", "prune_llm_0", "prune_llm_1", "prune.native", "vision", "decoder_0", "decoder_6-7"} <= kinds
    for dialect in ("modern", "classic"):
        assert len(list(folder.glob(f"vision*.{dialect}.onnx"))) == 4
        assert len(list(folder.glob(f"decoder*.{dialect}.onnx"))) == 6


def test_every_graph_is_shown(folder: Path) -> None:
    for path in sorted(folder.glob("*.onnx")):
        code, shown = polygraphy("inspect", "model", path, "--show", "layers")
        assert code == 0, shown
        graph = onnx.load(path, load_external_data=False).graph
        for value in (*graph.input, *graph.output):
            assert f"{value.name} [dtype=" in shown
        assert shown.count("[Op: ") == len(graph.node)


def test_every_graph_runs(folder: Path) -> None:
    graphs = [path for path in sorted(folder.glob("*.onnx")) if not path.name.endswith(NO_FUNCTION)]
    for path in graphs:
        given = ["--input-shapes", *shapes(path), "--val-range", *RANGES]
        code, shown = polygraphy("run", path, "--onnxrt", *given, "--validate")
        assert (code, "PASSED" in shown) == (0, True), f"{path.name}\n{shown}"
        for value in onnx.load(path, load_external_data=False).graph.output:
            assert f"{value.name} [dtype=" in shown.partition("Inference Output")[2], path.name


def test_a_graph_without_the_function_is_refused(folder: Path) -> None:
    """Stock ONNX Runtime has no such op, and polygraphy's command registers no library."""
    with pytest.raises(Exception, match=r"VtxSVDPrune.* is not a registered"):
        polygraphy("run", folder / "svdprune-64.prune.native.onnx", "--onnxrt")
