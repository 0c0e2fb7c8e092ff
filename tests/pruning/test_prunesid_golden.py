"""The three forms against the authors' code: index for index, with its intermediate values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vtexport.pruning import diagnostic_model, op_model, select

FILES = sorted((Path(__file__).parents[1] / "data" / "golden").glob("prunesid_llava_*.npz"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem.removeprefix("prunesid_llava_"))
def case(request: Any, golden_images: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """Features, scores and the expected values."""
    name = request.param.stem.removeprefix("prunesid_llava_").split("_")[0]
    images = slice(None) if name == "batch5" else slice(int(name[4:]) - 1, int(name[4:]))
    return golden_images[0][images], golden_images[1][images], np.load(request.param)


def agrees(found: dict[str, Any], golden: Any) -> None:
    np.testing.assert_array_equal(found["groups"], golden["groups"])
    np.testing.assert_array_equal(found["survivors"], golden["m_g"])
    np.testing.assert_array_equal(found["taken"], golden["n_g"])
    np.testing.assert_allclose(found["rho"], golden["rho"], atol=2e-7)
    np.testing.assert_allclose(found["tau"], golden["tau"], atol=1e-6)


def test_all_cases_are_here() -> None:
    assert len(FILES) == 13


def test_numpy_reference(case: Any) -> None:
    features, scores, golden = case
    found = select("prunesid", features, scores, keep=golden["indices"].shape[1])
    np.testing.assert_array_equal(found.keep_indices, golden["indices"].astype(int) - 1)
    agrees(found.details, golden)
    assert found.keep_indices.dtype == np.int64
    rows = np.take_along_axis(features, golden["indices"].astype(int)[:, :, None], axis=1)
    assert found.kept_features.dtype == np.float16
    assert found.kept_features.tobytes() == rows.tobytes()


def test_torch_reference(case: Any) -> None:
    features, scores, golden = case
    tensors = torch.from_numpy(features), torch.from_numpy(scores)
    found = select("prunesid", *tensors, keep=golden["indices"].shape[1])
    assert isinstance(found.keep_indices, torch.Tensor)
    assert found.kept_features.dtype == torch.float16
    np.testing.assert_array_equal(found.keep_indices, golden["indices"].astype(int) - 1)
    agrees({name: value.numpy() for name, value in found.details.items()}, golden)
    rows = torch.from_numpy(golden["indices"].astype(np.int64))
    assert torch.equal(
        found.kept_features, torch.stack([image[row] for image, row in zip(tensors[0], rows, strict=True)])
    )


def test_stock_onnx_runtime(case: Any, stock: Any) -> None:
    features, scores, golden = case
    batch, keep = golden["indices"].shape
    request = {"tokens": 576, "width": 1024, "keep": keep, "batch": batch, "dtype": "float16"}
    found = stock(op_model("prunesid", **request))(features=features, scores=scores)
    np.testing.assert_array_equal(found["keep_indices"], golden["indices"].astype(int) - 1)
    rows = np.take_along_axis(features, golden["indices"].astype(int)[:, :, None], axis=1)
    assert found["kept_features"].tobytes() == rows.tobytes()

    values = stock(diagnostic_model("prunesid", **request))(features=features, scores=scores)
    agrees(values, golden)
    np.testing.assert_array_equal(values["keep_indices"], found["keep_indices"])
    assert values["residual"].max() <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_types_select_the_same(dtype: str, golden_images: Any, stock: Any) -> None:
    """The golden features are exact in all three types."""
    import ml_dtypes
    import onnxruntime as ort

    features, scores = golden_images[0][:1], golden_images[1][:1]
    golden = np.load(next(path for path in FILES if path.stem.endswith("seed1_N64")))
    model = op_model("prunesid", tokens=576, width=1024, keep=64, dtype=dtype)
    if dtype == "float32":
        found = stock(model)(features=features.astype(np.float32), scores=scores)["keep_indices"]
    else:  # NumPy has no bfloat16 of its own, so the tensor goes in by its bits
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        bits = features.astype(ml_dtypes.bfloat16).view(np.uint16)
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, model.graph.input[0].type.tensor_type.elem_type)
        inputs = {"features": value, "scores": ort.OrtValue.ortvalue_from_numpy(scores)}
        found = session.run_with_ort_values(["keep_indices"], inputs)[0].numpy()
    np.testing.assert_array_equal(found, golden["indices"].astype(int) - 1)
