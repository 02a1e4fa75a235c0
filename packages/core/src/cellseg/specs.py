"""What plugins hand to cellseg: one small card per thing they can do.

A card is data plus one function. The function imports its heavy dependencies in its body, so
that reading a card costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from cellseg.data import Dataset, ExampleImage, Features, Segmentation, Tile, Tiling, Tracked
from cellseg.download.remote import Remote
from cellseg.events import Emit
from cellseg.options import NoOptions, Options

if TYPE_CHECKING:
    from numpy.typing import NDArray

OptionsT = TypeVar("OptionsT", bound=Options)

Predictor: TypeAlias = Callable[[Sequence[Tile]], Sequence[Segmentation]]
"""Segments a batch of tiles of one shape; as many results, in the same order."""

Embedder: TypeAlias = Callable[[Sequence[Tile]], Sequence[Features]]
"""Describes a batch of tiles of one shape; as many results, in the same order."""


class Tracker(Protocol):
    """Follows the objects of one field of view, frame by frame. Its memory does not grow."""

    def step(self, tile: Tile) -> Tracked:
        """What is in the next frame; all frames of a tracker have one shape."""

    def state(self) -> Mapping[str, NDArray[Any]]:
        """All that the next step depends on, so that another tracker can go on from here."""


TrackerMaker: TypeAlias = "Callable[[Mapping[str, NDArray[Any]] | None], Tracker]"
"""A new tracker: at the first frame of a field (None), or from the ``state`` of another on."""

Task: TypeAlias = Literal["2d", "3d", "tracking", "few-shot"]


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class BaseWeights:
    """Published weights that a backend can start from."""

    name: str
    source: str
    """Where they come from: an address, a DOI or a file."""
    licence: str
    sha256: str = ""
    """Checksum of the file; empty where the publisher gives none."""


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model that others published, and that a backend can start from."""

    name: str
    """What users type."""
    licence: str
    files: tuple[Remote, ...]
    """All that it consists of: addresses, and where they are known sizes and checksums."""
    folder: Callable[[], Path]
    """Where its files are kept; several models may share one folder."""
    citation: str = ""
    """DOI or arXiv number of the paper."""
    token: str = ""
    """The environment variable with the token that its publisher asks for; empty where anybody may
    download it."""


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis of this computer."""

    state: Literal["ok", "warning", "problem"]
    what: str
    value: str
    advice: str = ""
    """What to do; empty where all is well."""


@dataclass(frozen=True, kw_only=True)
class TrainJob(Generic[OptionsT]):
    """Everything a trainer needs, resolved and validated. Images come normalised, float32."""

    options: OptionsT
    train: Dataset
    val: Dataset
    """Never empty unless the user asked for no validation."""
    epochs: int
    """How many in all, those before a resume included; 0 writes the initial weights."""
    seed: int
    device: str
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    checkpoint: Path
    """Directory owned by the trainer, written atomically. Not empty means: resume from it."""
    model: Path
    """Directory for the trained weights; a predictor gets it back verbatim."""
    previews: Path
    """Directory for pictures of what the current weights do."""
    examples: tuple[ExampleImage, ...] = ()
    """What to look for, for trainers that learn from a few examples; these get no ``train`` and no
    ``val``. Not empty then."""
    classes: tuple[str, ...] = ()
    """Names of the classes of the examples by number, ``background`` first; empty where they are of
    one class without a name."""
    interrupted: Callable[[], bool] = _never
    """Ask after each step. True means: save a checkpoint and raise ``InterruptedRunError``."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a trainer says about the model it left in ``TrainJob.model``."""

    trainable: tuple[str, ...] = ()
    """Names of the tensors (in the model's safetensors files) that training may change; a
    conformance test checks that it changes all of these and no other."""
    calibrated: Mapping[str, object] = field(default_factory=dict)
    """Predictor options found on the validation data; they become the bundle's defaults."""
    classes: tuple[str, ...] = ()
    """Names of the object classes, by index."""
    tiling: Tiling | None = None
    """How this model likes to be tiled; None means as the predictor's card says."""
    base_weights: tuple[BaseWeights, ...] = ()
    """What the training started from; empty means from random weights."""


@dataclass(frozen=True, kw_only=True)
class PredictJob(Generic[OptionsT]):
    """Everything needed to load a predictor."""

    options: OptionsT
    device: str
    model: Path | None = None
    """The directory some trainer filled, or None for the backend's own weights."""
    probabilities: bool = False
    """Whether each ``Segmentation`` must bring its ``probabilities``."""


@dataclass(frozen=True, kw_only=True)
class CalibrateJob(Generic[OptionsT]):
    """Everything needed to find the options that suit a model, from labelled images."""

    options: OptionsT
    """Where to start from: what the model stores, and over it what the user gives."""
    given: frozenset[str]
    """Names of the options that the user gives; these stay as they are."""
    samples: Dataset
    """With labels; images normalised as the model's bundle says."""
    tiling: Tiling
    """How prediction will cut the images."""
    device: str
    model: Path | None = None
    """The directory some trainer filled, or None for the backend's own weights."""


@dataclass(frozen=True, kw_only=True)
class ExportJob(Generic[OptionsT]):
    """Everything needed to convert a trained model."""

    options: OptionsT
    model: Path
    """A bundle: what the trainer left, beside core's ``bundle.json``."""
    target: Path
    """File or directory to create; it does not exist yet."""


@dataclass(frozen=True, kw_only=True)
class Spec(Generic[OptionsT]):
    """What all cards share."""

    noun: ClassVar[str]
    name: str
    """What users type: lower-case letters, digits and hyphens."""
    summary: str
    """One line, no full stop."""
    options: type[OptionsT] = NoOptions  # type: ignore[assignment]
    """The class of the options, with defaults and help texts."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names that users of other tools know, and the option (of core, of a reader or of this plugin)
    that each is; accepted on the command line and in config files."""
    checks: Callable[[], Iterable[Finding]] | None = None
    """Looks at what this plugin needs of the computer, for ``cellseg doctor``: devices, extensions,
    versions. Must not raise, download or change anything."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec[OptionsT]):
    """A way to read images and their labels from a path."""

    noun: ClassVar[str] = "dataset"
    open: Callable[[Path, OptionsT, bool], Dataset]
    """``open(path, options, labelled)``: lazy samples in a stable order. With ``labelled``, each
    has labels or the function raises a ``DataError``; without, labels are not looked for."""
    recognises: Callable[[Path], bool]
    """Whether ``path`` looks like one of these; must be quick, and touch no pixels."""
    remote: bool = False
    """Whether paths may be addresses (``cellseg.locations``); other readers never see one."""


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(Spec[OptionsT]):
    """A way to train or fine-tune a model."""

    noun: ClassVar[str] = "trainer"
    train: Callable[[TrainJob[OptionsT], Emit], Trained]
    """Trains, resumes where ``job.checkpoint`` is not empty, and fills ``job.model``."""
    tasks: frozenset[Task] = frozenset({"2d"})
    """What the model is for."""
    examples: bool = False
    """Whether it learns from a few examples (``TrainJob.examples``) instead of labelled images, in
    one go; then ``cellseg predict --examples`` does both."""
    models: tuple[PublishedModel, ...] = ()
    """Published models that it can start from; ``cellseg models`` gets and checks them."""
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Named sets of options of core, of a reader and of this trainer, as a config file holds them:
    ``cellseg train --preset NAME``."""
    epochs: Callable[[OptionsT], int | None] | None = None
    """How many epochs its options ask for, for a trainer with options of its own for that; None
    where they leave it to ``--epochs``."""


@dataclass(frozen=True, kw_only=True)
class PredictorSpec(Spec[OptionsT]):
    """A way to segment images, one tile at a time."""

    noun: ClassVar[str] = "predictor"
    load: Callable[[PredictJob[OptionsT]], Predictor]
    """Loads the weights, once for each worker."""
    tiling: Tiling = Tiling()
    """How it likes its tiles, unless the model's bundle or the user says otherwise."""
    tasks: frozenset[Task] = frozenset({"2d"})
    """What the model is for; without ``3d``, a volume is segmented slice by slice."""
    probabilities: bool = False
    """Whether it can give the probability of each class at each voxel."""
    prompts: bool = False
    """Whether it can segment what points and boxes (``Tile.prompts``) show."""
    link_slices: bool = False
    """Whether objects of neighbouring planes of a volume are linked, unless the user says
    otherwise; for backends that segment plane by plane."""
    calibrate: Callable[[CalibrateJob[OptionsT], Emit], Mapping[str, object]] | None = None
    """Finds the options that predict labelled images best, for ``cellseg calibrate``."""
    track: Callable[[PredictJob[OptionsT]], TrackerMaker] | None = None
    """Loads what follows the objects of movies from frame to frame; then movies are tracked, unless
    the user says otherwise. Still images always go through ``load``."""
    embed: Callable[[PredictJob[OptionsT]], Embedder] | None = None
    """Loads what describes each place of a tile by a vector, for ``cellseg embed``."""
    models: tuple[PublishedModel, ...] = ()
    """Published models that it can predict with; those of the trainer of its name need not be
    listed again."""


@dataclass(frozen=True, kw_only=True)
class ExporterSpec(Spec[OptionsT]):
    """A way to turn a trained model into another format."""

    noun: ClassVar[str] = "exporter"
    backend: str | None = None
    """Whose models it converts; None means everybody's."""
    export: Callable[[ExportJob[OptionsT], Emit], Path]
    """Writes ``job.target``, checks what it wrote, and returns its path."""
