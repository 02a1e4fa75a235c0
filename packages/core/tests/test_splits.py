from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError
from cellseg.options import parse
from cellseg.splits import SplitOptions, Splits, held_out, make_splits, select, weighted

PIXELS = np.zeros((1, 1, 2, 2), np.uint8)
VOLUME = np.zeros((1, 100, 40, 60), np.uint8)


def sample(name: str, source: str = "", split: str | None = None) -> Sample:
    return Sample(name=name, image=PIXELS, source=source, split=split)


def images(count: int) -> list[Sample]:
    return [sample(f"image{i:03}") for i in range(count)]


def movies(frames: dict[str, int]) -> list[Sample]:
    return [sample(f"{name}#{t}", name) for name, n in frames.items() for t in range(n)]


MOVIES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4), st.integers(1, 5), min_size=2, max_size=12
).map(movies)


@given(MOVIES, st.integers(2, 12), st.integers(0, 99))
def test_folds_are_disjoint_and_cover(samples: list[Sample], folds: int, seed: int) -> None:
    groups = {s.group for s in samples}
    folds = min(folds, len(groups))
    seen: list[str] = []
    for fold in range(folds):
        options = SplitOptions(split="k-fold", folds=folds, fold=fold)
        train, val = select(samples, make_splits(samples, options, seed))
        assert not {s.group for s in train} & {s.group for s in val}
        assert len(train) + len(val) == len(samples)
        assert train and val
        seen += [s.name for s in val]
    assert sorted(seen) == sorted(s.name for s in samples), "each image validates exactly once"


@given(MOVIES, st.integers(0, 99), st.floats(0.01, 0.99))
def test_train_val_keeps_groups_whole(samples: list[Sample], seed: int, share: float) -> None:
    splits = make_splits(samples, SplitOptions(val_fraction=share), seed)
    train, val = select(samples, splits)
    assert train and val
    assert not {s.group for s in train} & {s.group for s in val}
    groups = len({s.group for s in samples})
    assert abs(len({s.group for s in val}) - share * groups) <= 1


@given(MOVIES, st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(
    samples: list[Sample], seed: int, rng: random.Random
) -> None:
    shuffled = samples.copy()
    rng.shuffle(shuffled)
    for options in (SplitOptions(), SplitOptions(split="k-fold", folds=2, fold=1)):
        one, other = make_splits(samples, options, seed), make_splits(shuffled, options, seed)
        assert set(one.train) == set(other.train) and set(one.val) == set(other.val)


def test_the_split_is_pinned() -> None:
    """A new release must not move images from validation to training."""
    assert make_splits(images(6), SplitOptions(), 0).val == ("image004",)
    assert make_splits(images(6), SplitOptions(), 1).val == ("image000",)


def test_the_seed_matters() -> None:
    made = {make_splits(images(20), SplitOptions(), seed).val for seed in range(5)}
    assert len(made) > 1


def test_full_trains_on_all() -> None:
    splits = make_splits(images(3), SplitOptions(split="full"), 0)
    assert splits == Splits(train=("image000", "image001", "image002"), val=())


def test_one_source_cannot_be_divided() -> None:
    movie = movies({"movie": 9})
    for options in (SplitOptions(), SplitOptions(split="k-fold", folds=2)):
        with pytest.raises(DataError, match="only one source image, 'movie'") as error:
            make_splits(movie, options, 0)
        assert error.value.hint and "--val" in error.value.hint and "full" in error.value.hint
    assert len(make_splits(movie, SplitOptions(split="full"), 0).train) == 9


def test_no_images() -> None:
    with pytest.raises(DataError, match="no images"):
        make_splits([], SplitOptions(), 0)


def test_more_folds_than_sources() -> None:
    with pytest.raises(ConfigError, match=r"--folds 5 .*\(3\)"):
        make_splits(images(3), SplitOptions(split="k-fold"), 0)


def test_a_division_in_the_data_is_kept() -> None:
    samples = [sample("a", split="train"), sample("b", split="val"), sample("c", split="train")]
    assert make_splits(samples, SplitOptions(), 0) == Splits(train=("a", "c"), val=("b",))
    assert make_splits(samples, SplitOptions(split="full"), 0).val == ()
    both = [sample("m#0", "m", "train"), sample("m#1", "m", "val")]
    with pytest.raises(DataError, match="one source in both train and val: 'm'"):
        make_splits(both, SplitOptions(), 0)
    with pytest.raises(DataError, match="but not 'd'"):
        make_splits([*samples, sample("d")], SplitOptions(), 0)
    with pytest.raises(DataError, match="but not 'd'"):
        make_splits([samples[0], samples[2], sample("d")], SplitOptions(), 0)
    assert make_splits(samples[::2], SplitOptions(), 0).val, "only training images are not divided"
    with pytest.raises(DataError, match="only validation images"):
        make_splits(samples[1:2], SplitOptions(), 0)


def test_splits_are_stored_and_given_back(tmp_path: Path) -> None:
    file = tmp_path / "run" / "splits.json"
    made = make_splits(images(6), SplitOptions(), 3)
    made.save(file)
    assert json.loads(file.read_text()) == {"train": list(made.train), "val": list(made.val)}
    assert make_splits(images(6), SplitOptions(splits=file), 99) == made


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["image000", "image001"], ["image009"], "not in the data: 'image009'"),
        (["image000"], ["image001"], "leaves out images that are in the data: 'image002'"),
        (["image000", "image001"], ["image001", "image002"], "more than once: 'image001'"),
        ([], ["image000", "image001", "image002"], "no image to train on"),
    ],
)
def test_a_splits_file_that_does_not_fit(
    tmp_path: Path, train: list[str], val: list[str], message: str
) -> None:
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": train, "val": val}))
    with pytest.raises(DataError, match=message) as error:
        make_splits(images(3), SplitOptions(splits=file), 0)
    assert str(file) in str(error.value)
    with pytest.raises(DataError, match=message):
        select(images(3), Splits.load(file))


def test_a_splits_file_that_tears_a_movie(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    Splits(train=("a#0", "b#0"), val=("a#1",)).save(file)
    with pytest.raises(DataError, match="one source in both train and val: 'a'"):
        make_splits(movies({"a": 2, "b": 1}), SplitOptions(splits=file), 0)


@pytest.mark.parametrize("text", ["", "[1]", '{"train": 3}', '{"train": [], "tests": []}', "\x00"])
def test_damaged_splits_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "splits.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"splits\.json: not a splits file") as error:
        Splits.load(file)
    assert "\n" not in str(error.value)


def test_a_missing_splits_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Splits.load(tmp_path / "splits.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fold": 1}, "--fold goes with --split k-fold"),
        ({"split": "k-fold", "fold": 5}, "--fold 5 does not exist"),
        ({"split": "full", "val_fraction": 0.5}, "--val-fraction goes with --split train-val"),
        ({"splits": "a.json", "split": "full"}, "--splits and --split exclude each other"),
        ({"splits": "a.json", "val_fraction": 0.3}, "--splits and --val-fraction exclude"),
        ({"val_fraction": 1.0}, "less than 1"),
    ],
)
def test_options_that_would_be_ignored_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SplitOptions, values)


def volumes(count: int) -> list[Sample]:
    return [
        Sample(name=f"v{i}", image=VOLUME, labels=np.zeros(VOLUME.shape[1:], np.uint8))
        for i in range(count)
    ]


BLOCKS = SplitOptions(split="blocks")


def test_blocks_keep_the_end_of_each_volume() -> None:
    splits = make_splits(volumes(2), BLOCKS, 0)
    assert splits.train == ("v0[z:0-63]", "v1[z:0-63]")
    assert splits.val == ("v0[z:80-99]", "v1[z:80-99]")
    train, val = select(volumes(2), splits)
    assert [s.name for s in train] == list(splits.train) and train[0].image.shape[1] == 64
    assert [s.name for s in val] == list(splits.val) and val[0].image.shape[1] == 20
    assert {s.split for s in train} == {"train"} and {s.split for s in val} == {"val"}
    assert train[0].group == val[0].group == "v0"
    options = SplitOptions(split="blocks", split_axis="x", val_gap=0, val_fraction=0.5)
    assert make_splits(volumes(1), options, 0) == Splits(
        train=("v0[x:0-29]",), val=("v0[x:30-59]",)
    )


def test_blocks_leave_volumes_whole_that_come_divided() -> None:
    one, two, three = volumes(3)
    given = [replace(one, split="val"), two, replace(three, split="train")]
    splits = make_splits(given, BLOCKS, 0)
    assert splits.val[0] == one.name and three.name in splits.train
    assert [name.split("[")[0] for name in (splits.train[1], splits.val[1])] == [two.name] * 2
    assert len(splits.train) == len(splits.val) == 2


def test_blocks_with_nothing_to_validate_on_are_refused() -> None:
    given = [replace(one, split="train") for one in volumes(2)]
    with pytest.raises(DataError, match="none is left for validation") as error:
        make_splits(given, BLOCKS, 0)
    assert error.value.hint and "--split full" in error.value.hint


def test_a_volume_too_short_for_blocks() -> None:
    with pytest.raises(
        DataError, match=r"v0 is too short.* 40 voxels along y, 8 validate"
    ) as error:
        make_splits(volumes(1), SplitOptions(split="blocks", split_axis="y", val_gap=32), 0)
    assert error.value.hint and "--split-axis" in error.value.hint


def test_the_frames_of_a_movie_are_cut_at_one_place() -> None:
    frames = [Sample(name=f"m#{t}", image=VOLUME[:, :1], source="m", frame=t) for t in range(3)]
    splits = make_splits(frames, BLOCKS, 0)
    assert splits.train == ("m#0[x:0-31]", "m#1[x:0-31]", "m#2[x:0-31]")
    assert [len(side) for side in select(frames, splits)] == [3, 3]
    torn = Splits(train=("m#0[x:0-31]", "m#1[x:0-40]"), val=("m#0[x:40-59]", "m#2"))
    with pytest.raises(DataError, match="one source in both train and val: 'm'"):
        select(frames, torn)


def test_fields_of_a_well_are_not_cut_in_blocks() -> None:
    fields = [Sample(name=f"B/3/{i}", image=VOLUME, source="B/3") for i in range(2)]
    with pytest.raises(DataError, match="may show the same place"):
        make_splits(fields, BLOCKS, 0)
    names = [("B/3/0[z:0-9]", "B/3/1[z:0-9]"), ("B/3/0[z:20-29]", "B/3/1[z:20-29]")]
    with pytest.raises(DataError, match="one source in both train and val: 'B/3'"):
        select(fields, Splits(train=names[0], val=names[1]))


def test_the_splits_file_of_blocks_can_be_given_back(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    made = make_splits(volumes(2), BLOCKS, 0)
    made.save(file)
    assert make_splits(volumes(2), SplitOptions(splits=file), 5) == made
    with pytest.raises(DataError, match=r"not in the data: 'v1\[z:0-63\]'"):
        make_splits(volumes(1), SplitOptions(splits=file), 0)
    with pytest.raises(DataError, match="leaves out images that are in the data: 'v2'"):
        make_splits(volumes(3), SplitOptions(splits=file), 0)


@pytest.mark.parametrize(
    ("train", "val", "torn"),
    [
        (["v0[z:0-50]"], ["v0[z:50-99]"], True),
        (["v0[z:0-49]"], ["v0[z:50-99]"], False),
        (["v0[z:60-99]", "v0[z:0-20]"], ["v0[z:30-50]"], False),
        (["v0[z:60-99]", "v0[z:0-30]"], ["v0[z:30-50]"], True),
        (["v0[z:0-9]"], ["v0[y:20-29]"], True),
        (["v0"], ["v0[z:0-9]"], True),
        (["v0[z:0-9]"], ["v0"], True),
    ],
)
def test_no_voxel_is_on_both_sides(train: list[str], val: list[str], torn: bool) -> None:
    splits = Splits(train=tuple(train), val=tuple(val))
    if not torn:
        kept, _ = select(volumes(1), splits)
        assert [s.name for s in kept] == sorted(train)
        return
    with pytest.raises(DataError, match="both train and val: 'v0'") as error:
        select(volumes(1), splits)
    assert "do not overlap" in str(error.value.hint)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_gap": 8}, "--val-gap goes with --split blocks, not train-val"),
        ({"split": "k-fold", "split_axis": "z"}, "--split-axis goes with --split blocks"),
        ({"split": "full", "val_fraction": 0.5}, "goes with --split train-val or blocks"),
        ({"splits": "a.json", "split": "blocks"}, "--splits and --split exclude"),
        ({"split": "blocks", "val_gap": -1}, "--val-gap"),
        ({"split": "blocks", "split_axis": "c"}, "--split-axis"),
        ({"split": "blocks", "folds": 3}, "--folds goes with --split k-fold, not blocks"),
    ],
)
def test_options_of_blocks_that_do_nothing_are_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SplitOptions, values)


def test_samples_of_weight_0_are_not_trained_on() -> None:
    samples = [Sample(name=f"s{w}", image=PIXELS, weight=w) for w in (1.0, 0.0, 0.5)]
    assert [s.name for s in weighted(samples)] == ["s1.0", "s0.5"]
    assert weighted([]) == []
    with pytest.raises(DataError, match="weight 0"):
        weighted(samples[1:2])
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="odd has the weight"):
            weighted([*samples, Sample(name="odd", image=PIXELS, weight=weight)])


@given(MOVIES, st.integers(0, 99), st.floats(0.01, 0.6), st.booleans())
def test_test_images_are_sources_of_their_own(
    samples: list[Sample], seed: int, share: float, folded: bool
) -> None:
    names = sorted({s.group for s in samples})
    values = {"split": "k-fold", "folds": 2} if folded else {}
    options = parse(SplitOptions, {"test_fraction": share, **values})
    kept = max(round(share * len(names)), 1)
    if len(names) - kept < 2:
        with pytest.raises(DataError, match="left to train and to validate on"):
            make_splits(samples, options, seed)
        return
    splits = make_splits(samples, options, seed)
    sides = [*select(samples, splits), held_out(samples, splits)]
    groups = [{s.group for s in side} for side in sides]
    assert all(groups) and len(groups[2]) == kept
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(names)
    assert sum(map(len, sides)) == len(samples)
    if folded:
        other = make_splits(samples, options.model_copy(update={"fold": 1}), seed)
        assert other.test == splits.test and not set(other.val) & set(splits.val)
        assert {*other.val, *splits.val, *splits.test} == {s.name for s in samples}


def test_keeping_a_test_moves_no_image_to_validation() -> None:
    plain = make_splits(images(10), SplitOptions(), 3)
    tested = make_splits(images(10), SplitOptions(test_fraction=0.3), 3)
    assert tested.val == plain.val and len(tested.test) == 3
    assert set(tested.train) == set(plain.train) - set(tested.test)


def test_splits_files_may_name_a_test(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["image000"], "val": ["image001"]}))
    assert Splits.load(file).test == (), "files of older runs have none"
    made = Splits(train=("image000",), val=("image001",), test=("image002",))
    made.save(file)
    assert Splits.load(file) == made == make_splits(images(3), SplitOptions(splits=file), 0)
    train, val = select(images(3), made)
    assert [s.name for s in (*train, *val)] == ["image000", "image001"]
    assert [s.name for s in held_out(images(3), made)] == ["image002"]


@pytest.mark.parametrize(("side", "other"), [("train", "test"), ("val", "test")])
def test_a_source_on_two_sides_with_the_test_is_refused(side: str, other: str) -> None:
    names = {"train": ["b#0"], "val": ["c#0"], "test": ["d#0"]}
    names[side].append("a#0")
    names[other].append("a#1")
    with pytest.raises(DataError, match=f"in both {side} and {other}: 'a'"):
        select(movies({"a": 2, "b": 1, "c": 1, "d": 1}), Splits.model_validate(names))


def test_a_test_that_does_nothing_is_refused() -> None:
    for split in ("full", "blocks"):
        with pytest.raises(ConfigError, match="--test-fraction goes with --split train-val or k-"):
            parse(SplitOptions, {"split": split, "test_fraction": 0.2})
    with pytest.raises(ConfigError, match="--splits and --test-fraction exclude"):
        parse(SplitOptions, {"splits": "a.json", "test_fraction": 0.2})
    divided = [sample("a", split="train"), sample("b", split="val"), sample("c", split="train")]
    with pytest.raises(ConfigError, match="--test-fraction: the data says itself"):
        make_splits(divided, SplitOptions(test_fraction=0.4), 0)
    with pytest.raises(ConfigError, match=r"--folds 3 is more.*\(2, beside 1 for the test\)"):
        make_splits(images(3), SplitOptions(split="k-fold", folds=3, test_fraction=0.3), 0)
