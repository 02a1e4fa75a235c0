"""The configuration of an experiment; light, so that making one needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from cellseg.errors import ConfigError, DataError
from cellseg.options import parse
from cellseg.torch.sam.model_types import ModelType
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cellsam.options import CellSamOptions
from cellseg_cellsam.training.base import Configuration

StrategyName: TypeAlias = Literal["k_fold", "train_val_split", "full_dataset"]
_OF_STAGE1 = {
    "total_epochs": "stage1_epochs",
    "learning_rate": "stage1_learning_rate",
    "patience": "stage1_patience",
}
_OF_STAGE2 = {
    "total_epochs": "stage2_epochs",
    "learning_rate": "stage2_learning_rate",
    "patience": "stage2_patience",
}
"""What the fields of a stage are called among the options of the backend, where that differs."""


class Stage1Config(Configuration):
    """Stage 1: the detector learns to find boxes."""

    stage1_type: Literal["cellfinder", "image_encoder", "all_backbones", "head_only"] = (
        "all_backbones"
    )
    """What learns: the detector, the trunk of the image encoder, both, or the last layers of the
    detector."""
    total_epochs: int = Field(500, ge=0)
    """Epochs; 0 leaves the stage out."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of the detector; with ``image_encoder``, of the encoder."""
    backbone_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the encoder beside the detector; if not given, a tenth of
    ``learning_rate``."""
    patience: int = Field(15, ge=0)
    """End after this many validations without a better score; 0 never does."""
    ce_loss_weight: float = Field(1.0, ge=0)
    """Weight of the classification loss."""
    bbox_loss_weight: float = Field(5.0, ge=0)
    """Weight of the distance of boxes."""
    giou_loss_weight: float = Field(2.0, ge=0)
    """Weight of the loss of their generalised IoU."""

    @model_validator(mode="after")
    def _one_rate_for_the_encoder(self) -> Stage1Config:
        if self.backbone_learning_rate is not None and self.stage1_type != "all_backbones":
            raise ValueError(
                f"backbone_learning_rate goes with stage1_type 'all_backbones', not"
                f" {self.stage1_type!r}: there learning_rate says it"
            )
        return self

    def options(self) -> dict[str, Any]:
        """The options of the backend that this is, by name."""
        values = self.model_dump(exclude={"backbone_learning_rate"})
        found = {_OF_STAGE1.get(name, name): value for name, value in values.items()}
        if self.stage1_type == "image_encoder":
            found["backbone_learning_rate"] = found.pop("stage1_learning_rate")
        elif self.stage1_type == "all_backbones":
            rate = self.backbone_learning_rate
            found["backbone_learning_rate"] = self.learning_rate / 10 if rate is None else rate
        return found


class Stage2Config(Configuration):
    """Stage 2: the neck of the image encoder learns to prepare for masks in boxes."""

    stage2_type: Literal["neck", "neck_and_decoder"] = "neck"
    """What learns: the neck, through the frozen mask decoder; or both."""
    total_epochs: int = Field(500, ge=0)
    """Epochs; 0 leaves the stage out."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    patience: int = Field(15, ge=0)
    """End after this many validations without a better score; 0 never does."""
    focal_loss_weight: float = Field(1.0, ge=0)
    """Weight of the focal loss."""
    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of the focal loss: the larger, the less easy pixels count."""
    dice_loss_weight: float = Field(1.0, ge=0)
    """Weight of the Dice loss."""
    boundary_loss_weight: float = Field(1.0, ge=0)
    """Weight of the difference of edges."""
    online_hard_negative_mining: bool = False
    """The objects with the largest losses count twice as much."""
    online_hard_negative_mining_weighted: bool = False
    """They count 1.2 to 2.5 times as much, by their loss, instead."""

    @model_validator(mode="after")
    def _one_way_to_mine(self) -> Stage2Config:
        if self.online_hard_negative_mining and self.online_hard_negative_mining_weighted:
            raise ValueError(
                "online_hard_negative_mining and online_hard_negative_mining_weighted exclude each"
                " other"
            )
        return self

    def options(self) -> dict[str, Any]:
        """The options of the backend that this is, by name."""
        values = self.model_dump()
        return {_OF_STAGE2.get(name, name): value for name, value in values.items()}


class ExperimentConfig(Configuration):
    """Everything an experiment is made of; attributes may be set until it runs."""

    img_path: Path
    """The images: a folder of files, or whatever else a reader of cellseg opens."""
    mask_path: Path | None = None
    """The folder of the label images, each called like its image; None where ``img_path`` holds
    the labels too."""
    output_name: str
    """The folder of the experiment in ``output_dir``."""
    output_dir: Path = Path("output")
    """Where experiments are written."""
    strategy: StrategyName = "k_fold"
    """``k_fold`` (each image is tested by a model that never saw it), ``train_val_split`` or
    ``full_dataset``."""
    k_folds: int = Field(5, ge=2)
    """How many folds, for ``k_fold``."""
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the images that validate: for early stopping and calibration; of a fold, share of
    its training images. Not for ``full_dataset``."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the images that are kept for the result, for ``train_val_split``."""
    stage1_config: Stage1Config = Field(default_factory=Stage1Config)
    """Stage 1."""
    stage2_config: Stage2Config = Field(default_factory=Stage2Config)
    """Stage 2."""
    batch_size: int = Field(2, ge=1)
    """Patches in a batch."""
    augmentation: bool | Literal["simple", "complex"] = False
    """Change training images at random: ``simple`` (True means that too) mirrors and turns them,
    ``complex`` also scales, deforms and changes brightness and contrast."""
    stain_transform: bool = False
    """Take the stains of RGB images apart before they are normalised (``--stain-transform hed``),
    so that nuclei become bright."""
    stain_eosin: float = Field(0.0, ge=0)
    """How much eosin the third channel holds then."""
    stain_dab: float = Field(0.0, ge=0)
    """How much DAB it holds."""
    gamma: float = Field(1.0, gt=0, le=100)
    """Raise the normalised values to this power; 1 leaves them."""
    preeval: bool = False
    """Also judge the model before it is trained, and test the difference. The model must be one of
    cellsam, in ``checkpoint``: a detector with random weights finds nothing."""
    debug: bool = False
    """Write each step to the log, with the terms of its loss and the memory in use, and draw
    pictures at each validation instead of the last one only."""
    model_type: ModelType = "vit_b"
    """What to start from; ``tiny`` is for trying things out."""
    checkpoint: Path | None = None
    """Weights to start from, instead of a download."""
    seed: int = Field(0, ge=0)
    """Seed of all that is random."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Any other options of the backend cellsam, by name: ``{"patch_size": 256}``."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Any other options of ``cellseg train``: ``{"polarity": "measure"}``."""
    reader_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the reader: ``{"label_suffix": "_mask"}``."""

    @field_validator("output_name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\\" in name:
            raise ValueError("expected the name of a folder, without / and \\")
        return name

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> ExperimentConfig:
        fields = type(self).model_fields
        belongs = {
            "k_folds": ("k_fold",),
            "test_fraction": ("train_val_split",),
            "val_fraction": ("k_fold", "train_val_split"),
        }
        for name, strategies in belongs.items():
            if getattr(self, name) != fields[name].default and self.strategy not in strategies:
                raise ValueError(
                    f"{name} goes with strategy {' or '.join(map(repr, strategies))}, not"
                    f" {self.strategy!r}"
                )
        if self.strategy == "full_dataset" and self.preeval:
            raise ValueError("preeval needs held-out images, and strategy 'full_dataset' has none")
        for name in ("stage1_config", "stage2_config") if self.strategy == "full_dataset" else ():
            stage = getattr(self, name)
            if stage.patience not in (0, type(stage).model_fields["patience"].default):
                raise ValueError(
                    f"{name}: patience waits for a score of validation images, and strategy"
                    " 'full_dataset' has none"
                )
        return self

    @property
    def folder(self) -> Path:
        """The folder of the experiment."""
        return self.output_dir / self.output_name

    def train_options(self) -> CellSamOptions:
        """The options of the backend.

        Raises:
            ConfigError: an option is unknown, not allowed, would do nothing, or is given twice.
        """
        return parse(CellSamOptions, self.given_options(), "ExperimentConfig")

    def given_options(self) -> dict[str, Any]:
        """The options of the backend that differ from what it takes without being told, by name.

        Raises:
            ConfigError: an option is given twice, or of a stage without epochs.
        """
        first, second = self.stage1_config, self.stage2_config
        values: dict[str, Any] = {**first.options(), **second.options()}
        for number, stage, other in ((1, first, second), (2, second, first)):
            if stage.total_epochs == 0 and other.total_epochs:
                idle = sorted(stage.not_default() - {"total_epochs"})
                if idle:
                    raise ConfigError(
                        f"stage{number}_config: {', '.join(idle)}: do nothing with total_epochs 0."
                    )
                for name in stage.options():
                    values.pop(name)
                values["stage"] = str(3 - number)
        values["batch_size"] = self.batch_size
        if isinstance(self.augmentation, bool):
            values["augmentation"] = "simple" if self.augmentation else "none"
        else:
            values["augmentation"] = self.augmentation
        values["model_type"] = self.model_type
        if self.checkpoint is not None:
            values["checkpoint"] = str(self.checkpoint.absolute())
        if self.strategy == "full_dataset":
            for name in ("stage1_patience", "stage2_patience"):
                values.pop(name, None)
        _refuse_double(
            self.options, [*values, "stage", "stage1_patience", "stage2_patience"], "options"
        )
        drawn = self.strategy != "full_dataset" and "preview_every" not in self.options
        if drawn and not self.debug:
            every = self.options.get("validate_every", 1)
            values["preview_every"] = every * max(first.total_epochs + second.total_epochs, 1)
        return {**values, **self.options}

    def train_settings(self) -> TrainSettings:
        """Core's options, without what the strategy says.

        Raises:
            ConfigError: an option is unknown, not allowed, or given twice.
        """
        values: dict[str, Any] = {
            "epochs": self.stage1_config.total_epochs + self.stage2_config.total_epochs,
            "seed": self.seed,
            "device": self.device,
            "stain_transform": "hed" if self.stain_transform else "none",
            "stain_eosin": self.stain_eosin,
            "stain_dab": self.stain_dab,
            "gamma": self.gamma,
        }
        of_strategy = ("split", "folds", "fold", "val_fraction", "test_fraction", "splits", "val")
        _refuse_double(self.settings, [*values, *of_strategy], "settings")
        return parse(TrainSettings, {**values, **self.settings}, "ExperimentConfig.settings")

    def reading(self) -> dict[str, Any]:
        """The options of the reader, by name.

        Raises:
            ConfigError: an option is given twice.
            DataError: ``img_path`` or ``mask_path`` is not there.
        """
        for name, path in (("img_path", self.img_path), ("mask_path", self.mask_path)):
            if path is not None and not path.exists():
                raise DataError(f"{name} {path}: there is no such file or folder.")
        if self.mask_path is None:
            return dict(self.reader_options)
        _refuse_double(self.reader_options, ["labels"], "reader_options")
        found: dict[str, Any] = {"labels": str(self.mask_path.absolute())}
        if self.img_path.is_dir() and "images" not in self.reader_options:
            found["images"] = "."  # a folder images/ within it is another one
        return {**found, **self.reader_options}

    def to_json(self) -> str:
        """All values, with absolute paths, as they are kept in ``experiment_config.json``."""
        values = self.model_dump(mode="json")
        for name in ("img_path", "mask_path", "output_dir", "checkpoint"):
            if values[name] is not None:
                values[name] = str(Path(values[name]).absolute())
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> ExperimentConfig:
        """Read an ``experiment_config.json``.

        Raises:
            DataError: it cannot be read.
            ConfigError: it holds something else.
        """
        try:
            return cls.load_text(Path(path).read_text(encoding="utf-8"))
        except (OSError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise DataError(f"{path}: is no configuration of an experiment: {error}") from error

    @classmethod
    def load_text(cls, text: str) -> ExperimentConfig:
        """The same, from what ``to_json`` gave.

        Raises:
            ValueError: this is no JSON.
            ConfigError: it holds something else.
        """
        return cls(**json.loads(text))


def _refuse_double(given: Mapping[str, Any], taken: list[str], where: str) -> None:
    for name in given:
        if name in taken:
            raise ConfigError(
                f"{where}: {name!r} is said by {_attribute(name)} of ExperimentConfig.",
                hint="Set it there.",
            )


def _attribute(option: str) -> str:
    """The attribute of an experiment that says what an option says."""
    stages = (
        ("stage1_config", Stage1Config, _OF_STAGE1),
        ("stage2_config", Stage2Config, _OF_STAGE2),
    )
    for stage, kind, other in stages:
        for field in kind.model_fields:
            if other.get(field, field) == option:
                return f"{stage}.{field}"
    if option in ("epochs", "stage"):
        return "total_epochs of both stages"
    if option in ExperimentConfig.model_fields:
        return option
    return "k_folds" if option == "folds" else "mask_path" if option == "labels" else "strategy"
