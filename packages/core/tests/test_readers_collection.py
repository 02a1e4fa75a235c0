"""Several data sets as one: common classes, weights, and what the YAML file may say."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from cellseg.classes import SHIFT, UNKNOWN
from cellseg.errors import ConfigError, DataError
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.splits import SplitOptions, make_splits

plugins = Plugins([])
RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 256, (4, 12, 16), np.uint8)
IDS = RNG.integers(0, 9, (4, 12, 16)).astype(np.uint32)


def read(path: Path, labelled: bool = True, reader: str = "auto", **options: object):
    return open_dataset(plugins, path, reader, options, labelled)


def hdf5(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, pixels in arrays.items():
            file[name.replace("__", "/")] = pixels
            file[name.replace("__", "/")].attrs["resolution"] = (40, 4, 4)
            file[name.replace("__", "/")].attrs["axes"] = "ZYX"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CREMI, SNEMI3D, and a folder of plain ids."""
    for letter in "AB":
        hdf5(
            tmp_path / f"cremi/sample{letter}.h5",
            volumes__raw=RAW,
            volumes__labels__neuron_ids=IDS,
            volumes__labels__clefts=np.where(IDS == 3, 1, 0),
        )
    for name in ("AC3", "AC4"):
        hdf5(tmp_path / f"snemi/{name}_inputs.h5", main=RAW)
        hdf5(tmp_path / f"snemi/{name}_labels.h5", main=IDS)
    hdf5(tmp_path / "mine/a.h5", raw=RAW, labels=IDS)
    return tmp_path


def listed(root: Path, *datasets: dict[str, object], **more: object) -> Path:
    path = root / "datasets.yaml"
    path.write_text(yaml.safe_dump({"datasets": list(datasets), **more}))
    return path


def test_classes_are_joined_by_name_in_the_order_they_appear(root: Path) -> None:
    path = listed(root, {"path": "snemi"}, {"path": "cremi"}, {"path": "mine"})
    assert reader_for(plugins, path).name == reader_for(plugins, root).name == "collection"
    samples = read(path)
    assert [s.name for s in samples] == [
        "snemi/AC4",
        "snemi/AC3",
        "cremi/sampleA",
        "cremi/sampleB",
        "mine/a",
    ]
    assert {s.classes for s in samples} == {("background", "neuron", "cleft", "cell")}
    cell = samples[-1].labels
    assert np.array_equal(cell[:], np.where(IDS > 0, IDS | (3 << SHIFT), 0))
    assert np.array_equal(pickle.loads(pickle.dumps(cell))[1:2], cell[1:2])
    assert [s.name for s in read(root)] == [s.name for s in samples]
    assert len(read(path, labelled=False)) == 5


def test_what_would_do_nothing_is_an_error(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data set 'cremi': class_name .* neuron, cleft"):
        read(listed(root, {"path": "cremi", "class_name": "axon"}))
    with pytest.raises(ConfigError, match="weight does nothing with split: val"):
        read(listed(root, {"path": "cremi", "split": "val", "weight": 2}, {"path": "mine"}))
    for itself in (".", "datasets.yaml"):
        with pytest.raises(ConfigError, match="is this collection itself"):
            read(listed(root, {"path": "mine"}, {"path": itself, "name": "again"}))


def test_the_file_may_fix_the_order_of_the_classes(root: Path) -> None:
    table = ["background", "cleft", "axon", "neuron"]
    samples = read(listed(root, {"path": "cremi"}, classes=table))
    found = samples[0].labels[:]
    assert samples[0].classes == tuple(table)
    assert (found[IDS == 3] == (1 << SHIFT) + 1).all(), "a cleft"
    others = (IDS > 0) & (IDS != 3)
    assert np.array_equal(found[others], IDS[others] | (3 << SHIFT))
    assert (found[IDS == 0] == 0).all()
    with pytest.raises(ConfigError, match="classes lacks cleft") as error:
        read(listed(root, {"path": "cremi"}, classes=["background", "neuron"]))
    assert "background, neuron, cleft" in error.value.hint


def test_voxels_that_nobody_labelled_stay_so(root: Path) -> None:
    ids = IDS.astype(np.uint64)
    ids[0] = 0xFFFFFFFFFFFFFFFF
    hdf5(root / "c/sampleC.h5", volumes__raw=RAW, volumes__labels__neuron_ids=ids)
    plain = IDS.copy()
    plain[0] = UNKNOWN
    hdf5(root / "d/a.h5", raw=RAW, labels=plain)
    table = ["background", "cleft", "cell", "neuron"]
    first, second = read(listed(root, {"path": "c"}, {"path": "d"}, classes=table))
    for sample in (first, second):
        assert (sample.labels[0:1] == UNKNOWN).all()
        assert (sample.labels[1:] != UNKNOWN).all()


def test_a_data_set_shares_its_weight_among_what_trains(root: Path) -> None:
    samples = read(
        listed(root, {"path": "snemi", "weight": 3}, {"path": "cremi"}, {"path": "mine"})
    )
    weights = {s.name: s.weight for s in samples}
    assert weights["snemi/AC4"] == 3, "AC3 only validates"
    assert weights["cremi/sampleA"] == weights["cremi/sampleB"] == 0.5
    assert weights["mine/a"] == 1


def test_a_data_set_keeps_its_splits_unless_told_otherwise(root: Path) -> None:
    samples = read(listed(root, {"path": "snemi"}, {"path": "cremi"}))
    assert [s.split for s in samples] == ["train", "val", None, None]
    samples = read(listed(root, {"path": "snemi"}, {"path": "cremi", "split": "train"}))
    assert make_splits(samples, SplitOptions(), 0).val == ("snemi/AC3",)
    samples = read(
        listed(root, {"path": "cremi", "split": "train"}, {"path": "mine", "split": "val"})
    )
    assert make_splits(samples, SplitOptions(), 0).val == ("mine/a",)


def test_sources_are_told_apart_by_their_data_sets(root: Path) -> None:
    twice = [{"path": "mine"}, {"path": "mine", "name": "again", "class_name": "nucleus"}]
    first, second = read(listed(root, *twice))
    assert first.group == "mine/a" and second.group == "again/a"
    assert second.classes == ("background", "cell", "nucleus")
    assert (second.labels[:][IDS > 0] >> SHIFT == 2).all()
    with pytest.raises(ConfigError, match="several data sets are called mine"):
        read(listed(root, {"path": "mine"}, {"path": "mine"}))


def test_options_of_a_data_set_go_before_those_of_all(root: Path) -> None:
    hdf5(root / "key/a.h5", em=RAW + 1, truth=IDS)
    options = {"raw_key": "em", "label_key": "truth"}
    (sample,) = read(listed(root, {"path": "key", "options": options}))
    assert np.array_equal(sample.image[:][0], RAW + 1)
    with pytest.raises(DataError, match="no channel '7'"):
        read(listed(root, {"path": "mine"}), channels="7")
    own = {"path": "mine", "options": {"channels": "0"}}
    assert read(listed(root, own), channels="7")[0].image.shape[0] == 1
    with pytest.raises(ConfigError, match=r"data set 'mine': .*rawkey") as error:
        read(listed(root, {"path": "mine", "options": {"rawkey": "x"}}))
    assert "raw_key" in error.value.hint


def test_a_folder_of_data_sets_needs_no_file(root: Path) -> None:
    samples = read(root, reader="collection")
    assert [s.name for s in samples][:2] == ["cremi/sampleA", "cremi/sampleB"]
    assert samples[0].classes == ("background", "neuron", "cleft", "cell")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": "mine", "wieght": 2}, "unknown option 'wieght'"),
        ({"path": "mine", "weight": 0}, "a number above 0"),
        ({"path": "mine", "weight": "much"}, "a number above 0"),
        ({"path": "mine", "split": "test"}, "expected train or val"),
        ({"path": "mine", "options": ["x"]}, "option: value"),
        ({"path": "mine", "name": 3}, "expected a name"),
        ({"path": "mine", "class_name": "background"}, "expected a name"),
        ({"name": "mine"}, "expected 'path: FOLDER'"),
    ],
    ids=str,
)
def test_mistakes_in_an_entry_are_named(root: Path, entry, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        read(listed(root, entry))
    assert "data set 1" in str(error.value)
    if "wieght" in entry:
        assert "weight" in error.value.hint


def test_mistakes_in_the_file_are_named(root: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option 'clases'"):
        read(listed(root, {"path": "mine"}, clases=[]))
    with pytest.raises(ConfigError, match="expected a list of data sets"):
        read(listed(root))
    with pytest.raises(ConfigError, match="'background' first"):
        read(listed(root, {"path": "mine"}, classes=["cell", "background"]))
    with pytest.raises(DataError, match=r"data set 'gone': .*no such file or folder"):
        read(listed(root, {"path": "gone"}))
    many = [{"path": "mine", "name": f"m{i}", "class_name": f"c{i}"} for i in range(16)]
    with pytest.raises(ConfigError, match="16 classes in all; 15 fit"):
        read(listed(root, *many))


@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_classes_beside_the_labels_of_a_container(tmp_path: Path, kind: str) -> None:
    import zarr

    kinds = np.where(IDS > 4, 2, 1).astype(np.uint8)
    path = tmp_path / ("a.h5" if kind == "hdf5" else "a.zarr")
    if kind == "hdf5":
        hdf5(path, raw=RAW, labels=IDS, kinds=kinds)
    else:
        group = zarr.open_group(path, mode="w")
        for name, pixels in {"raw": RAW, "labels": IDS, "kinds": kinds}.items():
            group.create_array(name, data=pixels).attrs["axes"] = "ZYX"
    options = {"class_key": "kinds", "class_names": "neuron, glia"}
    (sample,) = read(path, **options)
    assert sample.classes == ("background", "neuron", "glia")
    wanted = np.where(IDS > 0, IDS | (kinds.astype(np.uint32) << SHIFT), 0)
    assert np.array_equal(sample.labels[:], wanted)
    assert np.array_equal(pickle.loads(pickle.dumps(sample)).labels[1:2, 3:], wanted[1:2, 3:])
    (sample,) = read(path, **options | {"class_names": "neuron"})
    with pytest.raises(DataError, match="objects of class 2"):
        sample.labels[:]
    with pytest.raises(DataError, match="no array 'kind'"):
        read(path, **options | {"class_key": "kind"})
    assert read(path, labelled=False, **options)[0].labels is None


@pytest.mark.parametrize(
    "options",
    [
        {"class_key": "kinds"},
        {"class_names": "a"},
        {"class_key": "kinds", "class_names": "a,a"},
        {"class_key": "kinds", "class_names": "background,a"},
        {"class_key": "kinds", "class_names": " , "},
    ],
    ids=str,
)
def test_class_options_that_make_no_sense_are_refused(root: Path, options) -> None:
    with pytest.raises(ConfigError):
        read(root / "mine", **options)
