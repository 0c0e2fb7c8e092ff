"""The stand-in for array-api-compat gives the references' answers, to the bit where the arithmetic is the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_check import array_api
from native_ops.cases import RANDOM_KINDS, STEPS, random_case

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
if sys.argv[1] == "without":
    sys.modules["array_api_compat"] = None  # as where it is not installed
    from gpu_check import array_api
    assert array_api.install()
from benchmark_cases import digests
print(digests())
"""


def digests() -> dict[str, str]:
    """The cases' answers in short, as the references give them with NumPy."""
    found = {}
    for kind in RANDOM_KINDS:
        for seed in range(3):
            case = random_case(seed, kind, **({} if kind in STEPS else {"grid": (7, 9)}))
            parts = [np.round(np.asarray(each, np.float64), 9) + 0.0 for each in case.expected.values()]
            found[case.name] = hashlib.sha256(b"".join(each.tobytes() for each in parts)).hexdigest()
    return found


def test_references_answer_the_same_without_the_package() -> None:
    paths = [ROOT, ROOT / "tools", ROOT / "benchmarks", ROOT / "tests" / "benchmarks"]
    script = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n{SCRIPT}"
    script = script.replace("benchmark_cases", Path(__file__).stem)
    runs = [
        subprocess.run([sys.executable, "-c", script, each], capture_output=True, text=True, check=True).stdout
        for each in ("with", "without")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count("float") > 20


@pytest.mark.parametrize("method", ["prunesid", "svdprune", "vitcop", "nuwa", "divprune", "cdpruner"])
def test_torch_tensors_too(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtexport.pruning import select

    case = random_case(3, method)
    call, rng = case.call, np.random.default_rng(1)
    tokens = call.sizes.grid_rows * call.sizes.grid_columns
    inputs = {"features": rng.standard_normal((1, tokens + (method == "prunesid"), 24)).astype(np.float32)}
    further = {
        "prunesid": {"scores": rng.random((1, tokens), np.float32)},
        "vitcop": {
            "scores": rng.random((1, tokens), np.float32),
            "keys": rng.standard_normal((1, tokens, 2, 8)).astype(np.float32),
        },
        "nuwa": {
            "scores": rng.random((1, tokens), np.float32),
            "similarity_features": rng.standard_normal((1, tokens, 24)).astype(np.float32),
        },
        "cdpruner": {"text_embeds": rng.standard_normal((1, 5, 24)).astype(np.float32)},
    }
    inputs |= further.get(method, {})
    options = {"clusters": True} if method == "vitcop" else {}
    request = {"keep": min(12, tokens), "grid": (call.sizes.grid_rows, call.sizes.grid_columns), **options}
    expected = select(method, **inputs, **request)
    import array_api_compat

    import vtexport.pruning.arrays

    for module in (array_api_compat, vtexport.pruning.arrays):
        monkeypatch.setattr(module, "array_namespace", array_api.array_namespace)
        monkeypatch.setattr(module, "device", array_api.device)
    found = select(method, **{name: torch.from_numpy(each) for name, each in inputs.items()}, **request)
    assert isinstance(found.keep_indices, torch.Tensor)
    np.testing.assert_array_equal(found.keep_indices, expected.keep_indices)
    for name, value in expected.details.items():
        np.testing.assert_allclose(np.asarray(found.details[name]), value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_arrays_of_two_kinds_have_no_namespace() -> None:
    with pytest.raises(TypeError, match="numpy, torch"):
        array_api.array_namespace(np.zeros(2), torch.zeros(2))
    assert array_api.NumPy.isdtype(np.dtype(np.int64), ("bool", "integral"))
    assert not array_api.NumPy.isdtype(np.dtype(np.float32), ("bool", "integral"))
