"""Options of predicting with vista models; light, so that ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.options import Options, flag

Method = Literal["watershed", "agglomerate", "cluster", "mutex"]

USED: Mapping[str, tuple[str, ...]] = {
    "watershed": ("bandwidth", "seed_threshold", "flood"),
    "agglomerate": ("join_threshold",),
    "cluster": ("bandwidth", "seed_threshold"),
    "mutex": ("bandwidth",),
}
"""What each method takes, beside what all of them take."""


class VistaPredictOptions(Options):
    """What predicting with any vista model takes; training finds good values itself."""

    panels: ClassVar = {
        "Instances": (
            "method",
            "foreground_threshold",
            "seed_threshold",
            "bandwidth",
            "flood",
            "join_threshold",
            "min_size",
            "class_id",
        ),
        "Windows": ("patch_size", "aggregation"),
        "Hardware": ("precision",),
    }

    method: Method = "watershed"
    """How objects are told apart: watershed, floods the foreground from its deep places, and joins
    pieces whose embeddings are near; agglomerate, floods it from every deepest place, and joins
    pieces across weak borders; cluster, groups what lies close together in the embedding;
    mutex, the mutex watershed of affinities made from embeddings."""
    foreground_threshold: float = Field(0.5, gt=0, lt=1)
    """Voxels with a higher probability than this to be no background belong to objects."""
    seed_threshold: float = Field(0.6, gt=0, lt=1)
    """Objects start where a voxel is deeper in its object than this, from 0 at the edge to 1
    halfway to the middle and beyond; for the methods watershed and cluster."""
    bandwidth: float = Field(0.75, ge=0)
    """How far the voxels of an object lie from their mean in the embedding. The method watershed
    joins neighbouring pieces whose means are nearer than this, and none with 0; cluster groups what
    lies within this of a seed; to mutex, voxels twice as far apart are rather two objects."""
    flood: Literal["distance", "embedding"] = "distance"
    """What the method watershed floods: distance, the map of depths; embedding, the same after it
    is lowered where the embedding changes from voxel to voxel."""
    join_threshold: float = Field(0.4, gt=0, lt=1)
    """The method agglomerate joins pieces whose border is weaker than this, from 0 where the map of
    depths is as high between them as inside, to 1 where it falls to the edge of an object."""
    min_size: int = Field(15, ge=0)
    """Smaller objects are dropped, in voxels. The methods cluster and mutex first give them to the
    object that they touch."""
    class_id: int | None = Field(None, ge=1, le=15)
    """Segment only objects of the class with this number; by default those of all classes."""
    patch_size: tuple[int, int, int] | None = None
    """Show the network windows of this size, as z y x in voxels, that overlap by half; by default
    the whole tile at once. It then runs twice: for the classes, and for the objects."""
    aggregation: Literal["gaussian", "average", "max"] = "gaussian"
    """How the probabilities of overlapping windows become one: gaussian, a mean in which the middle
    of a window counts most; average; max. Only with --patch-size."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the network: bf16-mixed is several times faster on GPUs, and on CPUs with
    matrix instructions for it (Intel AMX), and takes less memory; results differ in the last
    digits."""

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        """Another method than the stored one takes none of its thresholds."""
        if given.get("method", stored.get("method")) != stored.get("method"):
            own = {name for names in USED.values() for name in names}
            stored = {name: value for name, value in stored.items() if name not in own}
        return super().over(stored, given)

    @model_validator(mode="after")
    def _options_act(self) -> VistaPredictOptions:
        used = USED[self.method]
        for names in USED.values():
            for name in names:
                default = type(self).model_fields[name].default
                if name not in used and getattr(self, name) != default:
                    fitting = " or ".join(m for m, its in USED.items() if name in its)
                    raise ValueError(
                        f"{flag(name)} {getattr(self, name)} does nothing with --method"
                        f" {self.method}: it is for {fitting}; leave it at {default}"
                    )
        if self.method != "watershed" and self.bandwidth == 0:
            raise ValueError(f"--bandwidth must be above 0 with --method {self.method}")
        if self.aggregation != "gaussian" and self.patch_size is None:
            raise ValueError(f"--aggregation {self.aggregation} needs --patch-size")
        return self


class Vista2dPredictOptions(VistaPredictOptions):
    """What ``cellseg predict`` takes for a vista2d model."""

    @model_validator(mode="after")
    def _planes(self) -> Vista2dPredictOptions:
        if self.patch_size is not None and (
            self.patch_size[0] != 1 or min(self.patch_size[1:]) < 16
        ):
            raise ValueError(
                "--patch-size: vista2d sees single planes, so it must be 1 Y X, with Y and X of"
                " at least 16"
            )
        return self


class Vista3dPredictOptions(VistaPredictOptions):
    """What ``cellseg predict`` takes for a vista3d model."""

    method: Method = "agglomerate"
    """How objects are told apart: watershed, floods the foreground from its deep places, and joins
    pieces whose embeddings are near; agglomerate, floods it from every deepest place, and joins
    pieces across weak borders; cluster, groups what lies close together in the embedding;
    mutex, the mutex watershed of affinities made from embeddings."""
    min_size: int = Field(50, ge=0)
    """Smaller objects are dropped, in voxels. The methods cluster and mutex first give them to the
    object that they touch."""

    @model_validator(mode="after")
    def _volumes(self) -> Vista3dPredictOptions:
        if self.patch_size is not None and min(self.patch_size) < 8:
            raise ValueError("--patch-size must be at least 8 along each axis")
        return self
