"""Running a bundle's graphs with stock ONNX Runtime, on the CPU or a CUDA device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtexport.backends.base import Buffer, Provides
from vtexport.backends.onnxruntime.host import HostBuffer, HostCache
from vtexport.bundle.onnxruntime import abilities_of
from vtexport.bundle.paths import check_name
from vtexport.errors import BundleError, MissingDependencyError, UsageError, quoted
from vtexport.plugins.libraries import SWITCH, Choice, choose_library

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeBackend:
    """ONNX Runtime on one device, with its values in the host's memory: a buffer is an array, and nothing is copied.

    Args:
        device: "cpu", or "cuda" with onnxruntime-gpu, which copies what a graph takes and returns.
        threads: threads for one operator; all cores when None.

    Raises:
        UsageError: no such device.
        MissingDependencyError: ONNX Runtime or its provider for the device is not there, or it is too old.
    """

    def __init__(self, device: str, threads: int | None):
        check_device(device)
        self._device, self._threads = device, threads
        self._sessions: list[OnnxRuntimeSession] = []
        self.provides = Provides(
            abilities_of(import_onnxruntime().__version__),
            # On a CUDA device the function bodies run there; the library would bring the op back to the CPU.
            plugins=choose_library() if device == "cpu" else Choice(None, f"the device is {device}"),
        )

    def load(self, graph: Path, *, plugins: bool = False) -> OnnxRuntimeSession:
        """As `base.Backend.load`."""
        library = self.provides.plugins.library if plugins else None
        session = OnnxRuntimeSession(graph, self._device, self._threads, library)
        self._sessions.append(session)
        return session

    def upload(self, array: np.ndarray) -> HostBuffer:
        """The array itself, wrapped."""
        return HostBuffer(array)

    def adopt(self, buffer: Buffer) -> Buffer:
        """Any array's wrapper, be it of another backend on the host."""
        return buffer if isinstance(buffer, HostBuffer) else HostBuffer(buffer.numpy())

    def join(self, buffers: Sequence[Buffer]) -> HostBuffer:
        """As `base.Backend.join`."""
        return HostBuffer(np.concatenate([buffer.numpy() for buffer in buffers], axis=1))

    def first_rows(self, buffer: Buffer, count: int) -> HostBuffer:
        """A view of them."""
        return HostBuffer(buffer.numpy()[:, :count])

    def is_finite(self, buffer: Buffer) -> bool:
        """As `base.Backend.is_finite`."""
        return bool(np.isfinite(buffer.numpy()).all())

    def read(self, logits: Buffer) -> np.ndarray:
        """A view [V] where they are float32 already."""
        return logits.numpy()[0, 0].astype(np.float32, copy=False)

    def cache(self, layers: range, capacity: int, num_key_value_heads: int, head_dim: int, dtype: str) -> HostCache:
        """As `base.Backend.cache`."""
        return HostCache(layers, capacity, num_key_value_heads, head_dim, dtype)

    def sync(self) -> None:
        """Nothing to wait for: a session returns when it is done."""

    def close(self) -> None:
        """Closes the sessions."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()


class OnnxRuntimeSession:
    """One graph, loaded; `run` takes and returns arrays.

    With `library`, a library of operators that replaces the function bodies of the graph's pruning ops.
    """

    def __init__(self, path: Path, device: str, threads: int | None, library: Path | None = None):
        check_name(path, "rename the bundle's folder")
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # A pipeline runs several sessions in turn, each with threads of its own that stay awake for a while after their
        # work. On few cores they take the next session's: without this the first token took twice as long on 2 cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        if library is not None:
            _register(ort, options, library)
        providers: list[Any] = [PROVIDERS["cpu"]]
        if device == "cuda":
            # TF32 rounds the Gram matrix of a pruning op enough to change what it keeps
            providers = [(PROVIDERS["cuda"], {"use_tf32": 0}), *providers]
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base below Exception
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {_reason(error, path)}; {_next_step(error, path)}"
            ) from error
        if self._session.get_providers()[0] != PROVIDERS[device]:
            raise MissingDependencyError(
                f"ONNX Runtime could not start {PROVIDERS[device]} and would fall back to "
                f"{self._session.get_providers()[0]}; check the CUDA libraries or use --device cpu"
            )
        self.path = path
        self._shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self.input_names = list(self._shapes)
        self.output_names = [value.name for value in self._session.get_outputs()]

    def check_input(self, name: str, *sizes: int) -> None:
        """Refuses a graph whose input does not end in these sizes, before arrays are made for it.

        Raises:
            BundleError: it has other sizes or no such input, so the bundle's manifest is not of this graph.
        """
        shape = self._shapes.get(name)
        if shape is None or list(shape[-len(sizes) :]) != list(sizes):
            raise BundleError(
                f"{self.path} takes {name} of shape {shape} and the bundle's manifest says that it ends in "
                f"{list(sizes)}; build or copy the bundle again"
            )

    def run(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Outputs by name; feeds that the graph does not take are passed over."""
        given = {name: feeds[name].array for name in self.input_names}  # type: ignore[attr-defined]
        outputs = self._session.run(self.output_names, given)
        return dict(zip(self.output_names, map(HostBuffer, outputs), strict=True))

    def close(self) -> None:
        """Gives the graph's memory back."""
        self._session = None


def _register(ort: Any, options: Any, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # as above
        raise MissingDependencyError(
            f"ONNX Runtime {ort.__version__} cannot take {library}: {_reason(error, library)}; build it again "
            f"with `vtexport plugins build`, or set {SWITCH}=0 to run the function bodies"
        ) from error


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX Runtime is not installed ({quoted(error)}); run pip install 'vtexport[cpu]' or 'vtexport[gpu]'"
        ) from error
    return onnxruntime


def check_device(device: str) -> None:
    """Refuses a device that this installation cannot run on.

    Raises:
        UsageError: no such device name.
        MissingDependencyError: the installed ONNX Runtime has no provider for it.
    """
    if device not in PROVIDERS:
        raise UsageError(f"device {device!r} is not known; choose one of {', '.join(PROVIDERS)}")
    available = import_onnxruntime().get_available_providers()
    if PROVIDERS[device] not in available:
        raise MissingDependencyError(
            f"the installed ONNX Runtime has no {PROVIDERS[device]} (it has {', '.join(available)}); "
            "run pip install 'vtexport[gpu]' or use --device cpu"
        )


def _reason(error: BaseException, path: Path) -> str:
    """ONNX Runtime's words on a file, without its codes and without the path, which the sentence has already."""
    said = re.sub(r"^\s*\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", str(error)).replace(str(path), path.name)
    return quoted(said.strip().rstrip(".") or type(error).__name__, path, limit=140)


def _next_step(error: BaseException, path: Path) -> str:
    if path.is_symlink() and "escapes" in str(error):  # 1.24.1, before it was mended
        return "this version refuses links as the hub's cache has them: update it, or hf download with --local-dir"
    return "`vtexport inspect --verify` says whether it is damaged; then build or copy it again"
