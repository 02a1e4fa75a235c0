"""What training starts from: files of several kinds, runs, random numbers; and stored models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from sam_fakes import small_sam  # noqa: E402

from cellseg.errors import ConfigError, WeightsError  # noqa: E402
from cellseg.events import Note  # noqa: E402
from cellseg_cellsam.description import FILE, Description  # noqa: E402
from cellseg_cellsam.model import CellSam  # noqa: E402
from cellseg_cellsam.options import CellSamOptions  # noqa: E402
from cellseg_cellsam.sizes import DetectorSizes  # noqa: E402
from cellseg_cellsam.stored import load_model, save_model  # noqa: E402
from cellseg_cellsam.weights import LICENCE, Start, start  # noqa: E402


def begun(seed: int = 0, **options: Any) -> tuple[Start, str]:
    events: list[Any] = []
    if "checkpoint" in options and "queries" not in options:
        options["queries"] = 9 if Path(options["checkpoint"]).is_file() else None
    found = start(CellSamOptions(**options), seed, events.append)
    return found, "\n".join(event.text for event in events if isinstance(event, Note))


def described(model: CellSam, **values: Any) -> Description:
    sizes = {"architecture": model.architecture.to_dict(), "detector": model.sizes.to_dict()}
    return Description(model_type="tiny", **sizes, **values)


def same(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def test_random_models_depend_on_the_seed_alone() -> None:
    (first, told), (again, _), (other, _) = (begun(s, model_type="tiny") for s in (3, 3, 4))
    assert same(first.model, again.model) and not same(first.model, other.model)
    assert not first.boxes_trained and not first.masks_trained and first.base is None
    assert first.model.sizes == DetectorSizes.named("tiny") and not first.model.training
    assert told == ""
    assert begun(model_type="tiny", queries=9)[0].model.sizes.queries == 9


def test_segment_anything_gets_a_new_detector(tmp_path: Path) -> None:
    sam = small_sam(seed=5)
    torch.save(sam.sam.state_dict(), tmp_path / "sam.pth")
    save_file(sam.state_dict(), tmp_path / "ours.safetensors")
    for name in ("sam.pth", "ours.safetensors"):
        found, told = begun(checkpoint=tmp_path / name)
        assert same(found.model.sam, sam.sam) and found.model.sizes.queries == 9
        assert found.masks_trained and not found.boxes_trained
        assert "The detector starts from random weights" in told and "CellSAM" not in told
        assert found.base is not None and len(found.base.sha256) == 64
    _, told = begun(checkpoint=tmp_path / "sam.pth", stage="2", queries=None)
    assert told == "", "training says so itself"


def test_the_published_cellsam_gives_its_segment_anything_and_its_licence(tmp_path: Path) -> None:
    sam = small_sam(seed=5)
    state = {f"model.{name}": tensor for name, tensor in sam.sam.state_dict().items()}
    state |= {"cellfinder.x": torch.zeros(2), "model_cp.image_encoder.x": torch.ones(2)}
    torch.save(state, tmp_path / "cellsam.pt")
    found, told = begun(checkpoint=tmp_path / "cellsam.pt")
    assert same(found.model.sam, sam.sam) and not found.boxes_trained
    assert "non-commercial academic use only" in told and "not the detector" in told
    assert found.base is not None and found.base.licence == found.licence == LICENCE


def test_what_is_trained_from_cellsam_keeps_its_licence(tmp_path: Path) -> None:
    model = begun(7, model_type="tiny", queries=9)[0].model
    save_model(model, described(model, licence=LICENCE), tmp_path / "run" / "model")
    save_model(model, described(model), tmp_path / "free" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        found, told = begun(checkpoint=path)
        assert found.licence == LICENCE and "non-commercial academic use only" in told
        assert found.base is not None and found.base.licence == LICENCE
    found, told = begun(checkpoint=tmp_path / "free")
    assert found.licence == "" and "CellSAM" not in told


def test_a_run_is_started_from_whole(tmp_path: Path) -> None:
    model = begun(7, model_type="tiny", queries=9)[0].model
    save_model(model, described(model, boxes_trained=True), tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        found, told = begun(checkpoint=path)
        assert same(found.model, model) and found.model.sizes.queries == 9
        assert found.boxes_trained and not found.masks_trained and told == ""
    with pytest.raises(ConfigError, match=r"--queries 25: the detector in .* has 9"):
        begun(checkpoint=tmp_path / "run", queries=25)
    with pytest.raises(ConfigError, match="holds a tiny, not a vit_l"):
        begun(checkpoint=tmp_path / "run", model_type="vit_l")
    with pytest.raises(WeightsError) as error:
        begun(checkpoint=tmp_path / "run" / "model" / "weights.safetensors")
    assert error.value.hint is not None and f"{tmp_path}/run/model" in error.value.hint


def test_what_holds_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no cellsam model"):
        begun(checkpoint=tmp_path)
    with pytest.raises(WeightsError, match="is missing"):
        begun(checkpoint=tmp_path / "no.pt", queries=None)
    (tmp_path / "damaged.pt").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"damaged\.pt"):
        begun(checkpoint=tmp_path / "damaged.pt")
    torch.save({"model.image_encoder.x": torch.zeros(2)}, tmp_path / "cut.pt")
    with pytest.raises(WeightsError, match=r"cut\.pt holds no model of Segment Anything"):
        begun(checkpoint=tmp_path / "cut.pt")


def test_a_model_directory_comes_back(tmp_path: Path) -> None:
    model = begun(7, model_type="tiny", queries=9)[0].model
    description = described(model, field=48, boxes_trained=True, masks_trained=True)
    save_model(model, description, tmp_path)
    again, read = load_model(tmp_path)
    assert read == description and same(again, model) and not again.training


@pytest.mark.parametrize(
    "damage",
    [
        {"field": "48"},
        {"boxes_trained": 1.5},
        {"detector": {"width": 3}},
        {"architecture": {}},
        {"more": 1},
        None,
    ],
)
def test_a_damaged_description_is_told(damage: dict[str, Any] | None, tmp_path: Path) -> None:
    model = begun(7, model_type="tiny", queries=9)[0].model
    described(model).save(tmp_path)
    values = json.loads((tmp_path / FILE).read_text())
    text = "{" if damage is None else json.dumps({**values, **damage})
    (tmp_path / FILE).write_text(text)
    with pytest.raises(WeightsError, match=r"cellsam\.json"):
        Description.load(tmp_path)


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    model = begun(7, model_type="tiny", queries=9)[0].model
    save_model(model, described(model), tmp_path)
    sizes = {**model.sizes.to_dict(), "queries": 16}
    architecture = model.architecture.to_dict()
    Description(model_type="tiny", architecture=architecture, detector=sizes).save(tmp_path)
    with pytest.raises(WeightsError, match="does not fit the network"):
        load_model(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match="is missing"):
        load_model(tmp_path)
