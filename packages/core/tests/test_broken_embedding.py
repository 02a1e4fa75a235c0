"""``embed`` where images or label images cannot be read: the others are described."""

from __future__ import annotations

from pathlib import Path

import broken_plates as plates
import embedding_fakes as fakes
import pytest
import tifffile
from engine_fakes import discs

from cellseg.errors import DataError, PartialError
from cellseg.events import Event, Failed, Progress


def test_a_plate_with_every_fault(tmp_path: Path) -> None:
    whole = plates.whole_plate(tmp_path / "whole" / "plate.zarr")
    fakes.segment(whole, tmp_path / "labels")
    fakes.run(whole, tmp_path / "all", labels=tmp_path / "labels")
    plate = plates.broken_plate(tmp_path / "plate.zarr")
    out, events = tmp_path / "out", list[Event]()
    with pytest.raises(PartialError, match=r"8 image\(s\) failed") as error:
        fakes.run(plate, out, labels=tmp_path / "labels", events=events)
    assert error.value.failed.keys() == plates.FAULTS.keys()
    for name, fault in plates.FAULTS.items():
        assert fault in error.value.failed[name]
    assert {row["image"] for row in fakes.rows(out)} == set(plates.WHOLE)
    assert {row["image"] for row in fakes.skipped(out)} == set(plates.FAULTS)
    assert [event.item for event in events if isinstance(event, Failed)] == list(plates.FAULTS)
    plates.mended(plate)
    fakes.run(plate, out, labels=tmp_path / "labels", resume=True)
    assert fakes.rows(out) == fakes.rows(tmp_path / "all")


def test_a_broken_label_image_among_good_ones(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    for seed, name in enumerate("abc"):
        tifffile.imwrite(images / f"{name}.tif", discs((60, 70), seed=seed)[0, 0])
    fakes.segment(images, labels)
    (labels / "b.tif").write_bytes(b"II*\0")
    with pytest.raises(PartialError) as error:
        fakes.run(images, tmp_path / "out", labels=labels)
    assert list(error.value.failed) == ["b"]
    assert "b.tif: " in error.value.failed["b"]
    assert {row["image"] for row in fakes.rows(tmp_path / "out")} == {"a", "c"}


def test_a_draw_among_images_needs_all_of_them(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed, name in enumerate("abc"):
        tifffile.imwrite(images / f"{name}.tif", discs((60, 70), seed=seed)[0, 0])
    fakes.segment(images, tmp_path / "labels")
    (images / "b.tif").write_bytes(b"II*\0")
    events: list[Event] = []
    with pytest.raises(DataError, match="--most-images counts images, and some cannot be used"):
        fakes.run(
            images, tmp_path / "out", labels=tmp_path / "labels", most_images=1, events=events
        )
    assert not any(isinstance(event, Progress) for event in events)
    assert not (tmp_path / "out").exists()
