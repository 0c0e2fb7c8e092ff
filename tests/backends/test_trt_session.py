"""Running engines, as far as that can be tested without a GPU; `tests/gpu` runs them where there is one."""

from __future__ import annotations

import ctypes
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtexport.backends.trt import cuda_driver, session
from vtexport.backends.trt.cuda_driver import Device
from vtexport.backends.trt.flavour import TENSORRT_RTX
from vtexport.backends.trt.profiles import profiles
from vtexport.backends.trt.session import NUMPY, EngineRunner, choose_profile
from vtexport.bundle.reader import open_bundle
from vtexport.errors import InputError, MissingDependencyError, UsageError, VtexportError


@pytest.fixture(scope="module")
def ranges(tiny_bundle: Path) -> list[Any]:
    """Of the tiny decoder: prefill for 16 and for 32 visual tokens, decode."""
    manifest = open_bundle(tiny_bundle).manifest
    return [profile.shapes for profile in profiles(manifest, manifest.graphs["decoder_0.modern"], 100)]


def lengths(ranges: list[Any], new: int, past: int) -> dict[str, list[int]]:
    return {
        name: [1, new if not name.startswith("past") else past, *limits[0][2:]] for name, limits in ranges[0].items()
    }


@pytest.mark.parametrize(
    ("new", "past", "profile"),
    [(17, 0, 0), (60, 0, 0), (116, 0, 0), (117, 0, 1), (132, 0, 1), (1, 1, 2), (2, 255, 2), (1, 200, 2)],
)
def test_the_profile_that_holds_the_shapes(ranges: list[Any], new: int, past: int, profile: int) -> None:
    assert choose_profile(ranges, lengths(ranges, new, past)) == profile


def test_shapes_that_no_profile_holds(ranges: list[Any]) -> None:
    with pytest.raises(
        UsageError, match=r"take inputs_embeds of shape \[1, 200, 72\], only \[1, 17, 72\] to .*--text-"
    ):
        choose_profile(ranges, lengths(ranges, 200, 0))
    with pytest.raises(UsageError, match=r"no profile for these shapes together: inputs_embeds \[1, 20, 72\]"):
        choose_profile(ranges, lengths(ranges, 20, 5))
    with pytest.raises(UsageError, match=r"take position_ids of shape \[20\]"):
        choose_profile(ranges, lengths(ranges, 20, 0) | {"position_ids": [20]})


def test_a_graph_of_fixed_shapes() -> None:
    assert choose_profile([{"x": [(2, 3)] * 3}], {"x": (2, 3)}) == 0


def test_no_driver_is_said_with_exit_code_3() -> None:
    with pytest.raises(
        MissingDependencyError, match=r"no NVIDIA driver here \(libnothing.so.1: .*--device cpu"
    ) as said:
        Device("libnothing.so.1")
    assert said.value.exit_code == 3


class Driver:
    """A driver whose GPU is the host's memory; `codes` makes calls fail."""

    def __init__(self, gpus: int = 1, **codes: int):
        self._gpus, self._codes = gpus, codes
        self.memory: dict[int, Any] = {}
        self.open = 0
        for name in cuda_driver._SIGNATURES:
            setattr(self, name, self._function(name))

    def _function(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            return self._codes.get(name) or getattr(self, f"do_{name}", lambda *_: 0)(*arguments)

        return call

    def do_cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"as the driver says"
        return 0

    def do_cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._gpus
        return 0

    def do_cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0

    def do_cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 77
        self.open += 1
        return 0

    def do_cuStreamDestroy_v2(self, stream: Any) -> int:  # noqa: N802
        self.open -= 1
        return 0

    def do_cuMemAlloc_v2(self, address: Any, nbytes: int) -> int:  # noqa: N802
        assert nbytes > 0, "the driver refuses to allocate nothing"
        buffer = ctypes.create_string_buffer(nbytes)
        address._obj.value = ctypes.addressof(buffer)
        self.memory[address._obj.value] = buffer
        return 0

    def do_cuMemFree_v2(self, address: int) -> int:  # noqa: N802
        del self.memory[address]
        return 0

    def do_cuMemcpyHtoD_v2(self, target: int, source: int, nbytes: int) -> int:  # noqa: N802
        assert nbytes <= len(self.memory[target])
        ctypes.memmove(target, source, nbytes)
        return 0

    def do_cuMemcpyDtoH_v2(self, target: int, source: int, nbytes: int) -> int:  # noqa: N802
        assert nbytes <= len(self.memory[source])
        ctypes.memmove(target, source, nbytes)
        return 0


@pytest.fixture
def with_driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**given: Any) -> tuple[Device, Driver]:
        driver = Driver(**given)
        monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: driver)
        return Device(), driver

    return install


def test_a_device_copies_there_and_back(with_driver: Any) -> None:
    device, driver = with_driver()
    assert (device.compute_capability, device.stream) == ("8.9", 77)
    array, back = np.arange(6, dtype=np.float16), np.zeros(6, np.float16)
    address, nothing = device.allocate(array.nbytes), device.allocate(0)
    device.upload(address, array)
    device.download(back, address)
    assert back.tolist() == array.tolist()
    device.free(address)
    device.free(nothing)
    device.close()
    device.close()
    assert (driver.memory, driver.open) == ({}, 0)


def test_no_gpu_and_failing_calls(with_driver: Any) -> None:
    with pytest.raises(MissingDependencyError, match="sees no GPU; engines run on an NVIDIA GPU"):
        with_driver(gpus=0)
    with pytest.raises(MissingDependencyError, match=r"sees no GPU \(cuInit failed with CUDA error 100: as the driver"):
        with_driver(cuInit=100)
    device, _ = with_driver(cuMemAlloc_v2=2)
    with pytest.raises(VtexportError, match="cuMemAlloc_v2 failed with CUDA error 2: as the driver says"):
        device.allocate(5)


class Context:
    """A stand-in for an execution context; the engine is y = x + 1, with an unused input `past`."""

    def __init__(self, fails: str = ""):
        self.fails, self.asked, self.shapes, self.addresses = fails, [], {}, {}

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.asked.append((number, stream))
        self.shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return bool(address)

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shapes["x"]))
        kind = ctypes.c_float * count
        source, target = (kind.from_address(self.addresses[name]) for name in "xy")
        target[:] = [value + 1 for value in source]
        return self.fails != "run"


def fake_trt(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [{"x": ((1, 4), (2, 4), (3, 4)), "past": ((0, 2), (0, 2), (0, 2))},
              {"x": ((1, 4), (1, 4), (1, 4)), "past": ((1, 2), (5, 2), (9, 2))}]  # fmt: skip
    names = ["x", "past", "y"]
    engine = types.SimpleNamespace(
        num_io_tensors=3,
        num_optimization_profiles=2,
        get_tensor_name=names.__getitem__,
        get_tensor_location=lambda name: "device",
        get_tensor_mode=lambda name: "output" if name == "y" else "input",
        get_tensor_profile_shape=lambda name, number: limits[number][name],
        get_tensor_dtype=lambda name: types.SimpleNamespace(name="FLOAT"),
        create_execution_context=lambda: context,
    )
    fake = types.SimpleNamespace(
        __version__="9.9",
        Runtime=lambda logger: types.SimpleNamespace(
            deserialize_cuda_engine=lambda data: None if context.fails == "load" else engine
        ),
        TensorLocation=types.SimpleNamespace(DEVICE="device"),
        TensorIOMode=types.SimpleNamespace(INPUT="input"),
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    monkeypatch.setattr(session, "_logger", lambda flavour: (None, ["what the log says"]))


def test_the_order_of_a_run(with_driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, driver = with_driver()
    context = Context()
    fake_trt(context, monkeypatch)
    (tmp_path / "e.engine").write_bytes(b"engine")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    with EngineRunner(tmp_path / "e.engine", device, TENSORRT_RTX) as runner:
        got = runner.run({"x": x, "past": np.zeros((0, 2), np.float32), "more": x})
        assert list(got) == ["y"]
        assert got["y"].tolist() == (x + 1).tolist()
        transposed = np.asfortranarray(x[:1])
        runner.run({"x": transposed, "past": np.zeros((7, 2), np.float32)})
        assert context.asked == [(0, 77), (1, 77)]
        with pytest.raises(InputError, match="takes x as float32, not float64; convert it"):
            runner.run({"x": x.astype(np.float64), "past": x})
    assert driver.memory == {}, "all buffers are given back"


@pytest.mark.parametrize("fails", ["load", "run"])
def test_a_failure_is_said_and_leaves_no_memory(
    fails: str, with_driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, driver = with_driver()
    fake_trt(Context(fails), monkeypatch)
    (tmp_path / "e.engine").write_bytes(b"engine")
    feeds = {"x": np.zeros((1, 4), np.float32), "past": np.zeros((0, 2), np.float32)}
    with pytest.raises(VtexportError, match=rf"tensorrt_rtx 9.9 could not {fails} .*e.engine on this GPU"):
        EngineRunner(tmp_path / "e.engine", device, TENSORRT_RTX).run(feeds)
    assert driver.memory == {}


def test_the_names_that_the_runner_uses_are_tensorrts() -> None:
    import tensorrt_rtx as trt

    used = {
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.ICudaEngine: [
            "create_execution_context", "get_tensor_name", "num_io_tensors", "get_tensor_location", "get_tensor_mode",
            "get_tensor_profile_shape", "num_optimization_profiles", "get_tensor_dtype",
        ],
        trt.IExecutionContext: [
            "set_optimization_profile_async", "set_input_shape", "infer_shapes", "get_tensor_shape",
            "set_tensor_address", "execute_async_v3",
        ],
        trt.TensorLocation: ["DEVICE"],
        trt.TensorIOMode: ["INPUT"],
        trt.DataType: list(NUMPY),
    }  # fmt: skip
    for owner, names in used.items():
        assert [name for name in names if not hasattr(owner, name)] == [], owner


def test_an_engine_is_not_loaded_without_a_gpu(tmp_path: Path, with_driver: Any) -> None:
    """The real library with a driver that is not real: it says itself why it does not load."""
    import tensorrt_rtx  # noqa: F401  (loads its libraries, which the driver that is not real could not)

    try:
        Device().close()
    except MissingDependencyError:
        pass
    else:
        pytest.skip("there is a GPU here")
    device, _ = with_driver()
    (tmp_path / "e.engine").write_bytes(b"not an engine")
    with pytest.raises(VtexportError, match=r"tensorrt_rtx [\d.]+ could not load .*e.engine on this GPU: .+"):
        EngineRunner(tmp_path / "e.engine", device, TENSORRT_RTX)
