"""The tracker follows what the model says; here a model that reads the truth from the pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from cellseg import Tile
from cellseg.data import Tracked
from cellseg.errors import DataError
from cellseg_cellsam2.parts import Answer, Encoded, Memory, Prompts
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.tracker import CellTracker

SIDE = 64
CELL = 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Oracle:
    """Sees cells whose pixels are their numbers, in 64ths; the daughters of 3 are 6 and 7.

    Each fault is a set of numbers: cells that are not followed, that seem to divide though they do
    not, whose heat is missing, or whose masks are thought to be bad; and pairs of which the first
    is taken for the second once it is not in the image.
    """

    chunk = 3
    side = SIDE
    device = torch.device("cpu")

    def __init__(
        self,
        *,
        forgets: Sequence[int] = (),
        splits: Sequence[int] = (),
        cold: Sequence[int] = (),
        bad: Sequence[int] = (),
        confuses: dict[int, int] | None = None,
    ) -> None:
        self.forgets, self.splits, self.cold, self.bad = forgets, splits, cold, bad
        self.confuses = confuses or {}
        self.asked: list[int] = []

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def encode(self, prepared: Tensor) -> Encoded:
        numbers = (prepared[:, 0] * 64).round()
        heat = torch.full((len(numbers), SIDE // 4, SIDE // 4), -10.0)
        for image, plane in enumerate(numbers):
            for number in plane.unique().tolist():
                if number and number not in self.cold:
                    y, x = (plane == number).nonzero().float().mean(0)
                    heat[image, int(y + 0.5) // 4, int(x + 0.5) // 4] = 3.0
        fine = torch.zeros(len(numbers), 1, 1, 1)
        return Encoded(numbers[:, None], fine, (fine, fine), heat)

    def answer(
        self,
        encoded: Encoded,
        image: Tensor,
        prompts: Prompts | None = None,
        memory: Memory | None = None,
        time: Tensor | None = None,
    ) -> Answer:
        assert len(image) <= self.chunk
        self.asked.append(len(image))
        answers = []
        for i, plane in enumerate(encoded.embedding[image, 0]):
            if prompts is not None:
                x, y = (prompts.points[i, 0] + 0.5).long().tolist()
                answers.append(self._say(plane, int(plane[y, x]), new=True))
            else:
                assert memory is not None and time is not None
                latest = int(memory.times[i].argmax())
                assert memory.times[i].max() < time[i]
                answers.append(self._say(plane, int(memory.features[i, latest].max()), new=False))
        return Answer(*(torch.stack(each) for each in zip(*answers, strict=True)))

    def _say(self, plane: Tensor, number: int, new: bool) -> tuple[Tensor, ...]:
        there = {*plane.unique().tolist()} - {0}
        if not new and number not in there:
            number = self.confuses.get(number, number)
        halves = (2 * number, 2 * number + 1)
        divides = not new and number not in there and there.issuperset(halves)
        shown = halves if divides else (number, number)
        ids = [number, *shown, 0]
        masks = torch.stack([torch.where(plane == n, 5.0, -5.0) for n in ids])
        ious = torch.tensor([0.2 if n in self.bad else 0.9 for n in ids])
        known = number > 0 and (divides or number in there)
        return (
            torch.nn.functional.avg_pool2d(masks, 4),
            ious,
            torch.tensor(4.0 if known and (new or number not in self.forgets) else -4.0),
            torch.tensor(4.0 if divides or number in self.splits else -4.0),
            torch.tensor([[float(n)] for n in ids]),
        )

    def remember(
        self,
        encoded: Encoded,
        image: Tensor,
        masks: Tensor,
        tokens: Tensor,
        presence: Tensor,
        time: Tensor,
        memory: Memory | None = None,
    ) -> Memory:
        count = len(image)
        new = tokens.view(count, 1, 1, 1)
        assert bool(((masks > 0).flatten(1).any(1) == presence).all())
        if memory is None:
            memory = Memory(
                torch.zeros(count, 3, 1, 1, 1),
                torch.full((count, 3), -1),
                torch.zeros(count, 3, 1),
                torch.full((count, 3), -1),
            )
        features, times = memory.features.clone(), memory.times.clone()
        for i in range(count):
            slot = 0 if times[i, 0] < 0 else 1 + int(times[i, 1:].argmin())
            # What is absent is known by what was seen before.
            features[i, slot] = new[i] if presence[i] else features[i, times[i].argmax()]
            times[i, slot] = time[i]
        return Memory(features, times, memory.pointers, times.clone())


def frame(**cells: tuple[int, int]) -> Tile:
    """A tile of squares at ``(y, x)``; ``n5`` is the cell 5."""
    image = np.zeros((1, 1, SIDE, SIDE), np.float32)
    for name, (y, x) in cells.items():
        image[0, 0, y : y + CELL, x : x + CELL] = int(name[1:]) / 64
    return Tile(image=image)


def track(tiles: Sequence[Tile], oracle: Any = None, **options: Any) -> list[Tracked]:
    tracker = CellTracker(oracle or Oracle(), CellSam2PredictOptions(**options))
    return [tracker.step(tile) for tile in tiles]


def named(tile: Tile, found: Tracked) -> dict[int, int]:
    """The id of each cell, by its number; 0 for cells that are not found."""
    numbers = (tile.image[0] * 64).round().astype(int)
    named = {}
    for number in np.unique(numbers[numbers > 0]).tolist():
        ids = np.unique(found.labels[numbers == number])
        ids = ids[ids > 0]
        assert len(ids) <= 1, "two objects in one cell"
        named[number] = int(ids[0]) if len(ids) else 0
    there = {*np.unique(found.labels).tolist()} - {0}
    assert there == {*named.values()} - {0} == {*found.scores}
    return named


def follow(tiles: Sequence[Tile], oracle: Any = None, **options: Any) -> list[dict[int, int]]:
    """The id of each cell in each frame."""
    results = track(tiles, oracle, **options)
    return [named(tile, found) for tile, found in zip(tiles, results, strict=True)]


def test_cells_keep_their_ids() -> None:
    tiles = [
        frame(n1=(0, 0), n2=(0, 20), n9=(40, 40), n11=(20, 0)),
        frame(n2=(4, 24), n1=(4, 0), n9=(40, 36), n11=(24, 4)),
        frame(n11=(28, 8), n9=(40, 32), n1=(8, 0), n2=(8, 28)),
    ]
    first, *others = follow(tiles)
    assert sorted(first.values()) == [1, 2, 3, 4]
    assert others == [first, first]


def test_masks_are_where_the_cells_are() -> None:
    tile = frame(n1=(8, 12), n2=(40, 20))
    found = track([tile, tile])
    for one in found:
        assert one.labels.shape == (1, SIDE, SIDE) and one.labels.dtype == np.uint32
        truth = tile.image[0] > 0
        assert ((one.labels > 0) & truth).sum() / ((one.labels > 0) | truth).sum() > 0.8
        assert all(0.8 < score < 0.9 for score in one.scores.values())


def test_a_division_ends_the_mother() -> None:
    tiles = [frame(n3=(20, 20), n1=(0, 0)), frame(n6=(20, 12), n7=(20, 28), n1=(0, 0))]
    tiles.append(tiles[1])
    before, after, later = track(tiles)
    mother = named(tiles[0], before)
    daughters = named(tiles[1], after)
    assert daughters[1] == mother[1]
    assert after.parents == {daughters[6]: mother[3], daughters[7]: mother[3]}
    assert mother[3] not in daughters.values() and len(set(daughters.values())) == 3
    assert named(tiles[2], later) == daughters and not later.parents


def test_one_daughter_alone_is_its_mother() -> None:
    """Both masks of what seems to divide are the same cell: one of them goes."""
    tiles = [frame(n3=(20, 20)), frame(n3=(20, 24)), frame(n3=(20, 28))]
    found = track(tiles, Oracle(splits=[3]))
    assert [named(tile, one) for tile, one in zip(tiles, found, strict=True)] == [{3: 1}] * 3
    assert not any(one.parents for one in found)


def test_a_division_needs_two_good_masks() -> None:
    tiles = [frame(n3=(20, 20)), frame(n6=(20, 12), n7=(20, 28))]
    found = track(tiles, Oracle(bad=[7]))
    assert not found[1].parents
    assert named(tiles[1], found[1])[7] == 0


def test_divisions_are_a_threshold() -> None:
    tiles = [frame(n3=(20, 20)), frame(n6=(20, 12), n7=(20, 28))]
    assert track(tiles, division_threshold=0.98)[1].parents
    assert not track(tiles, division_threshold=0.99)[1].parents


def test_new_cells_get_new_ids() -> None:
    tiles = [
        frame(),
        frame(n1=(0, 0)),
        frame(n1=(0, 4), n2=(40, 0)),
        frame(n2=(40, 4), n9=(20, 40)),
        frame(n9=(20, 44), n1=(0, 40), n2=(40, 8)),
    ]
    found = follow(tiles, max_gap=0)
    assert found == [{}, {1: 1}, {1: 1, 2: 2}, {2: 2, 9: 3}, {9: 3, 1: 4, 2: 2}]


@pytest.mark.parametrize(("gap", "same"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_cell_may_be_missing_for_some_frames(gap: int, same: bool) -> None:
    away = frame(n1=(0, 0))
    tiles = [frame(n1=(0, 0), n2=(40, 40)), away, away, frame(n1=(0, 0), n2=(40, 20))]
    found = follow(tiles, max_gap=gap)
    assert (found[-1][2] == found[0][2]) is same
    assert found[-1][1] == found[0][1]


@pytest.mark.parametrize(("to", "same"), [((40, 36), True), ((40, 4), False)])
def test_what_is_found_where_a_track_was_lost_is_that_track(
    to: tuple[int, int], same: bool
) -> None:
    """The model does not follow cell 2; its heat shows it again."""
    tiles = [frame(n1=(0, 0), n2=(40, 40)), frame(n1=(0, 0), n2=to)]
    found = follow(tiles, Oracle(forgets=[2]))
    assert (found[1][2] == found[0][2]) is same
    assert found[1][1] == found[0][1]


def test_a_track_that_was_lost_takes_no_cell_of_another() -> None:
    """Cell 2 is gone, and its memory takes cell 1 for it: cell 1 stays what it is."""
    tiles = [frame(n1=(0, 0), n2=(0, 20)), frame(n1=(0, 8)), frame(n1=(0, 12)), frame(n1=(0, 16))]
    found = follow(tiles, Oracle(confuses={2: 1}))
    assert [one[1] for one in found[1:]] in ([found[0][1]] * 3, [found[0][2]] * 3)
    assert len({one[1] for one in found[1:]}) == 1, "one of both, and always the same"


def test_gaps_are_not_divisions() -> None:
    """Cell 3 is not seen in one frame, and its daughters in the next."""
    tiles = [frame(n3=(20, 20)), frame(n1=(0, 0)), frame(n6=(20, 12), n7=(20, 28))]
    assert not track(tiles)[2].parents


def test_frames_without_contrast_show_nothing() -> None:
    tiles = [frame(), frame(), frame(n1=(0, 0)), frame(), frame(n1=(4, 4)), frame()]
    oracle = Oracle()
    found = track(tiles, oracle)
    assert [len(one.scores) for one in found] == [0, 0, 1, 0, 1, 0]
    assert named(tiles[4], found[4]) == named(tiles[2], found[2])


def test_small_cells_are_left_out() -> None:
    tile = frame(n1=(0, 0))
    tile.image[0, 0, 40:44, 40:44] = 2 / 64
    assert follow([tile, tile]) == [{1: 1, 2: 0}] * 2
    assert follow([tile, tile], min_size=0) == [{1: 1, 2: 2}] * 2


def test_without_the_heatmap_a_grid_finds_cells() -> None:
    tile = frame(n1=(0, 0), n2=(40, 40))
    blind = Oracle(cold=[1, 2])
    assert follow([tile], blind) == [{1: 0, 2: 0}]
    found = follow([tile, tile], blind, use_heatmap=False, points_per_side=8)
    assert sorted(found[0].values()) == [1, 2] and found[1] == found[0]


def test_many_cells_are_asked_in_chunks() -> None:
    cells = {f"n{1 + i}": (16 * (i // 4), 16 * (i % 4)) for i in range(16)}
    oracle = Oracle()
    found = follow([frame(**cells)] * 2, oracle)
    assert len(found[0]) == 16 and found[1] == found[0] and 0 not in found[0].values()
    assert oracle.asked == [3, 3, 3, 3, 3, 1] * 2


def _story() -> list[Tile]:
    return [
        frame(),
        frame(n1=(0, 0), n3=(20, 20)),
        frame(n1=(4, 0), n3=(20, 20), n9=(48, 48)),
        frame(n1=(8, 0), n6=(20, 12), n7=(20, 28)),
        frame(n1=(8, 0), n6=(20, 12), n7=(20, 28), n9=(48, 40)),
        frame(n12=(16, 8), n13=(32, 8), n7=(20, 28), n9=(48, 40)),
        frame(n12=(16, 8), n13=(32, 8), n7=(20, 28)),
    ]


@pytest.mark.parametrize("cut", range(7))
def test_another_tracker_goes_on_from_the_state(cut: int) -> None:
    tiles, options = _story(), CellSam2PredictOptions()
    whole = CellTracker(Oracle(), options)
    expected = [whole.step(tile) for tile in tiles]
    first = CellTracker(Oracle(), options)
    found = [first.step(tile) for tile in tiles[:cut]]
    second = CellTracker(Oracle(), options, state=first.state())
    found += [second.step(tile) for tile in tiles[cut:]]
    for right, given in zip(expected, found, strict=True):
        np.testing.assert_array_equal(given.labels, right.labels)
        assert given.parents == right.parents and given.scores == right.scores
    _assert_same(second.state(), whole.state())


def test_the_story_is_told() -> None:
    """What the test above compares is not empty."""
    found = track(_story())
    assert sum(len(one.parents) for one in found) == 4
    assert named(_story()[4], found[4])[9] == named(_story()[2], found[2])[9]


def test_a_state_that_is_none_is_refused() -> None:
    tracker = CellTracker(Oracle(), CellSam2PredictOptions())
    tracker.step(frame(n1=(0, 0)))
    state = dict(tracker.state())
    del state["times"]
    with pytest.raises(DataError, match="saved state"):
        CellTracker(Oracle(), CellSam2PredictOptions(), state=state)


def test_frames_have_one_shape() -> None:
    tracker = CellTracker(Oracle(), CellSam2PredictOptions())
    tracker.step(frame(n1=(0, 0)))
    with pytest.raises(DataError, match="after one of"):
        tracker.step(Tile(image=np.zeros((1, 1, 32, 64), np.float32)))


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (1, 3, 64, 64)])
def test_images_that_cannot_be_seen_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"channels|planes"):
        CellTracker(Oracle(), CellSam2PredictOptions()).step(Tile(image=np.zeros(shape)))


def test_the_state_does_not_grow() -> None:
    """Cells come and go for a hundred frames; what is known is that of those of late."""
    tracker = CellTracker(Oracle(), CellSam2PredictOptions(max_gap=1))
    sizes, highest = [], 0
    for time in range(100):
        found = tracker.step(frame(n1=(0, 0), **{f"n{9 + time % 50}": (40, 20 * (time % 3))}))
        sizes.append(sum(array.nbytes for array in tracker.state().values()))
        highest = max(highest, *found.scores)
    assert highest == 101
    assert max(sizes[50:]) <= max(sizes[:50])
    assert len(tracker.state()["ids"]) == 3  # two are there, and one was there before


def _assert_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype, name
