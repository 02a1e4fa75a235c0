"""What a model sees in a tile, place by place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellseg import PredictJob, Tile
from cellseg.errors import ConfigError, DataError, DeviceError
from cellseg_microsam.description import Description
from cellseg_microsam.model import MicroSam
from cellseg_microsam.predict import load_embedder
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.stored import save_model

Make = Callable[..., Path]


@pytest.fixture
def model(make_sam: Callable[..., Any]) -> Callable[..., Path]:
    """``model(path, field)``: a tiny model in a directory."""

    def make(path: Path, field: int = 0) -> Path:
        network = make_sam()
        described = Description(
            model_type="tiny", architecture=network.architecture.to_dict(), field=field
        )
        path.mkdir()
        save_model(network, described, path)
        return path

    return make


def embedder(path: Path, **values: Any) -> Any:
    return load_embedder(
        PredictJob(options=MicrosamPredictOptions(**values), device="cpu", model=path)
    )


def tile(y: int, x: int, seed: int = 0) -> Tile:
    return Tile(image=np.random.default_rng(seed).random((1, 1, y, x), np.float32))


@pytest.mark.parametrize(
    ("size", "field", "grid", "step"),
    [
        ((64, 64), 0, (4, 4), (16, 16)),
        ((64, 20), 0, (4, 2), (16, 16)),  # 20 pixels are more than one cell
        ((16, 64), 0, (1, 4), (16, 16)),
        ((128, 256), 0, (2, 4), (64, 64)),
        ((32, 32), 0, (4, 4), (8, 8)),
        ((32, 32), 64, (2, 2), (16, 16)),  # not magnified more than in the training
        ((1, 64), 0, (1, 4), (16, 16)),
        ((30, 50), 0, (3, 4), (30 * 16 / 38, 12.5)),  # 38.4 pixels of the square are 38
    ],
)
def test_the_grid_covers_the_tile_and_nothing_else(
    size: tuple[int, int],
    field: int,
    grid: tuple[int, int],
    step: tuple[float, float],
    tmp_path: Path,
    model: Make,
) -> None:
    (found,) = embedder(model(tmp_path / "m", field))([tile(*size)])
    assert found.values.shape == (32, 1, *grid) and found.values.dtype == np.float32
    assert found.step == pytest.approx((1.0, *step))
    for length, count, each in zip(size, grid, step, strict=True):
        assert (count - 1) * each < length <= count * each + 1e-9


def test_cells_are_those_of_the_whole_square(tmp_path: Path, model: Make) -> None:
    path = model(tmp_path / "m")
    seen = []
    encode = MicroSam.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MicroSam, "encode", lambda self, x: seen.append(encode(self, x)) or seen[-1])
        found = embedder(path)([tile(40, 64), tile(40, 64, 1)])
    (both,) = seen
    assert both.shape == (2, 32, 4, 4), "one call for all tiles"
    for one, values in zip(found, both, strict=True):
        np.testing.assert_array_equal(one.values[:, 0], values[:, :3].numpy())
    assert not np.array_equal(found[0].values, found[1].values)


def test_a_change_shows_where_it_is(tmp_path: Path, model: Make) -> None:
    """In a tile that is not square, and is smaller than the square."""
    describe = embedder(model(tmp_path / "m"))
    plain = tile(24, 32)
    for rows, columns, near in (
        (slice(16, 24), slice(0, 8), np.s_[1:, :2]),
        (slice(0, 8), slice(24, 32), np.s_[:2, 2:]),
    ):
        changed = Tile(image=plain.image.copy())
        changed.image[0, 0, rows, columns] = 1 - changed.image[0, 0, rows, columns]
        a, b = (describe([one])[0] for one in (plain, changed))
        assert a.step == (1.0, 8.0, 8.0) and a.values.shape == (32, 1, 3, 4)
        difference = np.abs(a.values - b.values).sum(0)[0]
        far = (difference.sum() - difference[near].sum()) / 8
        assert difference[near].mean() > 2 * far, "that cell and its neighbours"


def test_a_constant_tile_has_features_too_and_what_does_not_fit_is_refused(
    tmp_path: Path, model: Make
) -> None:
    path = model(tmp_path / "m")
    describe = embedder(path)
    (found,) = describe([Tile(image=np.zeros((1, 1, 40, 40), np.float32))])
    assert np.isfinite(found.values).all()
    assert describe([]) == []
    with pytest.raises(DataError, match="channels"):
        describe([Tile(image=np.zeros((4, 1, 40, 40), np.float32))])
    with pytest.raises(DeviceError, match="fp16"):
        embedder(path, precision="fp16")


def test_precision_changes_little(tmp_path: Path, model: Make) -> None:
    path = model(tmp_path / "m")
    full, half = (
        embedder(path, precision=p)([tile(40, 64)])[0].values for p in ("32-true", "bf16")
    )
    assert half.dtype == np.float32 and not np.array_equal(full, half)
    assert np.abs(full - half).mean() < 0.05 * np.abs(full).mean()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"min_size": 5}, "--min-size"),
        ({"segmentation_mode": "ais"}, "--segmentation-mode"),
        ({"multimask": True, "nms_threshold": 0.5}, "--nms-threshold and --multimask"),
    ],
)
def test_options_of_segmentation_are_refused(
    values: dict[str, Any], named: str, tmp_path: Path, model: Make
) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: nothing to do"):
        embedder(model(tmp_path / "m"), **values)
