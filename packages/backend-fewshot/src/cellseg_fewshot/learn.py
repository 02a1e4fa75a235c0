"""Learn what to look for from a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from cellseg import Emit, Tiling, Trained, TrainJob
from cellseg.data import Example, ExampleImage
from cellseg.errors import ConfigError, DataError, InterruptedRunError
from cellseg.events import Checkpointed, Event, Note, Progress
from cellseg.files import remove_leftovers
from cellseg.torch.devices import memory_errors, resolve_device
from cellseg.torch.masks import FoundMask
from cellseg.torch.weights import save_tensors
from cellseg_fewshot.candidates import Asking, find_candidates
from cellseg_fewshot.encoders import (
    EncoderSettings,
    base_weights,
    describe_encoder,
    open_encoder,
    restore_encoder,
)
from cellseg_fewshot.looking import Seen, box, look, look_at_crops
from cellseg_fewshot.magnification import blobs_of
from cellseg_fewshot.memory import Memory
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.predict import find_objects, resolve
from cellseg_fewshot.predict_options import FewshotPredictOptions
from cellseg_fewshot.remembering import Separation, remember, remember_crops
from cellseg_fewshot.stored import ENCODER, Stored, read_tensors
from cellseg_fewshot.views import Encoder, Shown, View
from cellseg_fewshot.windows import Window, diameters, middle, tiling_for, windows

OCCUPANCY = 0.2
"""Part of a crop that the object fills, if nothing else is asked for."""
_PREVIEWS = 2
_POOR = 0.8
"""Examples and all else separate poorly if a smaller part of either is on its side."""
_MEMORY = "Use --device cpu, or a smaller encoder."


def learn(job: TrainJob[FewshotOptions], emit: Emit) -> Trained:
    """Look at the examples (or go on doing so), and leave what was learned in ``job.model``.

    There are no epochs: everything is looked at once.

    Raises:
        ConfigError: options that do nothing with the encoder, or with these examples.
        DataError: a class has no example, or the encoder finds nothing at a point.
        WeightsError: the encoder's weights cannot be had or read.
        DeviceError: the device is not there, or its memory does not suffice.
        InterruptedRunError: it was asked to stop; what is done is kept.
    """
    with memory_errors(_MEMORY):
        return _Learning(job, emit).run()


class _Learning:
    def __init__(self, job: TrainJob[FewshotOptions], emit: Emit) -> None:
        self.job, self.emit, self.options = job, emit, job.options
        self.device = resolve_device(job.device)
        self._views: dict[int, View] = {}
        """Of windows that were looked at, for pictures."""
        self._steps = 0
        """Those of the refinement."""
        if self.options.refine:
            from cellseg_fewshot.refine import STEPS

            self._steps = self.options.refine_steps or STEPS

    def run(self) -> Trained:
        """All of it."""
        job, options = self.job, self.options
        remove_leftovers(job.model)
        remove_leftovers(job.checkpoint)
        kinds = self._kinds()
        settings = EncoderSettings(
            name=options.encoder, checkpoint=options.checkpoint, precision=options.precision
        )
        encoder = open_encoder(settings, self.device, self.emit)
        images = self._with_masks(encoder)
        masks = [e.mask for image in images for e in image.examples if e.positive]
        tiling = tiling_for([m for m in masks if m is not None], encoder.side, encoder.scales)
        encoder.expect(_side(tiling))
        parts = windows(images, tiling)
        encoder = self._fitted(encoder, parts)
        seen = self._seen(encoder, parts)
        if options.mode == "crop":
            occupancy = options.target_occupancy or OCCUPANCY
            memory = remember_crops(seen, kinds, occupancy)
            calibrated: dict[str, object] = {"similarity_threshold": 0.5}
        else:
            memory, separation = remember(seen, kinds, options, job.seed, encoder.judges)
            wanted = ((w.read(), [one.mask for one in _shown(w) if one.kind]) for w in parts)
            memory = replace(memory, blobs=blobs_of(wanted))
            self._tell(separation, parts)
            calibrated = {"similarity_threshold": round(memory.threshold(True, True), 4)}
        stored = Stored(
            describe_encoder(encoder), encoder.state(), memory, job.classes, options.precision
        )
        stored.save(job.model)
        if options.mode == "dense":  # in the other, each candidate would be encoded
            self._draw(encoder, memory, parts[:_PREVIEWS])
        return Trained(
            calibrated=calibrated,
            classes=job.classes,
            tiling=tiling,
            base_weights=base_weights(encoder),
        )

    def _kinds(self) -> list[int]:
        """The classes to look for.

        Raises:
            DataError: one has no example.
            ConfigError: there are examples that do nothing.
        """
        job = self.job
        every = [example for image in job.examples for example in image.examples]
        kinds = sorted({example.kind for example in every if example.positive})
        for number, name in enumerate(job.classes):
            if number and number not in kinds:
                raise DataError(
                    f"The class {name} has no example.",
                    hint="Mark an object of it, or leave the class out.",
                )
        if not kinds:
            raise DataError(
                "All examples are of what is to be left alone.",
                hint="Mark objects to look for, too.",
            )
        if self.options.mode == "crop" and not all(example.positive for example in every):
            raise ConfigError(
                "--mode crop compares with examples of what to look for only; there are also some"
                " of what is to be left alone.",
                hint="Leave these out, or use --mode dense.",
            )
        return kinds

    def _with_masks(self, encoder: Encoder) -> list[ExampleImage]:
        """The examples, points replaced by the best mask that the encoder finds there.

        Raises:
            DataError: it finds nothing.
        """
        images = list(self.job.examples)
        every = [example for image in images for example in image.examples]
        if all(example.mask is not None for example in every):
            return images
        known = [e.mask for e in every if e.mask is not None]
        tiling = tiling_for(known, encoder.side, encoder.scales) if known else _wide(encoder)
        answers: dict[int, Example] = {}
        for window in windows(images, tiling):
            points = [example for example in window.examples if example.mask is None]
            if points:
                (view,) = encoder.view([window.read()])
                for example in points:
                    y, x = middle(example)
                    at = np.array([[y - window.y[0], x - window.x[0]]], np.float32)
                    found = [one for one in view.answer(at) if _holds(one, at[0])]
                    if not found:
                        raise DataError(
                            f"{example.where}: the encoder {encoder.name} finds no object at this"
                            " point.",
                            hint="Draw its outline instead, or move the point to its middle.",
                        )
                    best = max(found, key=lambda one: one.score)
                    corner = (window.z, window.y[0] + best.corner[0], window.x[0] + best.corner[1])
                    answers[id(example)] = replace(
                        example, mask=best.mask, corner=corner, point=None
                    )
        return [
            replace(image, examples=tuple(answers.get(id(e), e) for e in image.examples))
            for image in images
        ]

    def _fitted(self, encoder: Encoder, parts: Sequence[Window]) -> Encoder:
        """The encoder, with what it learned from the examples."""
        job, options = self.job, self.options
        kept = job.checkpoint / ENCODER
        if not kept.exists():
            shown = [(window.read(), _shown(window)) for window in parts]
            encoder.fit(shown, job.seed)
            if options.refine:
                from cellseg_fewshot.refine import refine

                def told(event: Event) -> None:
                    if isinstance(event, Progress):
                        event = replace(event, total=self._steps + len(parts))
                    self.emit(event)

                refine(encoder, shown, options, job.seed, told, job.interrupted)
            if not (options.refine or options.learns_from_nothing):
                return encoder
            save_tensors(dict(encoder.state()), kept)
        # What is kept is used from the start, so that an interruption changes nothing.
        settings = EncoderSettings(precision=options.precision)
        described, state = describe_encoder(encoder), read_tensors(kept)
        return restore_encoder(described, state, settings, self.device, self.emit)

    def _seen(self, encoder: Encoder, parts: Sequence[Window]) -> Seen:
        """Everything in all windows; what was seen before an interruption is not looked at again.

        Raises:
            InterruptedRunError: it was asked to stop.
        """
        job, seen, first = self.job, [], 0
        sizes = [e.mask for window in parts for e in window.examples if e.positive]
        across = diameters([mask for mask in sizes if mask is not None])
        for number, window in enumerate(parts, 1):
            kept = job.checkpoint / f"seen-{number:05d}.safetensors"
            if kept.exists():
                seen.append(Seen.of(read_tensors(kept)))
            else:
                seen.append(self._looked_at(encoder, window, across, first))
                save_tensors(seen[-1].tensors(), kept)
                step = self._steps + number
                self.emit(Progress(step, self._steps + len(parts)))
                self.emit(Checkpointed(step))
                if job.interrupted():
                    raise InterruptedRunError("Stopped; what was seen so far is kept.")
            first += len(window.examples)
        return Seen.joined(seen)

    def _looked_at(
        self, encoder: Encoder, window: Window, across: Sequence[float], first: int
    ) -> Seen:
        plane, shown = window.read(), _shown(window)
        if self.options.mode == "crop":
            occupancy = self.options.target_occupancy or OCCUPANCY
            return look_at_crops(encoder, plane, shown, occupancy, first)
        (view,) = encoder.view([plane])
        if len(self._views) < _PREVIEWS:
            self._views[id(window)] = view
        areas = [np.pi * d**2 / 4 for d in across]
        asking = Asking(
            points_per_side=None,
            peaks=False,
            blobs=True,
            areas=(max(1, round(min(areas) / 4)), round(max(areas) * 4)),
            diameters=(min(across), float(np.median(across)), max(across)),
        )
        middles = np.array([_depth(one.mask) for one in shown], np.float32).reshape(-1, 2)
        return look(view, shown, find_candidates(view, plane, asking, also=middles), first)

    def _draw(self, encoder: Encoder, memory: Memory, parts: Sequence[Window]) -> None:
        """Pictures of what is found in the windows, beside the examples in them."""
        from cellseg.report.panels import write_panels

        finding = resolve(FewshotPredictOptions(), memory)
        for number, window in enumerate(parts, 1):
            plane = window.read()
            view = self._views.get(id(window)) or encoder.view([plane])[0]
            truth = np.zeros(plane.shape[1:], np.uint32)
            for label, one in enumerate(_shown(window), 1):
                if one.kind:
                    truth[box(one.mask)][one.mask.mask] = label
            found = find_objects(encoder, view, plane, 1.0, memory, finding)
            panel = (plane, truth, np.asarray(found.labels[0]))
            write_panels([panel], self.job.previews / f"examples-{number:02d}.png")

    def _tell(self, separation: Separation, parts: Sequence[Window]) -> None:
        """What was found out about the examples."""
        positives, negatives = separation.positives, separation.negatives
        limit, many = separation.threshold, len(positives)
        said = f"The examples score {positives.min():.2f} to {positives.max():.2f}"
        if many > 1:
            said += ", each by the others"
        if len(negatives):
            said += f"; what is known to be none {np.quantile(negatives, 0.95):.2f} or less (95 %)"
        self.emit(Note(f"{said}. Threshold of similarity: {limit:.2f}."))
        right = float((positives >= limit).mean())
        wrong = float((negatives >= limit).mean()) if len(negatives) else 0.0
        if right < _POOR or 1 - wrong < _POOR:
            self.emit(
                Note(
                    f"The examples are hard to tell from all else: {right:.0%} of them, and"
                    f" {wrong:.0%} of what is none, are above the threshold. More examples, some of"
                    " what is to be left alone, or another encoder may help."
                )
            )
        if separation.unfound:
            every = [example.where for window in parts for example in window.examples]
            named = ", ".join(every[number] for number in separation.unfound[:3])
            self.emit(
                Note(
                    f"{len(separation.unfound)} of {many} examples are not among the masks that the"
                    f" encoder proposes, and objects like them may be missed: {named}"
                    + (", ..." if len(separation.unfound) > 3 else "")
                )
            )


def _side(tiling: Tiling) -> int:
    """Of a whole tile, in pixels."""
    return tiling.core[1] + 2 * tiling.halo[1]


def _wide(encoder: Encoder) -> Tiling:
    """How to cut images while the size of the objects is not known."""
    halo = ceil(encoder.side / 8)
    core = encoder.side - 2 * halo if encoder.scales else 1024
    return Tiling((1, core, core), (0, halo, halo))


def _shown(window: Window) -> list[Shown]:
    """The examples in coordinates of the window, cut off where it ends."""
    found = []
    size = (window.y[1] - window.y[0], window.x[1] - window.x[0])
    for example in window.examples:
        mask = example.mask
        assert mask is not None
        corner = (example.corner[1] - window.y[0], example.corner[2] - window.x[0])
        low = [max(0, -start) for start in corner]
        high = [
            min(side, length - start)
            for side, length, start in zip(mask.shape, size, corner, strict=True)
        ]
        part = mask[low[0] : high[0], low[1] : high[1]]
        inside = FoundMask(part, (corner[0] + low[0], corner[1] + low[1]), 1.0)
        found.append(Shown(inside, example.kind if example.positive else 0))
    return found


def _holds(mask: FoundMask, point: NDArray[np.float32]) -> bool:
    """Whether a point lies in a mask."""
    y, x = (int(value) - corner for value, corner in zip(point, mask.corner, strict=True))
    height, width = mask.mask.shape
    return 0 <= y < height and 0 <= x < width and bool(mask.mask[y, x])


def _depth(mask: FoundMask) -> tuple[float, float]:
    """The middle of the pixel that lies deepest in a mask."""
    from scipy.ndimage import distance_transform_edt

    deep = distance_transform_edt(np.pad(mask.mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(deep)), deep.shape)
    return float(y) + mask.corner[0] + 0.5, float(x) + mask.corner[1] + 0.5
