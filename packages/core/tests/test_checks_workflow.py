from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellseg.checks.images import measure_image
from cellseg.checks.labels import measure_labels
from cellseg.errors import ConfigError, DataError
from cellseg.events import Progress
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.splits import SplitOptions, make_splits
from cellseg.testing import blobs
from cellseg.workflows.check import CheckSettings, DataReport, check

DATA = Path(__file__).parents[3] / "../shared/data"


def pixels(seed: int) -> tuple[Any, Any]:
    """An image and labels, ``(y, x)`` uint16."""
    sample = blobs(seed)
    assert sample.labels is not None
    image = 100 + 1000 * (sample.image[0:1, 0:1, 0:64, 0:64][0, 0] + 0.5).clip(0)
    return image.astype(np.uint16), sample.labels[0:1, 0:64, 0:64][0].astype(np.uint16)


def write(folder: Path, count: int = 4, first: int = 0) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for seed in range(first, first + count):
        image, labels = pixels(seed)
        tifffile.imwrite(folder / f"images/{seed}.tif", image)
        tifffile.imwrite(folder / f"labels/{seed}.tif", labels)
    return folder


def judged(
    path: Path, reader_options: dict[str, object] | None = None, **values: Any
) -> DataReport:
    return check(Plugins(), path, CheckSettings(**values), reader_options)


def codes(report: DataReport) -> dict[str, list[str]]:
    return {file.name: [finding.code for finding in file.findings] for file in report.files}


def test_good_data(tmp_path: Path) -> None:
    events: list[Any] = []
    report = check(Plugins(), write(tmp_path), emit=events.append)
    assert report.ok and report.findings == ()
    assert [file.verdict for file in report.files] == ["ok"] * 4
    assert report.figures["objects"] == 24
    assert events == [Progress(step, 4) for step in range(1, 5)]
    told = json.loads(json.dumps(report.to_dict()))
    assert told["ok"] is True and told["reader"] == "folder" and len(told["files"]) == 4


def test_it_divides_as_training_does(tmp_path: Path) -> None:
    report = judged(write(tmp_path, 10), seed=7, split="k-fold", fold=3)
    samples = [blob for blob in map(blobs, range(10))]
    named = [type(s)(name=str(i), image=s.image) for i, s in enumerate(samples)]
    splits = make_splits(named, SplitOptions(split="k-fold", fold=3), 7)
    assert {f.name for f in report.files if f.split == "val"} == set(splits.val)


def test_all_bad_files_are_told_at_once(tmp_path: Path) -> None:
    data = write(tmp_path, 12)
    images, labels = data / "images", data / "labels"
    (labels / "0.tif").unlink()
    (images / "1.tif").unlink()
    (images / "2.tif").write_bytes(b"")
    (images / "3.tif").write_bytes((images / "3.tif").read_bytes()[:3000])
    tifffile.imwrite(labels / "4.tif", np.ones((64, 60), np.uint16))
    tifffile.imwrite(labels / "5.tif", np.ones((64, 64, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(labels / "6.tif", pixels(6)[1].astype(np.float32))
    tifffile.imwrite(labels / "7.tif", ((pixels(7)[1] > 0) * 255).astype(np.uint8))
    tifffile.imwrite(
        images / "8.tif", np.where(pixels(8)[1] == 1, np.nan, pixels(8)[0]).astype("float32")
    )
    (labels / "9.tif").write_text("<html>not found</html>")
    report = judged(data)
    assert not report.ok
    assert codes(report) == {
        "10": [],
        "11": [],
        "0.tif": ["unmatched"],
        "1.tif": ["unmatched"],
        "2": ["unreadable"],
        "3": ["unreadable"],
        "4": ["shape"],
        "5": ["labels-colours"],
        "6": ["labels-not-integers"],
        "7": ["labels-binary"],
        "8": ["not-finite"],
        "9": ["unreadable"],
    }
    for file in report.files:
        assert file.verdict == ("ok" if file.name in ("10", "11") else "error")
        for finding in file.findings:
            assert finding.hint and "\n" not in finding.line()
    told = "\n".join(report.lines())
    assert "2.tif: is empty" in told and "0.tif has no labels" in told
    assert "12 files: 2 ok, 0 warnings, 10 errors." in told


def test_pairs_beside_each_other(tmp_path: Path) -> None:
    """Suffixes instead of folders: matched by the same names as the reader matches them."""
    for seed in range(4):
        image, labels = pixels(seed)
        tifffile.imwrite(tmp_path / f"{seed}_img.tif", image)
        tifffile.imwrite(tmp_path / f"{seed}_mask.tif", labels)
    options: dict[str, object] = {"image_suffix": "_img", "label_suffix": "_mask"}
    assert judged(tmp_path, options).ok
    (tmp_path / "0_mask.tif").unlink()
    assert codes(judged(tmp_path, options)) == {
        "1": [],
        "2": [],
        "3": [],
        "0_img.tif": ["unmatched"],
    }


def test_a_folder_without_labels(tmp_path: Path) -> None:
    data = write(tmp_path)
    for file in (data / "labels").iterdir():
        file.unlink()
    (data / "labels").rmdir()
    report = judged(data)
    assert not report.ok and len(report.files) == 1
    assert "has no folder labels/" in report.files[0].findings[0].message


def test_validation_images_of_their_own(tmp_path: Path) -> None:
    train, val = write(tmp_path / "train"), write(tmp_path / "val", 2, first=50)
    report = judged(train, val=val)
    assert report.ok and [file.split for file in report.files] == ["train"] * 4 + ["val"] * 2
    (val / "images/51.tif").write_bytes((train / "images/2.tif").read_bytes())
    report = judged(train, val=val)
    assert not report.ok and codes(report)["51"] == ["duplicate-across-splits"]
    (val / "images/50.tif").write_bytes(b"")
    assert {f.name: f.verdict for f in judged(train, val=val).files}["50"] == "error"


def test_a_splits_file(tmp_path: Path) -> None:
    data, file = write(tmp_path / "data"), tmp_path / "splits.json"
    file.write_text('{"train": ["0", "1", "2"], "val": ["3"]}')
    assert [f.split for f in judged(data, splits=file).files] == ["train"] * 3 + ["val"]
    file.write_text('{"train": ["0", "1", "2"], "val": ["9"]}')
    report = judged(data, splits=file)
    assert not report.ok and report.findings[0].code == "splits"
    assert "'9'" in report.findings[0].message and str(file) in report.findings[0].message


def test_one_image_can_be_trained_on_but_not_validated(tmp_path: Path) -> None:
    data = write(tmp_path, 1)
    report = judged(data)
    assert report.ok and [finding.code for finding in report.findings] == ["one-source"]
    assert judged(data, split="full").findings == ()


def test_one_image_can_be_divided_in_blocks(tmp_path: Path) -> None:
    data = write(tmp_path, 1)
    report = judged(data, split="blocks", val_gap=8)
    assert report.ok and report.findings == () and report.files[0].split == ""
    report = judged(data, split="blocks", val_gap=60)
    assert not report.ok and [finding.code for finding in report.findings] == ["splits"]
    assert "64 voxels along y" in report.findings[0].message


def test_a_data_set_without_any_object(tmp_path: Path) -> None:
    data = write(tmp_path, 2)
    for file in (data / "labels").iterdir():
        tifffile.imwrite(file, np.zeros((64, 64), np.uint16))
    report = judged(data)
    assert not report.ok and report.findings[0].code == "no-objects"


def test_a_folder_of_containers_goes_on_after_a_bad_one(tmp_path: Path) -> None:
    import h5py

    for seed in range(3):
        image, labels = pixels(seed)
        with h5py.File(tmp_path / f"{seed}.h5", "w") as file:
            file["raw"], file["label"] = image, labels
    (tmp_path / "1.h5").write_bytes(b"nothing like it")
    report = judged(tmp_path, {"axes": "YX"})
    assert codes(report) == {"0": [], "2": [], "1.h5": ["unreadable"]}


def test_what_is_wrong_with_the_command_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        judged(tmp_path / "nowhere")
    data = write(tmp_path / "data", 3)
    with pytest.raises(ConfigError, match="label_sufix"):
        judged(data, {"label_sufix": "_mask"})
    with pytest.raises(ConfigError, match="--folds 5"):
        judged(data, split="k-fold")
    with pytest.raises(ConfigError, match="exclude each other"):
        parse(CheckSettings, {"val": "a", "splits": "b"})


class Endless:
    """A large array that is made where it is sliced, and remembers the largest slice."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype, self.largest = shape, np.dtype(np.uint16), 0

    def __getitem__(self, key: tuple[slice, ...], /) -> Any:
        y, x = np.ogrid[key[-2], key[-1]]
        plane = ((y // 40) * (self.shape[-1] // 40) + x // 40 + 1) * ((y % 40 > 5) & (x % 40 > 5))
        lengths = [part.stop - part.start for part in key]
        self.largest = max(self.largest, int(np.prod(lengths)))
        return np.broadcast_to(plane, lengths).astype(self.dtype)


def test_memory_is_that_of_a_block() -> None:
    labels, image = Endless((1, 2000, 1600)), Endless((1, 1, 2000, 1600))
    found = measure_labels(labels, 2**14)
    measure_image(image, labels, 2**14)
    assert labels.largest < 2**15 and image.largest <= 2**14
    assert len(found.ids) == 2000 and (found.pieces == 1).all() and (found.sizes == 34 * 34).all()


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data (../shared/data) are not here")
@pytest.mark.parametrize(
    "name",
    [
        "dsb2018_fluo",
        "usiigaci_phase",
        "c2c12_phase",
        "dsb2018_brightfield_smear",
        "flyem_medulla",
        "plantseg_nuclei3d",
        "plantseg_ovule3d",
        "ome_zarr/dsb2018_plate.zarr",
        "ome_zarr/idr0062_6001240_labels_v0.5.zarr",
        "ome_zarr/idr0062_6001240_level2_ngio.zarr",
    ],
)
def test_real_data_are_not_refused(name: str) -> None:
    report = judged(DATA / name)
    assert report.ok, report.lines()
    looks = {look for file in report.files for look in file.figures["polarity"]}  # type: ignore
    if name.startswith("dsb2018"):
        assert looks == {"dark" if "brightfield" in name else "bright"}
    cut = any(finding.code == "ids-cut" for finding in report.all_findings())
    if name == "usiigaci_phase":
        assert cut, "its hand-drawn labels have split ids"
    if name == "dsb2018_fluo":
        assert not cut
