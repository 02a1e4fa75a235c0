"""SNEMI3D and CREMI in made-up files of the same layout."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from cellseg.classes import SHIFT, UNKNOWN
from cellseg.errors import ConfigError, DataError
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.splits import SplitOptions, make_splits

plugins = Plugins([])
RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 256, (4, 12, 16), np.uint8)
IDS = RNG.integers(0, 9, (4, 12, 16)).astype(np.uint16)
NOTHING = np.uint64(0xFFFFFFFFFFFFFFFF)


def read(path: Path, labelled: bool = True, reader: str = "auto", **options: object):
    return open_dataset(plugins, path, reader, options, labelled)


def main_array(path: Path, pixels: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["main"] = pixels


def coded(ids: np.ndarray, kind: int) -> np.ndarray:
    return np.where(ids > 0, ids.astype(np.uint32) | (kind << SHIFT), 0)


def test_snemi3d_with_both_volumes_comes_divided(tmp_path: Path) -> None:
    for volume in ("AC3", "AC4"):
        main_array(tmp_path / f"{volume}_inputs.h5", RAW)
        main_array(tmp_path / f"{volume}_labels.h5", IDS)
    assert reader_for(plugins, tmp_path).name == "snemi3d"
    train, val = read(tmp_path)
    assert [(s.name, s.split) for s in (train, val)] == [("AC4", "train"), ("AC3", "val")]
    assert train.spacing == (0.03, 0.006, 0.006)
    assert train.classes == ("background", "neuron")
    assert np.array_equal(train.image[:][0], RAW)
    assert np.array_equal(train.labels[:], coded(IDS, 1))
    again = pickle.loads(pickle.dumps(train)).labels
    assert np.array_equal(again[1:3, 2:5, :4], coded(IDS, 1)[1:3, 2:5, :4])
    assert make_splits([train, val], SplitOptions(), 0).val == ("AC3",)


@pytest.mark.parametrize("volume", ["AC3", "AC4"])
def test_one_volume_of_snemi3d_is_a_plain_sample(tmp_path: Path, volume: str) -> None:
    main_array(tmp_path / f"{volume}_inputs.h5", RAW)
    main_array(tmp_path / f"{volume}_labels.h5", IDS)
    (sample,) = read(tmp_path)
    assert (sample.name, sample.split) == (volume, None)


def test_a_missing_partner_of_snemi3d_is_named(tmp_path: Path) -> None:
    main_array(tmp_path / "AC4_inputs.h5", RAW)
    with pytest.raises(DataError, match=r"AC4_inputs\.h5: has no partner AC4_labels"):
        read(tmp_path)
    (sample,) = read(tmp_path, labelled=False)
    assert sample.labels is None and sample.classes == ("background", "neuron")
    main_array(tmp_path / "AC4_labels.h5", IDS)
    main_array(tmp_path / "AC3_labels.h5", IDS)
    with pytest.raises(DataError, match=r"AC3_labels\.h5 is there, AC3_inputs is not"):
        read(tmp_path)


def test_snemi3d_as_the_challenge_gave_it(tmp_path: Path) -> None:
    for folder in ("image", "seg"):
        (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / "image/train-input.tif", RAW, photometric="minisblack")
    tifffile.imwrite(tmp_path / "image/test-input.tif", RAW, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "seg/train-labels.tif", IDS, photometric="minisblack", compression="zlib"
    )
    assert reader_for(plugins, tmp_path).name == "snemi3d"
    (sample,) = read(tmp_path)
    assert (sample.name, sample.split) == ("AC4", None)
    assert sample.image.shape == (1, 4, 12, 16)
    assert np.array_equal(sample.labels[:], coded(IDS, 1))
    assert [s.name for s in read(tmp_path, labelled=False)] == ["AC4", "AC3"]
    main_array(tmp_path / "AC4_inputs.h5", RAW)
    with pytest.raises(DataError, match="are both AC4"):
        read(tmp_path)


def test_the_challenges_flat_folder_is_not_taken_for_plain_tiffs(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "train-input.tif", RAW, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train-labels.tif", IDS, photometric="minisblack")
    assert reader_for(plugins, tmp_path).name == "snemi3d"


def test_snemi3d_without_its_array_or_volumes_or_axes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no volume of SNEMI3D"):
        read(tmp_path, reader="snemi3d")
    with h5py.File(tmp_path / "AC4_inputs.h5", "w") as file:
        file["raw"] = RAW
    with pytest.raises(DataError, match="no array 'main'") as error:
        read(tmp_path, labelled=False)
    assert "raw" in error.value.hint
    with pytest.raises(ConfigError, match="--axes TYX"):
        read(tmp_path, axes="TYX")


def cremi(
    path: Path,
    ids: np.ndarray | None = None,
    clefts: np.ndarray | None = None,
    raw: np.ndarray = RAW,
    offset: tuple[float, float, float] | None = None,
) -> Path:
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        arrays = {"raw": raw, "labels/neuron_ids": ids, "labels/clefts": clefts}
        for key, pixels in arrays.items():
            if pixels is not None:
                array = file.create_dataset(f"volumes/{key}", data=pixels, chunks=(2, 6, 8))
                array.attrs["resolution"] = (40.0, 4.0, 4.0)
                if offset is not None and key != "raw":
                    array.attrs["offset"] = offset
    return path


def test_cremi_puts_clefts_over_neurons(tmp_path: Path) -> None:
    ids = IDS.astype(np.uint64)
    ids[0, 0, :3] = NOTHING
    clefts = np.full(IDS.shape, NOTHING)
    clefts[1, 2:4, 3:6] = 7
    path = cremi(tmp_path / "sample_A_20160501.hdf", ids, clefts)
    assert reader_for(plugins, path).name == "cremi"
    (sample,) = read(path)
    assert sample.name == "sample_A_20160501"
    assert sample.classes == ("background", "neuron", "cleft")
    assert sample.spacing == pytest.approx((0.04, 0.004, 0.004))
    wanted = coded(np.where(ids == NOTHING, 0, ids), 1)
    wanted[0, 0, :3] = UNKNOWN
    wanted[1, 2:4, 3:6] = (2 << SHIFT) | 7
    assert np.array_equal(sample.labels[:], wanted)
    assert np.array_equal(sample.image[:][0], RAW)
    assert np.array_equal(pickle.loads(pickle.dumps(sample)).labels[1:2], wanted[1:2])


def test_ids_of_cremi_that_do_not_fit_get_the_highest_free_numbers(tmp_path: Path) -> None:
    ids = np.zeros((4, 12, 16), np.uint64)
    ids[0, :2], ids[1, :2], ids[2, :2], ids[3, 5:] = 2**40, 5, 2**28 - 3, 2**28 - 1
    (sample,) = read(cremi(tmp_path / "sampleA.h5", ids))
    assert (sample.labels[3:4, 5:, :] == (1 << SHIFT) + 2**28 - 4).all(), "whatever is read first"
    assert sample.labels[0:1, :1, :1] == (1 << SHIFT) + 2**28 - 2
    assert sample.labels[1:2, :1, :1] == (1 << SHIFT) + 5
    assert sample.labels[2:3, :1, :1] == (1 << SHIFT) + 2**28 - 3


def test_a_padded_image_is_cut_to_its_labels(tmp_path: Path) -> None:
    padded = RNG.integers(0, 256, (8, 20, 30), np.uint8)
    ids = IDS.astype(np.uint64)
    path = cremi(tmp_path / "sample_A_padded_20160501.hdf", ids, ids, padded, (80, 12, 20))
    (sample,) = read(path)
    inside = padded[2:6, 3:15, 5:21]
    assert sample.image.shape == (1, 4, 12, 16) == (1, *sample.labels.shape)
    assert np.array_equal(sample.image[:, 1:3, 2:9, :][0], inside[1:3, 2:9])
    assert np.array_equal(sample.image[:][0], inside)
    (whole,) = read(path, labelled=False)
    assert whole.image.shape == (1, 8, 20, 30)
    with pytest.raises(DataError, match="do not lie within the image"):
        read(cremi(path, ids, None, padded, (0, 12, 100)))
    with pytest.raises(DataError, match="no whole number of voxels"):
        read(cremi(path, ids, None, padded, (0, 13, 100)))


def test_cremi_reads_a_folder_and_volumes_without_labels(tmp_path: Path) -> None:
    ids = IDS.astype(np.uint64)
    for letter in "BA":
        cremi(tmp_path / f"sample{letter}.h5", ids)
    assert reader_for(plugins, tmp_path).name == "cremi"
    assert [sample.name for sample in read(tmp_path)] == ["sampleA", "sampleB"]
    cremi(tmp_path / "sample_A+_20160601.hdf")
    with pytest.raises(DataError, match=r"no volumes/labels/neuron_ids"):
        read(tmp_path)
    assert len(read(tmp_path, labelled=False)) == 3


def test_what_is_not_cremi_is_left_to_others(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "sample_A.h5", "w") as file:
        file["raw"] = RAW
    assert reader_for(plugins, tmp_path / "sample_A.h5").name == "hdf5"
    with pytest.raises(DataError, match="no volumes/raw"):
        read(tmp_path / "sample_A.h5", labelled=False, reader="cremi")
    cremi(tmp_path / "mine.h5", IDS)
    assert reader_for(plugins, tmp_path / "mine.h5").name == "hdf5"
    assert read(tmp_path / "mine.h5", reader="cremi")[0].name == "mine"


def test_cremi_without_a_resolution_says_what_to_set(tmp_path: Path) -> None:
    path = cremi(tmp_path / "sampleA.h5", IDS)
    with h5py.File(path, "a") as file:
        del file["volumes/raw"].attrs["resolution"]
    with pytest.raises(DataError, match="does not say its resolution"):
        read(path)


def test_clefts_and_neurons_must_cover_the_same(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not cover the same voxels"):
        read(cremi(tmp_path / "sampleA.h5", IDS, IDS[:2]))
