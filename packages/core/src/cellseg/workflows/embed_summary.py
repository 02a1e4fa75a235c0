"""What ``cellseg embed`` did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSummary:
    """The result of an embedding."""

    images: int
    """Images, or frames of movies, that are in the tables, those without objects included."""
    objects: int
    """Rows of each table."""
    dimension: int
    """Length of the vectors."""
    without_objects: int
    """Images, or frames, that have none."""
    left_out: int
    """Images that ``--include``, ``--exclude`` or ``--most-images`` leave out."""
    failed: int
    """Images, or frames, that could not be done."""
    outputs: tuple[Path, ...]
    seconds: float

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"{self.objects} objects in {self.images} image(s), vectors of {self.dimension} "
            f"numbers, {self.seconds:.1f} s"
        ]
        if self.without_objects:
            lines.append(f"{self.without_objects} image(s) have no objects.")
        if self.left_out:
            lines.append(f"{self.left_out} image(s) were left out.")
        return lines

    def to_dict(self) -> dict[str, object]:
        """For programs."""
        values = asdict(self)
        values["outputs"] = [str(path) for path in self.outputs]
        values["seconds"] = round(self.seconds, 3)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> EmbedSummary:
        """What ``to_dict`` gave."""
        outputs = values["outputs"]
        assert isinstance(outputs, list)
        return cls(**{**values, "outputs": tuple(map(Path, outputs))})  # type: ignore[arg-type]
