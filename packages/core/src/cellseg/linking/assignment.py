"""Linking by the assignment that costs least in all, with laptrack.

The two steps, from frame to frame and then for divisions, and what it costs to leave an object
without a partner are those of Jaqaman et al., Nature Methods 2008 (doi:10.1038/nmeth.1237).
laptrack solves the assignment between two sets of points, by squared distance; so all that counts
is written as coordinates: sizes, missing frames, and where the sister of a daughter should be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import PluginError
from cellseg.linking.frames import Frame, Open, Points, Rows, Shared, Step

_SURE = 0.5  # IoU; each object can share more than this with one other alone
_STILL = 0.5  # part of the objects that must be sure, for overlap to mean anything
_GAP = 0.3  # what a missing frame costs, in largest distances
_GOES_ON = 0.4  # part of the last step that is expected again
_FOUND_AGAIN = 0.4  # cost below which a lost object beats a division, in largest ones
_INSIDE = 0.5  # part of a daughter that lies where the mother was, and more
_SHRUNK = 0.9  # size of a daughter that is too large for one, in mothers
_TOGETHER = 1.15  # expected size of both daughters, in mothers
_UNEQUAL = 3.0  # how many times larger than her sister a daughter is at most
_MIDDLE = 0.4  # how far from the mother the middle of her daughters is, in largest distances


class AssignmentLinker:
    """Links by distance and size.

    1. Objects that overlap one of the frame before by an IoU above 0.5 are that object, where most
       objects do; not where cells move so far that they may lie where another one was.
    2. Two objects that lie where one was, and fit as its daughters, come from its division, unless
       a track that was lost is found again in one of them: then they touched, and part again.
    3. All other objects are assigned to all other tracks, those included that were seen last some
       frames ago.
    4. Objects that begin are assigned to tracks that shrank, as second daughters: the middle of
       both daughters lies where the mother was, they are of similar size, and together about as
       large as she.

    Args:
        max_distance: how far an object may move, in pixels; None for the median diameter.
        divisions: whether there are any.

    Raises:
        PluginError: laptrack is not installed.
    """

    def __init__(self, max_distance: float | None, divisions: bool) -> None:
        try:
            import laptrack  # noqa: F401
        except ImportError as error:
            raise PluginError(
                "--method laptrack: laptrack is not installed.",
                hint='Install it: uv pip install "cellseg-core[track]"; or give --method overlap.',
            ) from error
        self._max_distance = max_distance
        self._divisions = divisions

    def __call__(self, open: Open, frame: Frame, shared: Shared) -> Step:
        """Which object continues which track, and which come from a division."""
        step = Step(np.full(len(frame), -1), np.full(len(frame), -1))
        if not len(open) or not len(frame):
            return step
        typical = float(np.median(np.concatenate([open.diameter, frame.diameter])))
        reach = self._max_distance or typical
        moved = frame.position[shared.place] - open.position[shared.row]
        sure = (shared.iou > _SURE) & (np.linalg.norm(moved, axis=1) < reach)
        if sure.sum() > _STILL * min(len(frame), int((open.place >= 0).sum())):
            step.goes_on[shared.place[sure]] = shared.row[sure]
        if self._divisions:
            _divide_in_place(open, frame, shared, step, reach)
        _assign(open, frame, step, reach)
        if self._divisions:
            _divide_rest(open, frame, step, reach)
        return step


def _divide_in_place(open: Open, frame: Frame, shared: Shared, step: Step, reach: float) -> None:
    inside = shared.part > _INSIDE
    order = np.argsort(shared.row[inside], kind="stable")
    place = shared.place[inside][order]
    mother, first, count = np.unique(
        shared.row[inside][order], return_index=True, return_counts=True
    )
    two = count == 2
    mother, pair = mother[two], place[first[two][:, None] + [0, 1]]
    area = np.sort(frame.objects.area[pair], axis=1)
    small, large = area[:, 0], area[:, 1]
    fits = (large <= _SHRUNK * open.area[mother]) & (large <= _UNEQUAL * small)
    middle = frame.position[pair].mean(1) - open.position[mother]
    fits &= np.linalg.norm(middle, axis=1) <= _MIDDLE * reach
    taken = step.goes_on[pair]
    fits &= ((taken < 0) | (taken == mother[:, None])).all(1)
    fits &= ~_found_again(open, frame, pair.ravel(), reach).reshape(-1, 2).any(1)
    step.goes_on[pair[fits]] = -1
    step.mother[pair[fits]] = mother[fits, None]


def _found_again(open: Open, frame: Frame, places: Rows, reach: float) -> NDArray[np.bool_]:
    """Which objects are likely to be a track that was lost in earlier frames."""
    from scipy.spatial.distance import cdist

    lost = np.flatnonzero(open.age > 1)
    if not len(lost):
        return np.zeros(len(places), bool)
    tracks, objects = _points(open, frame, lost, places, reach)
    nearest = cdist(tracks, objects, "sqeuclidean").min(0)
    likely: NDArray[np.bool_] = nearest < _FOUND_AGAIN * reach**2
    return likely


def _assign(open: Open, frame: Frame, step: Step, reach: float) -> None:
    rows = np.setdiff1d(np.arange(len(open)), np.concatenate([step.goes_on, step.mother]))
    places = np.flatnonzero((step.goes_on < 0) & (step.mother < 0))
    a, b = assigned(*_points(open, frame, rows, places, reach), reach)
    step.goes_on[places[b]] = rows[a]


def _divide_rest(open: Open, frame: Frame, step: Step, reach: float) -> None:
    """The mother, and the daughter that continues her, say where the other one should be."""
    begins = np.flatnonzero((step.goes_on < 0) & (step.mother < 0))
    first = np.flatnonzero(step.goes_on >= 0)
    mother = step.goes_on[first]
    area = frame.objects.area
    shrank = (open.age[mother] == 1) & (area[first] <= _SHRUNK * open.area[mother])
    first, mother = first[shrank], mother[shrank]
    size = np.log(area) / np.log(_UNEQUAL)
    rest = np.log(_TOGETHER * open.area[mother] - area[first]) / np.log(_UNEQUAL)
    scale = 1 / (_MIDDLE * reach)
    expected = (open.position[mother] - frame.position[first] / 2) * scale
    a, b = assigned(
        np.column_stack([expected, size[first], rest]),
        np.column_stack([frame.position[begins] / 2 * scale, size[begins], size[begins]]),
        1.0,
    )
    step.mother[begins[b]] = mother[a]


def _points(
    open: Open, frame: Frame, rows: Rows, places: Rows, reach: float
) -> tuple[Points, Points]:
    """Tracks and objects as points: where they are, how large, and how long they were missing."""
    expected = open.position[rows] + _GOES_ON * open.moved[rows]
    missing = _GAP * reach * (open.age[rows] - 1)
    return (
        np.column_stack([expected, open.diameter[rows], missing]),
        np.column_stack([frame.position[places], frame.diameter[places], np.zeros(len(places))]),
    )


def assigned(left: Points, right: Points, reach: float) -> tuple[Rows, Rows]:
    """Pairs of points, each in one pair at most, that cost least in all.

    Args:
        left: ``(n, d)``.
        right: ``(m, d)``.
        reach: points as far apart as this are no pair.

    Returns:
        The rows of ``left`` and of ``right``, pair by pair.
    """
    if not len(left) or not len(right):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    from laptrack import LapTrack

    alone = reach**2 / 2  # so that a pair is worth it up to the reach, and no further
    tracker = LapTrack(
        metric="sqeuclidean",
        cutoff=reach**2,
        gap_closing_cutoff=False,
        splitting_cutoff=False,
        track_start_cost=alone,
        track_end_cost=alone,
    )
    # To each pair laptrack adds the least cost of all; a pair without a distance makes that 0.
    far = np.maximum(left.max(0), right.max(0)) + 2 * reach
    edges = tracker.predict([np.vstack([left, far]), np.vstack([right, far])]).edges()
    pairs = np.array([(a[1], b[1]) for a, b in edges], np.int64).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] < len(left)]
    return pairs[:, 0], pairs[:, 1]
