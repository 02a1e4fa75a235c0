"""How objects are linked. Light: the command line builds its help from it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.options import Options, flag


class LinkSettings(Options):
    """How the objects of one frame are found again in the next."""

    panels: ClassVar = {
        "Linking": (
            "method",
            "max_distance",
            "max_gap",
            "min_overlap",
            "divisions",
            "min_daughter_frames",
        )
    }

    method: Literal["laptrack", "overlap"] = "laptrack"
    """How to link: laptrack finds the assignment of all objects at once that costs least, by
    distance and size, across gaps; overlap takes the objects that overlap best, for cells that
    hardly move."""
    max_distance: float | None = Field(None, gt=0, allow_inf_nan=False)
    """How far the centre of an object may move from one frame to the next, in pixels (of x, where
    voxels are no cubes). By default the median diameter of the objects in the two frames."""
    max_gap: int = Field(2, ge=0)
    """Frames that an object may be missing in and still go on as the same track."""
    min_overlap: float | None = Field(None, gt=0, le=1)
    """IoU (shared part of both) that two objects need to be linked by --method overlap. By
    default 0.1."""
    divisions: bool = True
    """Find divisions: the daughters become tracks of their own, with the mother as their parent."""
    min_daughter_frames: int = Field(3, ge=1)
    """A daughter that is gone after fewer frames, before the movie ends, is no daughter: the other
    one goes on as the mother. 1 keeps all."""

    @model_validator(mode="after")
    def _of_the_method(self) -> LinkSettings:
        others = {"laptrack": ("min_overlap",), "overlap": ("max_distance", "max_gap")}
        for name in others[self.method]:
            if name in self.model_fields_set:
                raise ValueError(f"{flag(name)} does nothing with --method {self.method}")
        if not self.divisions and "min_daughter_frames" in self.model_fields_set:
            raise ValueError("--min-daughter-frames does nothing with --no-divisions")
        return self
