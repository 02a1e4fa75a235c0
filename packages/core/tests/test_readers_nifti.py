"""NIfTI files: axes, voxel sizes, nnU-Net folders, and classes that become objects."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from cellseg.classes import SHIFT, UNKNOWN
from cellseg.errors import ConfigError, DataError, PluginError
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for

nibabel = pytest.importorskip("nibabel")
plugins = Plugins([])
RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 256, (5, 12, 16), np.uint8)
IDS = RNG.integers(0, 9, (5, 12, 16)).astype(np.uint16)
BOTH = pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])


def read(path: Path, labelled: bool = True, reader: str = "auto", **options: object):
    return open_dataset(plugins, path, reader, options, labelled)


def write(
    path: Path,
    volume: np.ndarray,
    zooms: tuple[float, ...] = (0.008, 0.008, 0.03),
    unit: str = "micron",
    slope: float | None = None,
) -> Path:
    """A ``(z, y, x)`` volume as NIfTI stores it, x first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume.transpose(), np.diag([*zooms[:3], 1]))
    image.header.set_zooms((*zooms, *[1] * (volume.ndim - len(zooms)))[: volume.ndim])
    image.header.set_xyzt_units(unit)
    if slope is not None:
        image.header.set_slope_inter(slope, 3)
    nibabel.save(image, path)
    return path


def nnunet(
    folder: Path, labels: np.ndarray, names: dict[str, object] | None, case: str = "one"
) -> Path:
    write(folder / f"imagesTr/{case}_0000.nii.gz", RAW)
    write(folder / f"labelsTr/{case}.nii.gz", labels)
    if names is not None:
        text = {"labels": names, "channel_names": {"0": "EM"}, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(text))
    return folder


@BOTH
def test_axes_and_voxel_size_come_from_the_header(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", RAW)
    write(tmp_path / f"truth{suffix}", IDS)
    assert reader_for(plugins, path).name == "nifti"
    (sample,) = read(path, labels=f"truth{suffix}")
    assert sample.name == "a"
    assert sample.spacing == pytest.approx((0.03, 0.008, 0.008))
    assert sample.image.shape == (1, 5, 12, 16) and sample.image.dtype == np.uint8
    assert np.array_equal(sample.image[:, 1:4, 2:9, 3:5][0], RAW[1:4, 2:9, 3:5])
    assert np.array_equal(pickle.loads(pickle.dumps(sample)).labels[:], IDS)
    assert sample.classes == ()
    with pytest.raises(DataError, match="which file holds its labels"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(path, labels="b.nii")


@pytest.mark.parametrize(
    ("unit", "given", "size"),
    [
        ("mm", "auto", 8.0),
        ("micron", "auto", 0.008),
        ("unknown", "auto", 0.008),
        ("mm", "um", 0.008),
        ("mm", "nm", 8e-6),
        ("unknown", "mm", 8.0),
    ],
)
def test_the_unit_is_the_headers_or_as_given(tmp_path, unit, given, size) -> None:
    path = write(tmp_path / "a.nii", RAW, unit=unit)
    (sample,) = read(path, labelled=False, voxel_unit=given)
    assert sample.spacing[2] == pytest.approx(size)


def test_nanometres_under_the_name_of_millimetres_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", RAW, (8, 8, 30), "mm")
    with pytest.raises(DataError, match="says that a voxel is") as error:
        read(path, labelled=False)
    assert "--voxel-unit nm" in error.value.hint
    (sample,) = read(path, labelled=False, voxel_unit="nm")
    assert sample.spacing == pytest.approx((0.03, 0.008, 0.008))


def test_scaled_numbers_are_voxels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", RAW.astype(np.float32), slope=0.5)
    stored = nibabel.load(path)
    (sample,) = read(path, labelled=False)
    assert sample.image.dtype == np.float32
    assert np.allclose(sample.image[:][0], stored.get_fdata().transpose(), atol=1e-5)
    assert np.allclose(sample.image[:][0], RAW * 0.5 + 3)


@BOTH
def test_labels_in_a_type_for_fractions_must_be_whole(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "a.nii", RAW)
    write(tmp_path / f"t{suffix}", IDS.astype(np.float32))
    (sample,) = read(path, labels=f"t{suffix}")
    assert sample.labels.dtype == np.uint32 and np.array_equal(sample.labels[:], IDS)
    write(tmp_path / f"u{suffix}", IDS + np.float32(0.5))
    (sample,) = read(path, labels=f"u{suffix}")
    with pytest.raises(DataError, match="no labels: fractions"):
        sample.labels[:]


def test_a_movie_has_a_sample_for_each_frame(tmp_path: Path) -> None:
    movie = np.stack([RAW, RAW + 1])
    path = write(tmp_path / "a.nii", movie)
    _, second = read(path, labelled=False)
    assert second.name == "a#1" and np.array_equal(second.image[:][0], RAW + 1)
    (sample,) = read(path, labelled=False, axes="XYZC")
    assert sample.image.shape[0] == 2


@BOTH
def test_a_file_that_is_cut_short_is_told(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", RAW)
    data = path.read_bytes()
    if suffix == ".nii":
        path.write_bytes(data[:-40])
        with pytest.raises(DataError, match="cut short"):
            read(path, labelled=False)
    else:
        path.write_bytes(gzip.compress(gzip.decompress(data)[:-40]))
        (sample,) = read(path, labelled=False)
        with pytest.raises(DataError, match="cut short"):
            sample.image[:]
    path.write_bytes(b"nothing of the kind" * 40)
    with pytest.raises(DataError, match="cannot be read"):
        read(path, labelled=False)


def test_folders_pair_files_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"images/{name}.nii.gz", RAW)
        write(tmp_path / f"labels/{name}.nii", IDS)
    assert reader_for(plugins, tmp_path).name == "nifti"
    assert [sample.name for sample in read(tmp_path)] == ["a", "b"]
    write(tmp_path / "images/c.nii", RAW)
    with pytest.raises(DataError, match="images without labels: c"):
        read(tmp_path)
    assert len(read(tmp_path, labelled=False)) == 3


def test_files_of_one_name_and_four_digits_are_channels(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, IDS, None)
    write(folder / "imagesTr/one_0001.nii.gz", (RAW + 1).astype(np.int16))
    (sample,) = read(folder, labelled=False)
    assert sample.name == "one" and sample.image.shape == (2, 5, 12, 16)
    assert np.array_equal(sample.image[1:2, 2:4][0], (RAW + 1)[2:4])
    (sample,) = read(folder, labelled=False, channels="1")
    assert np.array_equal(sample.image[:][0], RAW + 1)
    write(folder / "imagesTr/one_0003.nii.gz", RAW)
    with pytest.raises(DataError, match="one has no channel 0002"):
        read(folder, labelled=False)
    (folder / "imagesTr/one_0003.nii.gz").unlink()
    write(folder / "imagesTr/one_0001.nii.gz", RAW[:3])
    with pytest.raises(DataError, match="channels of one image"):
        read(folder, labelled=False)


def maps() -> np.ndarray:
    """Two nuclei that touch at an edge only, and a vessel."""
    found = np.zeros((5, 12, 16), np.uint8)
    found[1, 2:4, 2:4] = found[1, 4:6, 4:6] = 3
    found[3, :, 8] = 1
    return found


def test_files_with_four_digits_and_labels_of_their_own_are_images(tmp_path: Path) -> None:
    for name in ("scan_0001", "scan_0002"):
        write(tmp_path / f"images/{name}.nii.gz", RAW)
        write(tmp_path / f"labels/{name}.nii.gz", IDS)
    samples = read(tmp_path)
    assert [s.name for s in samples] == ["scan_0001", "scan_0002"]
    assert samples[0].image.shape == (1, *RAW.shape)
    with pytest.raises(DataError, match="no channel 0000, but scan_0001") as error:
        read(tmp_path, labelled=False)
    assert error.value.hint and "name them otherwise" in error.value.hint


def test_classes_become_objects_by_their_components(tmp_path: Path) -> None:
    names = {"background": 0, "vessel": 1, "nucleus": 3, "ignore": 4}
    labels = maps()
    labels[4] = 4
    (sample,) = read(nnunet(tmp_path, labels, names))
    assert sample.classes == ("background", "vessel", "nucleus")
    assert sample.channels == ("EM",)
    found = sample.labels[:]
    first, second = found[1, 2, 2], found[1, 4, 4]
    assert first >> SHIFT == second >> SHIFT == 2 and first != second
    assert (found[1, 2:4, 2:4] == first).all() and (found[1, 4:6, 4:6] == second).all()
    assert len(np.unique(found[3, :, 8])) == 1 and found[3, 0, 8] >> SHIFT == 1
    assert (found[4] == UNKNOWN).all()
    assert (found[0] == 0).all()
    assert np.array_equal(sample.labels[1:2, 3:5, 2:6], found[1:2, 3:5, 2:6])
    assert np.array_equal(pickle.loads(pickle.dumps(sample)).labels[:], found)


def test_the_first_version_of_dataset_json_is_understood(tmp_path: Path) -> None:
    (sample,) = read(nnunet(tmp_path, maps(), {"0": "background", "1": "vessel", "3": "nucleus"}))
    assert sample.classes == ("background", "vessel", "nucleus")


def test_ids_beside_class_names_are_objects_of_the_first(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, IDS, {"background": 0, "mitochondria": 1})
    (sample,) = read(folder)
    with pytest.raises(DataError, match=r"which dataset\.json does not name") as error:
        sample.labels[:]
    assert "--label-kind instance" in error.value.hint
    (sample,) = read(folder, label_kind="instance")
    assert sample.classes == ("background", "mitochondria")
    assert np.array_equal(sample.labels[:] & ((1 << SHIFT) - 1), IDS)
    assert (sample.labels[:][IDS > 0] >> SHIFT == 1).all()


def test_classes_without_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no dataset\.json names the classes"):
        read(nnunet(tmp_path, maps(), None), label_kind="semantic")
    with pytest.raises(DataError, match="overlap"):
        read(nnunet(tmp_path, maps(), {"background": 0, "all": [1, 2]}))


@pytest.mark.parametrize("names", [("mitochondria", "boundary"), ("mito", "mito_boundary")])
def test_boundary_voxels_belong_to_the_nearest_mitochondrion(tmp_path: Path, names) -> None:
    labels = np.zeros((5, 12, 16), np.uint8)
    labels[2, 2:9, 2:14] = 2
    labels[2, 3:8, 3:6] = 1  # separated by boundary alone, which is nearer to one or the other
    labels[2, 3:8, 8:13] = 1
    labels[0, 0, :3] = 2  # a boundary around nothing
    folder = nnunet(tmp_path, labels, {"background": 0, names[0]: 1, names[1]: 2})
    (sample,) = read(folder)
    assert sample.classes == ("background", "mitochondria", "mito boundary")
    found = sample.labels[:]
    low = found & ((1 << SHIFT) - 1)
    left, right = low[2, 5, 4], low[2, 5, 10]
    assert left != right and found[2, 5, 4] >> SHIFT == 1
    assert (found[2][labels[2] == 2] >> SHIFT == 2).all()
    assert low[2, 5, 6] == left and low[2, 5, 7] == right
    assert (low[2, 2:9, 2] == left).all() and (low[2, 2:9, 13] == right).all()
    alone = low[0, 0, :3]
    assert alone[0] not in (left, right, 0) and len(set(alone)) == 1
    assert np.array_equal(found > 0, labels > 0)


def test_several_nnunet_folders_and_their_splits(tmp_path: Path) -> None:
    names = {"background": 0, "mito": 1, "boundary": 2}
    for number, kind in enumerate(("Beta", "Stem"), 1):
        folder = tmp_path / f"Dataset00{number}_ME2-{kind}"
        for case in ("t1", "t2"):
            nnunet(folder, np.minimum(IDS, 2), names, case)
        split = [{"train": ["t1"], "val": ["t2"], "test": ["t9"]}]
        (folder / "split.json").write_text(json.dumps(split))
    assert reader_for(plugins, tmp_path).name == "nifti"
    samples = read(tmp_path)
    assert [(s.name.rpartition("-")[2], s.split) for s in samples] == [
        ("Beta/t1", "train"),
        ("Beta/t2", "val"),
        ("Stem/t1", "train"),
        ("Stem/t2", "val"),
    ]
    with pytest.raises(ConfigError, match="labelsTr"):
        read(tmp_path, labels="elsewhere")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "cell": 1}}))
    with pytest.raises(DataError, match="different classes"):
        read(tmp_path)


def test_labels_stored_the_other_way_round_are_turned(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, IDS.transpose(), None)
    (sample,) = read(folder)
    assert np.array_equal(sample.labels[:], IDS)
    write(folder / "labelsTr/one.nii.gz", IDS[:3])
    with pytest.raises(DataError, match="differ in shape"):
        read(folder)


def test_without_nibabel_the_error_says_what_to_install(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "a.nii", RAW)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(PluginError, match="not installed") as error:
        read(path, labelled=False)
    assert 'uv pip install "cellseg-core[nifti]"' in error.value.hint
