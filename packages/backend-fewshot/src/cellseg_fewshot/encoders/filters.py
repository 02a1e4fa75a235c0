"""The encoder that needs no weights: a filter bank, small networks, and trees of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.masks import FoundMask
from cellseg_fewshot.filter_bank import responses
from cellseg_fewshot.filter_view import FilterView, Learned, reduced
from cellseg_fewshot.foreground import FOLDS, Marked, learn_foreground
from cellseg_fewshot.region_scores import Window, learn_scores
from cellseg_fewshot.small_networks import Ensemble
from cellseg_fewshot.views import FeatureMap, Shown, View

_SIDE = 64
_STEP = 2
_LEVELS = (0.2, 0.4, 0.6, 0.75)
"""Of IoU, between which regions are equally often learned from."""
_MARGIN = 2.0
"""Diameters around an example in which regions are learned from."""
_CHANGES = ((0.6, 0.15), (1.6, -0.1), (0.6, -0.1), (1.6, 0.2))
"""Of contrast and brightness: other images differ from those of the examples."""


class FilterEncoder:
    """What a filter bank sees, what examples teach small networks of it, and regions to choose."""

    def __init__(self, learned: Learned | None, device: torch.device) -> None:
        """With what was learned before, if anything."""
        self._learned = learned
        self._device = device
        self._calls = 0

    @classmethod
    def create(cls, device: torch.device) -> FilterEncoder:
        """An encoder that has learned nothing.

        Args:
            device: where its networks compute.
        """
        return cls(None, device)

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], device: torch.device) -> FilterEncoder:
        """An encoder as it was when it gave its state.

        Args:
            state: what ``FilterEncoder.state`` gave.
            device: where its networks compute.
        """
        if "diameter" not in state:
            return cls(None, device)
        parts: dict[str, Ensemble] = {}
        for part in ("foreground", "scores"):
            names = [name for name in state if name.startswith(f"{part}.")]
            tensors = {name.removeprefix(f"{part}."): state[name] for name in names}
            parts[part] = Ensemble(tensors).to(device)
        low, high = state["areas"].tolist()
        learned = Learned(float(state["diameter"]), (low, high), **parts)
        return cls(learned, device)

    @property
    def name(self) -> str:
        """What users call it."""
        return "filters"

    @property
    def calls(self) -> int:
        """How many planes and crops were encoded so far."""
        return self._calls

    @property
    def judges(self) -> bool:
        """Its scores were learned from the examples."""
        return True

    @property
    def scales(self) -> bool:
        """Planes are seen as they are."""
        return False

    @property
    def side(self) -> int:
        """Pixels along a side that crops are brought to."""
        return _SIDE

    def expect(self, side: int) -> None:
        """Planes of all sizes are seen at one scale anyway."""

    def view(
        self, planes: Sequence[NDArray[np.float32]], larger: Sequence[float] | None = None
    ) -> list[View]:
        """See planes ``(c, y, x)``, each at the scale of its objects."""
        self._calls += len(planes)
        times = [1.0] * len(planes) if larger is None else larger
        return [
            FilterView(plane, _enlarged(self._learned, one))
            for plane, one in zip(planes, times, strict=True)
        ]

    def encode_crops(self, crops: Sequence[NDArray[np.float32]]) -> list[FeatureMap]:
        """Filter responses of square crops ``(c, s, s)``, each brought to the same side."""
        import cv2

        self._calls += len(crops)
        found = []
        for crop in crops:
            side = crop.shape[-1]
            how = cv2.INTER_AREA if side > _SIDE else cv2.INTER_LINEAR
            image = np.stack([cv2.resize(x, (_SIDE, _SIDE), interpolation=how) for x in crop])
            values = reduced(responses(image, _SIDE / 2), _STEP)
            found.append(FeatureMap(torch.from_numpy(values), (side * _STEP / _SIDE,) * 2))
        return found

    def fit(self, shown: Sequence[tuple[NDArray[np.float32], Sequence[Shown]]], seed: int) -> None:
        """Learn which pixels lie in objects, and which regions are objects.

        The result does not depend on the order of planes and examples.

        Args:
            shown: planes ``(c, y, x)`` with the examples in them.
            seed: of what is random.

        Raises:
            ValueError: all examples are of what is to be left alone.
        """
        planes = sorted(
            ((plane, sorted(examples, key=_key)) for plane, examples in shown),
            key=lambda one: [_key(x) for x in one[1]],
        )
        wanted = [x.mask.mask.sum() for _, examples in planes for x in examples if x.kind]
        if not wanted:
            raise ValueError("no example of anything to look for")
        areas = np.sort(np.array(wanted, np.float64))
        diameter = float(np.sqrt(np.median(areas)))
        empty = Learned(diameter, (float(areas[0]), float(areas[-1])), _NOTHING, None)
        views = [FilterView(plane, empty) for plane, _ in planes]
        marked = [_marked(v, x) for v, (_, x) in zip(views, planes, strict=True)]
        scaled = views[0].diameter
        foreground = learn_foreground(marked, scaled, seed).to(self._device)
        part = Learned(diameter, empty.areas, foreground, None)
        scores = _learn_regions([v.plane for v in views], marked, part, seed).to(self._device)
        self._learned = Learned(diameter, empty.areas, foreground, scores)

    def state(self) -> Mapping[str, Tensor]:
        """What was learned; nothing before the first examples."""
        one = self._learned
        if one is None or one.scores is None:
            return {}
        tensors = {
            "diameter": torch.tensor(one.diameter, dtype=torch.float64),
            "areas": torch.tensor(one.areas),
        }
        for part, ensemble in (("foreground", one.foreground), ("scores", one.scores)):
            tensors |= {f"{part}.{name}": x.cpu() for name, x in ensemble.tensors.items()}
        return tensors


_NOTHING = Ensemble({})


def _enlarged(learned: Learned | None, times: float) -> Learned | None:
    """What was learned, for objects that are so many times as large."""
    if learned is None or times == 1:
        return learned
    low, high = (area * times**2 for area in learned.areas)
    return replace(learned, diameter=learned.diameter * times, areas=(low, high))


def _key(one: Shown) -> tuple[int, tuple[int, int], tuple[int, ...], bytes]:
    return one.kind, one.mask.corner, one.mask.mask.shape, one.mask.mask.tobytes()


def _marked(view: FilterView, examples: Sequence[Shown]) -> Marked:
    masks = [_within(view, x.mask) for x in examples]
    nothing = np.zeros(view.image.shape[1:], bool)
    return Marked(
        [view.responses, *(responses(view.image * a + b, view.diameter) for a, b in _CHANGES)],
        [mask for mask, x in zip(masks, examples, strict=True) if x.kind],
        np.logical_or.reduce(
            [nothing, *(mask for mask, x in zip(masks, examples, strict=True) if not x.kind)]
        ),
    )


def _within(view: FilterView, one: FoundMask) -> NDArray[np.bool_]:
    """The mask in the reduced plane: cells of which at least half lies in it, or the fullest."""
    whole = np.zeros((1, *view.size), np.float32)
    rows, columns = (slice(c, c + n) for c, n in zip(one.corner, one.mask.shape, strict=True))
    whole[0, rows, columns] = one.mask
    share = reduced(whole, view.factor)[0]
    return np.asarray(share >= min(0.5, share.max()))


def _learn_regions(
    planes: Sequence[NDArray[np.float32]], marked: Sequence[Marked], learned: Learned, seed: int
) -> Ensemble:
    """Networks that score regions, from those that the examples tell something about.

    The regions come from windows around the examples, once from the whole plane, and from maps of
    foreground by networks that have not seen the example.
    """
    tables, targets, kinds, number = [], [], [], 0
    for plane, one in zip(planes, marked, strict=True):
        view = FilterView(plane, learned)
        view.responses = one.pixels[0]
        every = [*one.objects, *_pieces(one.others)]
        folds = [(number + i) % FOLDS for i in range(len(every))]
        number += len(one.objects)
        for fold in sorted(set(folds)):
            mine = [i for i, f in enumerate(folds) if f == fold]
            objects = [one.objects[i] for i in mine if i < len(one.objects)]
            told = np.stack([*objects, one.others, np.logical_or.reduce(every)])
            margin = _MARGIN * view.diameter
            windows = _windows([every[i] for i in mine], margin) if fold != min(folds) else None
            for window, regions, measured in view.regions(windows, fold):
                y, x = window
                beyond = np.zeros(regions.smallest.shape, np.float32)
                beyond[0] += y.start > 0
                beyond[-1] += y.stop < told.shape[1]
                beyond[:, 0] += x.start > 0
                beyond[:, -1] += x.stop < told.shape[2]
                shared = regions.sums([*(z[window].astype(np.float32) for z in told), beyond])
                whole = (shared[:, -1] == 0) & _fits(measured.areas, view.limits())
                rows, target, kind = _told(measured.areas, shared[:, :-1], told.sum((1, 2)), whole)
                tables.append(measured.table[rows])
                targets.append(target)
                kinds.append(kind)
    every_kind = np.concatenate(kinds)
    return learn_scores(
        np.concatenate(tables),
        np.concatenate(targets).astype(np.float32),
        (1 / np.bincount(every_kind)[every_kind]).astype(np.float32),
        seed,
    )


def _pieces(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The connected parts."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    return [labels == label for label in range(1, count)]


def _windows(masks: Sequence[NDArray[np.bool_]], margin: float) -> list[Window]:
    """One around each mask, or the whole if that is less."""
    size = masks[0].shape
    reach, windows = round(margin), []
    for mask in masks:
        lines = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        y, x = (
            slice(max(0, int(line[0]) - reach), min(n, int(line[-1]) + 1 + reach))
            for line, n in zip(lines, size, strict=True)
        )
        windows.append((y, x))
    pixels = sum((y.stop - y.start) * (x.stop - x.start) for y, x in windows)
    return windows if pixels < size[0] * size[1] else [(slice(0, size[0]), slice(0, size[1]))]


def _told(
    areas: NDArray[np.float64],
    shared: NDArray[np.float64],
    sizes: NDArray[np.int64],
    whole: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """What examples tell of regions.

    A region that lies mostly in an example or holds most of it has the IoU with it. One that lies
    mostly in what is no object has 0, and so, because few of all regions are objects, has one that
    shares nothing with any example.

    Args:
        areas: ``(n,)`` of the regions.
        shared: ``(n, k + 2)`` pixels with each example, with what is no object, and with anything
            that is known.
        sizes: ``(k + 2,)`` pixels of all these.
        whole: ``(n,)``, regions to tell of.

    Returns:
        The regions, their IoU, and which of the ranges of ``_LEVELS`` that is in, or one more for
        those that share nothing.
    """
    objects, others = shared[:, :-2], shared[:, -2]
    iou = (objects / (areas[:, None] + sizes[:-2] - objects)).max(1, initial=0)
    within = (objects > 0.5 * areas[:, None]) | (objects > 0.5 * sizes[:-2].clip(1))
    known, other = within.any(1), others > 0.5 * areas
    apart = shared[:, -1] == 0
    rows = np.flatnonzero(whole & (known | other | apart))
    target = np.where(other, 0, iou)[rows]
    kind = np.where((known | other)[rows], np.digitize(target, _LEVELS), len(_LEVELS) + 1)
    return rows, target, kind.astype(np.int64)


def _fits(areas: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.bool_]:
    """Up to twice as small or large as what is of interest."""
    return (areas >= limits[0] / 2) & (areas <= limits[1] * 2)
