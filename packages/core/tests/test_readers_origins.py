"""No image is trained on while a copy of it validates, and the other way round."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.options import parse
from cellseg.outputs.pairs import Pair, write_pair
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.readers.origins import FILE, Origin, Origins
from cellseg.splits import SplitOptions, Splits, make_splits, select
from cellseg.workflows.augment import augment
from cellseg.workflows.augment_settings import AugmentSettings

plugins = Plugins([])
FORMATS = ("tif", "ome-zarr", "hdf5")


def opened(folder: Path) -> list[Sample]:
    return list(open_dataset(plugins, folder, "auto", {}, labelled=True))


def run(data: Path, out: Path, **options: object) -> Path:
    augment(plugins, data, out, parse(AugmentSettings, {"copies": 2, **options}))
    return out


def original(name: str) -> str:
    return name.split("/")[-1].partition("_aug")[0]


def apart(samples: list[Sample], splits: Splits) -> bool:
    """Whether no image is on one side and another made of the same one on the other."""
    train, val = select(samples, splits)
    ours, theirs = ({original(sample.name) for sample in side} for side in (train, val))
    return not ours & theirs and len(train) + len(val) == len(samples)


def cells(folder: Path, count: int, prefix: str = "cell") -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[0, 8:20, 8:20] = 1
    for number in range(count):
        image = rng.integers(0, 200, (1, 1, 32, 32)).astype(np.uint8)
        write_pair(Pair(f"{prefix}{number}", image, labels), folder, "tif")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An augmented data set of 5 images in each format."""
    folder = tmp_path_factory.mktemp("sets")
    data = cells(folder / "data", 5)
    return {format: run(data, folder / format, format=format) for format in FORMATS}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(FORMATS),
    st.one_of(
        st.floats(0.05, 0.95).map(lambda share: {"val_fraction": share}),
        st.tuples(st.just("k-fold"), st.integers(2, 5), st.integers(0, 1)).map(
            lambda three: {"split": three[0], "folds": three[1], "fold": three[2]}
        ),
    ),
)
def test_copies_stay_with_their_image_in_every_split(
    sets: dict[str, Path], seed: int, format: str, options: dict[str, object]
) -> None:
    samples = opened(sets[format])
    splits = make_splits(samples, parse(SplitOptions, options), seed)
    assert apart(samples, splits) and splits.train and splits.val
    groups = defaultdict(set)
    for sample in samples:
        groups[sample.group].add(original(sample.name))
    assert len(groups) == 5 and all(len(names) == 1 for names in groups.values())


def test_a_split_by_hand_that_parts_them_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    samples = opened(sets["tif"])
    names = [sample.name for sample in samples]
    file = tmp_path / "splits.json"
    Splits(train=tuple(names[1:]), val=(names[0],)).save(file)
    with pytest.raises(DataError, match="one source in both train and val: 'cell0'"):
        make_splits(samples, SplitOptions(splits=file), 0)
    with pytest.raises(DataError, match="may show the same place"):
        make_splits(samples, SplitOptions(split="blocks"), 0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_part_of_the_data_set_knows_it_too(sets: dict[str, Path], format: str) -> None:
    samples = open_dataset(plugins, sets["tif"] / "images", "auto", {"labels": "../labels"}, True)
    assert {sample.group for sample in samples} == {f"cell{i}" for i in range(5)}
    for path in sets[format].iterdir():
        if "aug1" in path.name:
            (sample,) = opened(path)
            assert sample.group == original(sample.name) != sample.name


def test_in_a_collection_they_stay_together(sets: dict[str, Path], tmp_path: Path) -> None:
    other = run(cells(tmp_path / "more", 3, "other"), tmp_path / "other")
    file = tmp_path / "both.yaml"
    file.write_text(f"datasets:\n- path: {sets['hdf5']}\n- path: {other}\n")
    samples = opened(file)
    assert len(samples) == 8 * 3
    for seed in range(10):
        assert apart(samples, make_splits(samples, SplitOptions(), seed))


def test_without_their_originals_copies_stay_together(tmp_path: Path) -> None:
    out = run(cells(tmp_path / "data", 3), tmp_path / "out", include_originals=False)
    samples = opened(out)
    assert len(samples) == 6
    for seed in range(5):
        assert apart(samples, make_splits(samples, SplitOptions(), seed))


def test_frames_and_fields_stay_with_their_movie_and_well(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "movie.h5", "w") as file:
        rng = np.random.default_rng(0)
        file["raw"] = rng.integers(0, 99, (3, 32, 32)).astype(np.uint8)
        file["label"] = np.ones((3, 32, 32), np.uint8)
        for name in ("raw", "label"):
            file[name].attrs["axes"] = "tyx"
    samples = opened(run(tmp_path / "movie.h5", tmp_path / "out", copies=1))
    assert [sample.name for sample in samples] == [
        f"movie#{frame}{copy}" for frame in range(3) for copy in ("", "_aug1")
    ]
    assert {sample.group for sample in samples} == {"movie"}


def test_an_image_that_is_not_named_is_refused(tmp_path: Path) -> None:
    out = run(cells(tmp_path / "data", 2), tmp_path / "out")
    for kind in ("images", "labels"):
        (out / kind / "cell0_aug1.tif").rename(out / kind / "new.tif")
    with pytest.raises(DataError, match=f"{FILE}: does not say where 'new' comes from") as error:
        opened(out)
    assert '"new": {"source": "new"}' in (error.value.hint or "")
    assert len(open_dataset(plugins, out, "auto", {}, labelled=False)) == 6, "only for training"
    for kind in ("images", "labels"):
        (out / kind / "new.tif").unlink()
    assert len(opened(out)) == 5, "images may be taken away"
    (out / FILE).write_text('{"samples": {"cell0": {}}}')
    with pytest.raises(DataError, match=f"{FILE}: cannot be read: Field required"):
        opened(out)


def test_a_data_set_without_the_file_is_as_ever(tmp_path: Path) -> None:
    assert [sample.source for sample in opened(cells(tmp_path / "data", 2))] == ["", ""]


def test_validation_images_stay_so_and_are_not_copied(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for split in ("train", "val"):
            file[f"{split}/raw"] = np.arange(1600, dtype=np.uint16).reshape(40, 40)
            file[f"{split}/label"] = np.eye(40, dtype=np.uint8)
    for include in (True, False):
        folder = tmp_path / f"out-{include}"
        made = augment(
            plugins, tmp_path / "a.h5", folder, AugmentSettings(include_originals=include)
        )
        assert (made.originals, made.copies, made.validation) == (1 + include, 3, 1)
        samples = {sample.name: sample.split for sample in opened(folder)}
        copies = dict.fromkeys(("train_aug1", "train_aug2", "train_aug3"), "train")
        assert samples == {**({"train": "train"} if include else {}), "val": "val", **copies}
        splits = make_splits(opened(folder), SplitOptions(), 0)
        assert splits.val == ("val",)


@pytest.mark.parametrize("format", FORMATS)
def test_classes_weights_and_splits_come_along(tmp_path: Path, format: str) -> None:
    cells(tmp_path / "nuclei", 2)
    cells(tmp_path / "spots", 1)
    file = tmp_path / "both.yaml"
    file.write_text(
        "datasets:\n"
        "- {path: nuclei, class_name: nucleus, weight: 3}\n"
        "- {path: spots, class_name: spot, split: train}\n"
    )
    before = {sample.name.replace("/", "_"): sample for sample in opened(file)}
    after = opened(run(file, tmp_path / "out", format=format, copies=1))
    assert len(after) == 6
    for sample in after:
        source = before[original(sample.name)]
        assert sample.classes == source.classes == ("background", "nucleus", "spot")
        assert sample.weight == source.weight and sample.split == source.split
        assert sample.group == source.group
        assert sample.labels is not None and source.labels is not None
        whole = tuple(slice(0, n) for n in sample.labels.shape)
        ids = set(np.unique(source.labels[whole])) | {0}
        assert set(np.unique(sample.labels[whole])) <= ids and max(ids) >= 1 << 28


def test_the_file_is_short(tmp_path: Path) -> None:
    Origins(samples={"a_aug1": Origin(source="a")}).save(tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == {"samples": {"a_aug1": {"source": "a"}}}


def test_no_way_to_the_images_leads_past_the_file(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sets["tif"]
    renamed, linked, single, moved = (tmp_path / name for name in ("a", "b", "c", "d"))
    shutil.copytree(whole, renamed)
    (renamed / "images").rename(renamed / "raw")
    linked.mkdir()
    (single / "images").mkdir(parents=True)
    shutil.copytree(whole, moved)
    (moved / "images").rename(tmp_path / "elsewhere")
    (moved / "images").symlink_to(tmp_path / "elsewhere")
    for kind in ("images", "labels"):
        (linked / kind).symlink_to(whole / kind)
    for file in (whole / "images").iterdir():
        (single / "images" / file.name).symlink_to(file)
    beside = {"labels": str(whole / "labels")}
    monkeypatch.chdir(whole / "images")
    for path, options in (
        (Path("."), {"labels": "../labels"}),
        (Path("../images"), {"labels": "../labels"}),
        (renamed, {"images": "raw"}),
        (linked, {}),
        (single, beside),
        (single / "images", beside),
        (moved, {}),
    ):
        samples = open_dataset(plugins, path, "folder", options, labelled=True)
        assert {sample.group for sample in samples} == {f"cell{i}" for i in range(5)}, path
