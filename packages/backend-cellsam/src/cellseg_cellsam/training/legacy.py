"""One function that does it all, as CellSAM's own trainer had one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellseg.errors import ConfigError
from cellseg.events import Emit
from cellseg.options import refuse_unknown
from cellseg_cellsam.training.config import ExperimentConfig, Stage1Config, Stage2Config
from cellseg_cellsam.training.results import ExperimentResults
from cellseg_cellsam.training.runner import ExperimentRunner


def finetune(
    img_path: str | Path,
    mask_path: str | Path | None = None,
    output_name: str = "experiment",
    *,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
    **kwargs: Any,
) -> ExperimentResults:
    """Train and judge, with one call.

        finetune("images", "masks", "quick_test", strategy="train_val_split", total_epochs_s1=5,
                 total_epochs_s2=5, debug=True)

    Args:
        img_path: the folder of the images.
        mask_path: the folder of the label images.
        output_name: the folder of the experiment in ``output_dir``.
        emit: gets what happens, beside the log; ``print`` shows it.
        interrupted: asked after each step; True stops with the state saved.
        kwargs: the other attributes of ``ExperimentConfig``; those of ``Stage1Config`` and
            ``Stage2Config``, with ``_s1`` and ``_s2`` after names that both have
            (``total_epochs_s1``, ``learning_rate_s2``, ``patience_s1``); and ``k_fold_training``,
            True for the strategy ``k_fold``, False for ``train_val_split``.

    Returns:
        The results; they are in the folder too.

    Raises:
        ConfigError: an unknown name, with the nearest one; or as ``ExperimentRunner.run``.
        CellsegError: as ``ExperimentRunner.run``.
    """
    config = finetune_config(img_path, mask_path, output_name, **kwargs)
    return ExperimentRunner(config).run(emit=emit, interrupted=interrupted)


def finetune_config(
    img_path: str | Path, mask_path: str | Path | None, output_name: str, **kwargs: Any
) -> ExperimentConfig:
    """The configuration that ``finetune`` runs; see there."""
    stages: dict[str, dict[str, Any]] = {"s1": {}, "s2": {}}
    names = _stage_names()
    own: dict[str, Any] = {}
    known = [name for name in ExperimentConfig.model_fields if not name.endswith("_path")]
    refuse_unknown(kwargs, [*known, *names, "k_fold_training"], "finetune")
    for name, value in kwargs.items():
        if name in names:
            stage, field = names[name]
            stages[stage][field] = value
        elif name != "k_fold_training":
            own[name] = value
    if "k_fold_training" in kwargs:
        if "strategy" in kwargs:
            raise ConfigError(
                "finetune: k_fold_training and strategy say the same.", hint="Give strategy alone."
            )
        own["strategy"] = "k_fold" if kwargs["k_fold_training"] else "train_val_split"
    for stage, kind in (("s1", Stage1Config), ("s2", Stage2Config)):
        field = f"stage{stage[1]}_config"
        if stages[stage] and field in own:
            given = ", ".join(name for name in kwargs if names.get(name, ("",))[0] == stage)
            raise ConfigError(f"finetune: {field} and {given} exclude each other.")
        if stages[stage]:
            own[field] = kind(**stages[stage])
    return ExperimentConfig(
        img_path=Path(img_path),
        mask_path=None if mask_path is None else Path(mask_path),
        output_name=output_name,
        **own,
    )


def _stage_names() -> dict[str, tuple[str, str]]:
    """What ``finetune`` calls the fields of the stages."""
    fields = {"s1": Stage1Config.model_fields, "s2": Stage2Config.model_fields}
    both = fields["s1"].keys() & fields["s2"].keys()
    return {
        f"{name}_{stage}" if name in both else name: (stage, name)
        for stage, each in fields.items()
        for name in each
    }
