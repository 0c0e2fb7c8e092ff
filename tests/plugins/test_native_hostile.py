"""Hostile calls of the CPU form: a status for what is wrong, a valid selection for any numbers, never a crash.

Runs a second time under the sanitizers (`test_sanitizers.py`), so it imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_ops.calls import Call, HostRunner, output_shapes, widened
from native_ops.cases import RANDOM_KINDS, random_case
from native_ops.compare import Case, problems

from vtexport.plugins.op_structures import OPS, NativeSizes, NativeStepSizes
from vtexport.plugins.structures import Status

INT32 = 2**31 - 1
NUMBERS = (0, -1, -INT32 - 1, INT32, 65537)


def call_of(kind: str) -> Call:
    """A call of the op that needs all its inputs."""
    for seed in range(100):
        call = random_case(seed, kind).call
        sound = "keys" in call.inputs if kind == "vitcop" else "scores" in call.inputs if kind == "prunesid" else True
        if sound and call.sizes.keep > 5:
            return call
    raise AssertionError(kind)


def changed(structure: Any, name: str, value: Any) -> Any:
    copy = type(structure).from_buffer_copy(structure)
    setattr(copy, name, value)
    return copy


def status(cpu: HostRunner, call: Call, **other: Any) -> Status:
    """The status of a call with something else in place; `addresses` are then merged over the right ones."""
    prepared = cpu.prepare(call)
    addresses = other.pop("addresses", {})
    given: dict[str, Any] = {"sizes": call.sizes, "parameters": call.parameters} | other
    return cpu.library.call(call.op_type, given["sizes"], given["parameters"], prepared.addresses | addresses)


def checked(cpu: HostRunner, call: Call, **other: Any) -> Status:
    """The same without tensors, so that a call that is wrongly allowed touches nothing."""
    given: dict[str, Any] = {"sizes": call.sizes, "parameters": call.parameters} | other
    return cpu.library.call(call.op_type, given["sizes"], given["parameters"], {})


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_sizes_out_of_range(kind: str, cpu: HostRunner) -> None:
    call = call_of(kind)
    reads = {"heads": "keys", "head_dim": "keys", "key_heads": "keys", "embedding_width": "text_embeds"}
    reads |= {"text_tokens": "text_embeds", "query_heads": "query"}
    for name, _ in call.sizes._fields_:
        if name in reads and reads[name] not in call.inputs:
            continue
        for value in NUMBERS:
            if (name, value) in (("dtype", 0), ("rows", 65537)):
                continue
            found = checked(cpu, call, sizes=changed(call.sizes, name, value))
            allowed = {Status.BAD_SIZE, Status.BAD_PARAMETER}  # a parameter may be what then does not fit
            assert found in allowed, (name, value)
    tokens = call.sizes.visual_count if call.is_step else call.sizes.grid_rows * call.sizes.grid_columns
    assert checked(cpu, call, sizes=changed(call.sizes, "keep", tokens + 2)) is Status.BAD_SIZE


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_parameters_out_of_range(kind: str, cpu: HostRunner) -> None:
    call = call_of(kind)
    for name, type_ in [] if call.parameters is None else call.parameters._fields_:
        numbers = (float("nan"), float("inf"), -1.0) if type_ is ctypes.c_float else (-1, INT32, -INT32 - 1, 5000)
        for value in numbers:
            found = checked(cpu, call, parameters=changed(call.parameters, name, value))
            assert found in {Status.BAD_PARAMETER, Status.BAD_SIZE}, (name, value)


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_missing_and_misaligned_tensors(kind: str, cpu: HostRunner) -> None:
    call = call_of(kind)
    required = {*call.inputs, "kept_features", "keep_indices", "merged", "labels", "rank", "energy", "count"}
    required |= {"leverage", "hidden_states_out", "out_rows"}
    addresses = cpu.prepare(call).addresses
    for name, address in addresses.items():
        assert address is not None
        expected = Status.NULL_POINTER if name in required else Status.OK
        assert status(cpu, call, addresses={name: None}) is expected, name
        if name != "merged":  # a byte has no alignment
            assert status(cpu, call, addresses={name: address + 1}) is Status.MISALIGNED, name
    assert status(cpu, call, sizes=None) is Status.NULL_POINTER
    if call.parameters is not None:
        assert status(cpu, call, parameters=None) is Status.NULL_POINTER
    assert cpu.library.call(call.op_type, call.sizes, call.parameters, None) is Status.NULL_POINTER


def test_every_status_has_a_sentence(cpu: HostRunner) -> None:
    sentences = {cpu.library.status_text(each) for each in (*Status, -5, 99)}
    assert len(sentences) == len(Status) + 1


@settings(max_examples=300, deadline=None)
@given(op_type=st.sampled_from(sorted(OPS)), data=st.data())
def test_any_structures_give_a_status(op_type: str, data: st.DataObject, cpu: HostRunner) -> None:
    """Any bytes as sizes and parameters; what they allow has no tensors to touch."""
    op = OPS[op_type]
    small = st.integers(0, 40)
    number = st.one_of(small, small, st.integers(-INT32 - 1, INT32))

    def draw(kind: type[ctypes.Structure]) -> ctypes.Structure:
        real = st.floats(width=32)
        fields = [data.draw(real if each[1] is ctypes.c_float else number) for each in kind._fields_]
        return kind(*fields)

    sizes = draw(NativeStepSizes if op.is_step else NativeSizes)
    parameters = draw(op.parameters) if op.parameters else None
    found = cpu.library.call(op_type, sizes, parameters, {})  # type: ignore[arg-type]
    assert found in (Status.BAD_SIZE, Status.BAD_PARAMETER, Status.NULL_POINTER)


HOSTILE = ["equal", "zero", "rank 1", "huge", "beyond", "tiny", "repeated", "one token", "nan", "all nan", "infinite"]


def hostile(values: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Numbers of that kind in the shape of `values` [B, tokens, ...], float32."""
    shape = values.shape
    x: np.ndarray = rng.standard_normal(shape)
    if kind == "equal":
        x = np.full(shape, 0.3)
    elif kind == "zero":
        x = np.zeros(shape)
    elif kind == "rank 1":
        x = rng.standard_normal(shape[:2] + (1,) * (len(shape) - 2)) * np.ones(shape)
    elif kind in ("huge", "beyond"):
        x = x * (1e15 if kind == "huge" else 1e38)
    elif kind == "tiny":
        x = x * 1e-38
    elif kind == "repeated":
        x = np.repeat(x[:, : -(-shape[1] // 3)], 3, axis=1)[:, : shape[1]]
    elif kind == "one token":
        x[:, np.arange(shape[1]) != min(4, shape[1] - 1)] = 0
    elif kind == "nan":
        x.reshape(-1)[:: max(1, x.size // 7)] = np.nan
    elif kind == "all nan":
        x[...] = np.nan
    elif kind == "infinite":
        x.reshape(-1)[:: max(1, x.size // 5)] = np.inf
        x.reshape(-1)[1 :: max(1, x.size // 3)] = -np.inf
    return np.clip(x, -3e38, 3e38).astype(np.float32) if kind == "beyond" else x.astype(np.float32)


def valid(cpu: HostRunner, call: Call) -> list[str]:
    """Faults of the outputs of a call; the numbers in them are open."""
    found, unsteady = cpu.run_twice(call)
    merged = np.ones(call.sizes.keep, bool) if call.op_type == "VtxClusterMerge" else None
    unsure = np.zeros(getattr(call.sizes, "batch", 1), bool)
    return problems(Case(call.op_type, call, {}, unsure, merged=merged), found) + unsteady


@pytest.mark.parametrize("kind", RANDOM_KINDS)
@pytest.mark.filterwarnings("ignore")
def test_any_numbers_give_a_valid_selection(kind: str, cpu: HostRunner) -> None:
    rng = np.random.default_rng(7)
    for seed in (0, 5, 11):
        call = random_case(seed, kind).call
        for what in HOSTILE:
            for which in ("all", *call.inputs):
                inputs = dict(call.inputs)
                for name, values in call.inputs.items():
                    if values.dtype == np.int64 or which not in ("all", name):
                        continue
                    # Whatever the type, the bytes are those of some numbers of it.
                    numbers = hostile(values, what, rng)
                    inputs[name] = numbers.astype(values.dtype) if values.dtype != np.uint16 else halves(numbers)
                assert valid(cpu, dataclasses.replace(call, inputs=inputs)) == [], (what, which)


def halves(numbers: np.ndarray) -> np.ndarray:
    """bfloat16 by cutting float32 off; 0x7f80 and above are infinities and NaN."""
    return (np.ascontiguousarray(numbers).view(np.uint32) >> 16).astype(np.uint16)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(RANDOM_KINDS), seed=st.integers(0, 2**31), data=st.data())
def test_any_bytes_give_a_valid_selection(kind: str, seed: int, data: st.DataObject, cpu: HostRunner) -> None:
    call = random_case(seed % 50, kind).call
    rng = np.random.default_rng(seed)
    inputs = {}
    for name, values in call.inputs.items():
        size = values.nbytes
        raw = rng.integers(0, 256, size, np.uint8) if data.draw(st.booleans()) else values.tobytes()
        inputs[name] = np.frombuffer(bytes(raw), values.dtype).reshape(values.shape)
    assert valid(cpu, dataclasses.replace(call, inputs=inputs)) == []


def test_the_start_of_the_image_is_clipped(cpu: HostRunner) -> None:
    for value in (-(2**62), -1, 2**62):
        call = call_of("VtxKeyNormTopK")
        inputs = {**call.inputs, "visual_start": np.array([value])}
        assert valid(cpu, dataclasses.replace(call, inputs=inputs)) == []


def test_half_precision_numbers_are_read_exactly(cpu: HostRunner) -> None:
    """Every float16 there is, by the mean of one token alone."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = every[np.isfinite(every)]
    call = call_of("VtxClusterMerge")
    rows, width = 2, len(numbers) // 2
    hidden = numbers[: rows * width].reshape(rows, width)
    sizes = NativeStepSizes(rows, width, 2, 2, 1, 1, 0, 1)
    mean = type(call.parameters)(2, 1)  # type: ignore[misc]
    inputs = {"hidden_states": hidden, "visual_start": np.array([0]), "labels": np.array([0, 1])}
    inputs["keys"] = np.ones((rows, 1, 1), np.float16)
    outputs = output_shapes("VtxClusterMerge", sizes, mean)
    found = cpu.run(Call("VtxClusterMerge", sizes, mean, inputs, outputs))["hidden_states_out"]
    np.testing.assert_array_equal(widened(found, "float16"), widened(hidden, "float16"))
