"""Files of weights from strangers: no code runs, and nothing is promised that is not there."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cellseg.errors import WeightsError  # noqa: E402
from cellseg.torch.reading import UnsafeWeightsError, built_for, read_file  # noqa: E402


class Creates:
    """What runs when a pickle with it is loaded: a file appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def safetensors(
    header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors", ".bin"])
def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, canary: Path, suffix: str, zipped: bool
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(
        {"w": torch.zeros(2), "evil": Creates(canary)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(WeightsError) as error:
        read_file(path)
    assert path.name in str(error.value) and not canary.exists()
    if zipped and suffix != ".safetensors":
        assert isinstance(error.value, UnsafeWeightsError) and "mkdir" in str(error.value)


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_refused(tmp_path: Path, canary: Path, protocol: int) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Creates(canary), protocol=protocol))
    with pytest.raises(WeightsError):
        read_file(path)
    assert not canary.exists()


def test_numpy_arrays_of_objects_are_refused(tmp_path: Path, canary: Path) -> None:
    import numpy as np

    path = tmp_path / "weights.npz"
    np.savez(path, w=np.array([Creates(canary)], dtype=object))
    with pytest.raises(WeightsError):
        read_file(path)
    assert not canary.exists()


def _saved(path: Path, values: Any) -> Path:
    torch.save(values, path)
    return path


def test_an_archive_that_inflates_is_refused_before_it_is_read(tmp_path: Path) -> None:
    plain = _saved(tmp_path / "plain.pth", {"w": torch.zeros(12 * 2**20)})
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    assert bomb.stat().st_size < 2**20
    with pytest.raises(WeightsError, match=r"bomb\.pth has .* would unpack to 50"):
        read_file(bomb)
    assert read_file(plain)["w"].numel() == 12 * 2**20


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(lambda: torch.zeros(1).expand(10**12), id="one number as a terabyte"),
        pytest.param(lambda: torch.empty(10**12, device="meta"), id="no numbers"),
        pytest.param(lambda: torch.zeros(9, 9).to_sparse(), id="sparse"),
    ],
)
def test_a_tensor_that_promises_more_than_the_file_has(tmp_path: Path, tensor: Any) -> None:
    path = _saved(tmp_path / "large.pth", {"model": [{"w": tensor()}]})
    with pytest.raises(WeightsError, match=r"large\.pth"):
        read_file(path)


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=2**62),
        safetensors({}, length=2**64 - 1),
        safetensors({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        safetensors({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        safetensors({"w": {"dtype": "F32", "shape": [2**63, 4], "data_offsets": [0, 0]}}),
        safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors(
            {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)
        ),
        safetensors(b"[" * 10_000),
        safetensors({"__metadata__": {"a": {"b": "c"}}}),
        b"",
        b"\x00" * 7,
    ],
)
def test_a_safetensors_header_that_lies(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.safetensors"):
        read_file(path)


def test_values_that_contain_themselves(tmp_path: Path) -> None:
    values: dict[str, Any] = {"w": torch.zeros(1)}
    values["self"] = values
    doubled: list[Any] = []
    for _ in range(64):
        doubled = [doubled, doubled]
    values["doubled"] = doubled
    assert read_file(_saved(tmp_path / "round.pth", values))["w"].numel() == 1


def test_a_network_far_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(bytes(1000))
    with built_for(weights):
        torch.nn.Linear(1000, 1000)
    for build in (
        lambda: torch.nn.Linear(10**6, 10**6),
        lambda: [torch.nn.Conv2d(1024, 1024, 3) for _ in range(1000)],
        lambda: torch.nn.Embedding(2**40, 2**20),
        lambda: torch.zeros("many"),  # type: ignore[arg-type]
    ):
        with pytest.raises(WeightsError, match=r"weights\.safetensors"), built_for(weights):
            build()
    assert torch.zeros(3).sum() == 0, "nothing is left behind"
