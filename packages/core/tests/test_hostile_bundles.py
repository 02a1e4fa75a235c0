"""Model directories from strangers: no name in them leads out, changed weights are noticed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellseg.bundle import FILE, Bundle
from cellseg.errors import CellsegError, DataError, WeightsError
from cellseg.plugins import Plugins
from cellseg.testing import blobs
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np
    import tifffile

    folder = tmp_path_factory.mktemp("trained")
    for seed in range(2):
        sample = blobs(seed)
        assert sample.labels is not None
        for kind, array in (("images", sample.image[0]), ("labels", sample.labels[:])):
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(array)[0]
            pixels = pixels.astype(np.uint16) if kind == "labels" else pixels
            tifffile.imwrite(folder / "data" / kind / f"{seed}.tif", pixels)
    settings = TrainSettings.model_validate({"epochs": 1})
    return train(Plugins(), "otsu", folder / "data", folder / "run", settings=settings).path


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def change(model: Path, edit: Change) -> None:
    values = json.loads((model / FILE).read_text())
    edit(values)
    (model / FILE).write_text(json.dumps(values))


def set_(**values: Any) -> Change:
    return lambda bundle: bundle.update(values)


def run(model: Path, trained: Path, out: Path) -> None:
    settings = PredictSettings(model=model, output=out)
    predict(Plugins(), trained.parent / "data/images", settings, emit=lambda event: None)


def refused(model: Path, error: type[CellsegError], match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        Bundle.find(model)
    text = str(raised.value)
    assert str(model) in text and "\n" not in text and len(text) < 1000


def test_a_model_as_it_was_trained_is_taken(model: Path, trained: Path, tmp_path: Path) -> None:
    run(model, trained, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tif"))) == 2


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "\\\\host\\x", "", ".", "a\0b", "C:x"],
)
def test_weights_elsewhere_are_refused(model: Path, name: str) -> None:
    change(model, lambda bundle: bundle["weights"].update({name: "0" * 64}))
    refused(model, DataError, r"is no file in the model's directory")


@pytest.mark.parametrize("target", ["../../outside", "/etc"])
@pytest.mark.parametrize("name", ["weights.safetensors", "folder", FILE])
def test_links_that_lead_out_are_refused(model: Path, name: str, target: str) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(target)
    refused(model, DataError, r"symbolic link that leads out")


def test_links_within_the_model_are_followed(model: Path, tmp_path: Path) -> None:
    weights = next(file for file in model.iterdir() if file.name != FILE)
    weights.rename(model / "real")
    weights.symlink_to("real")
    Bundle.find(model)
    (tmp_path / "elsewhere").symlink_to(model)  # the directory itself may be one
    Bundle.find(tmp_path / "elsewhere")


def test_changed_weights_are_refused(model: Path, trained: Path, tmp_path: Path) -> None:
    weights = next(file for file in model.iterdir() if file.name != FILE)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(model, WeightsError, r"is not what the training wrote")
    with pytest.raises(WeightsError):
        run(model, trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    weights.unlink()
    refused(model, WeightsError, r"is missing")


@pytest.mark.parametrize(
    "backend", ["os", "canary", "../x", "os.path", "", "a/b", "a\nb", "x" * 999]
)
def test_a_backend_that_is_none_is_not_imported(
    model: Path,
    trained: Path,
    tmp_path: Path,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    change(model, set_(backend=backend))
    with pytest.raises(CellsegError) as error:
        run(model, trained, tmp_path / "out")
    assert error.value.exit_code in (4, 5)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_no_text_of_a_bundle_is_imported(
    model: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All texts but the backend's name, at once and by themselves."""
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(each) for key, each in value.items()}
        return (
            [named(each) for each in value]
            if isinstance(value, list)
            else ("canary" if isinstance(value, str) else value)
        )

    original = (model / FILE).read_text()
    values = json.loads(original)
    keys = [key for key in values if key not in ("backend", "weights")]
    for chosen in (keys, *([key] for key in keys)):
        changed = {k: named(v) if k in chosen else v for k, v in values.items()}
        changed["options"] = {**changed["options"], "canary": "canary:Thing"}
        (model / FILE).write_text(json.dumps(changed))
        try:
            directory, bundle = Bundle.find(model)
            run(model, trained, tmp_path / "-".join(chosen)[:40])
            assert directory == model and bundle.backend == "otsu"
        except CellsegError:
            pass
        assert "canary" not in sys.modules and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "edit",
    [
        set_(format=99),
        set_(format=-1),
        set_(format="new"),
        set_(channels=0),
        set_(channels=-3),
        set_(channels=1e400),
        set_(spacing=[float("nan"), 1, 1]),
        set_(spacing=[float("inf"), 1, 1]),
        set_(spacing=[0, 1, 1]),
        set_(spacing=[-1, 1, 1]),
        set_(tiling={"core": [0, 64, 64], "halo": [0, 0, 0]}),
        set_(tiling={"core": [1, 10**12, 10**12], "halo": [0, 0, 0]}),
        set_(tiling={"core": [1, 64, 64], "halo": [0, -1, 0]}),
        set_(classes=[["a"]]),
        set_(normaliser={"method": "eval"}),
        set_(normaliser={"gamma": float("nan")}),
        set_(weights=["a"]),
        set_(options=[1]),
        set_(more="than there is"),
        lambda bundle: bundle.pop("backend"),
    ],
)
def test_a_description_that_is_wrong(model: Path, edit: Change) -> None:
    change(model, edit)
    refused(model, DataError, FILE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"options": ' + b'{"a": ' * 100_000,
        b'{"backend": "otsu", "trained_on": [' + b'"x", ' * (14 << 20) + b'"x"]}',
        b'{"backend": "otsu", "channels": ' + b"9" * 100_000 + b"}",
    ],
    ids=["empty", "null", "list", "not UTF-8", "deep", "deep options", "huge", "long number"],
)
def test_a_description_that_is_damaged(model: Path, content: bytes) -> None:
    (model / FILE).write_bytes(content)
    refused(model, DataError, FILE)


def test_options_that_the_predictor_does_not_know(
    model: Path, trained: Path, tmp_path: Path
) -> None:
    change(model, set_(predict={"__class__": "os.system"}))
    with pytest.raises(CellsegError):
        run(model, trained, tmp_path / "out")


def test_a_device_in_the_place_of_the_description(model: Path) -> None:
    (model / FILE).unlink()
    os.mkfifo(model / FILE)
    refused(model, DataError, FILE)
