"""Pictures of a training, drawn from its run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cellseg.events import Progress, Validated
from cellseg.files import make_folder, write_atomic
from cellseg.report.curves import Chart, Point, Series, chart
from cellseg.runs import RunDir
from cellseg_cellsam.training.epochs import STAGES

_TOGETHER = 4
"""Lines that a chart can tell apart."""


class TrainingVisualizer:
    """Draws the curves of a run of cellsam, and gathers its pictures.

    Args:
        run_dir: what ``cellseg train`` wrote, or a fold of an experiment; it need not be finished.
        save_dir: the folder of the pictures; if not given, ``visualizations`` in ``run_dir``.

    Raises:
        DataError: this is no run.
    """

    def __init__(self, run_dir: str | Path, save_dir: str | Path | None = None) -> None:
        self.run = RunDir(Path(run_dir))
        self.run.request()
        self.save_dir = Path(save_dir) if save_dir is not None else self.run.path / "visualizations"

    def draw_all(self) -> list[Path]:
        """Draw everything that there is something for.

        Returns:
            The PNG files.

        Raises:
            StorageError: a file cannot be written.
        """
        curves = (self.loss_curves(), self.loss_components(), self.scores())
        return [path for path in curves if path is not None] + self.boxes() + self.masks()

    def loss_curves(self) -> Path | None:
        """The loss of each stage by step, ``loss_curves.png``; None where there is no step yet."""
        return self._write("loss_curves", "loss", "train", lambda name: name == "loss", smooth=True)

    def loss_components(self) -> Path | None:
        """The weighted terms of the loss of each stage, ``loss_components.png``; None where there
        is no step yet."""
        return self._write(
            "loss_components",
            "terms of the loss",
            "train",
            lambda name: name.startswith("loss_"),
            smooth=True,
        )

    def scores(self) -> Path | None:
        """What validations measured, ``scores.png``; None where there was none."""
        return self._write("scores", "validation", "val", lambda name: True)

    def boxes(self) -> list[Path]:
        """Boxes against the true ones, as validations of stage 1 drew them:
        ``boxes_epoch-0001.png``."""
        return self._gather("stage1", "boxes")

    def masks(self) -> list[Path]:
        """Masks against the true ones, as validations of stage 2 drew them:
        ``masks_epoch-0001.png``."""
        return self._gather("stage2", "masks")

    def series(self, stage: str, part: str) -> dict[str, list[Point]]:
        """The metrics of a stage.

        Args:
            stage: ``stage1`` or ``stage2``.
            part: ``train``, of each step, or ``val``, of each validation.

        Returns:
            Of each metric, by its name within the stage, the steps and values.
        """
        found: dict[str, list[Point]] = {}
        prefix = f"{part}/{stage}/"
        for event in self.run.events():
            if isinstance(event, Progress | Validated):
                for name, value in event.metrics.items():
                    if name.startswith(prefix):
                        points = found.setdefault(name.removeprefix(prefix), [])
                        points.append((float(event.step), value))
        return found

    def _write(
        self,
        file: str,
        title: str,
        part: str,
        wanted: Callable[[str], bool],
        *,
        smooth: bool = False,
    ) -> Path | None:
        from cellseg_cellsam.training.utils.drawing import write_charts

        drawn: list[Chart] = []
        for stage in STAGES:
            lines = [pair for pair in self.series(stage, part).items() if wanted(pair[0])]
            for number in range(0, len(lines), _TOGETHER):
                series = [
                    Series(name.replace("_", " "), points, markers=not smooth, smooth=smooth)
                    for name, points in lines[number : number + _TOGETHER]
                ]
                one = chart(f"{_named(stage)}: {title}", series, whole=True, wide=smooth)
                drawn += [one] if one is not None else []
        return write_charts(drawn, self.save_dir / f"{file}.png") if drawn else None

    def _gather(self, stage: str, kind: str) -> list[Path]:
        found: Sequence[Path] = sorted((self.run.previews / stage).glob("epoch-*.png"))
        gathered = []
        for picture in found:
            make_folder(self.save_dir)
            copy = self.save_dir / f"{kind}_{picture.stem}.png"
            write_atomic(copy, picture.read_bytes())
            gathered.append(copy)
        return gathered


def _named(stage: str) -> str:
    return stage.replace("stage", "Stage ")
