"""Train a vista model, and find the thresholds that suit it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cellseg import BaseWeights, ConfigError, Emit, Tiling, Trained, TrainJob
from cellseg.augment import are_cubes
from cellseg.events import Note
from cellseg.files import remove_leftovers
from cellseg.patches import PatchGrid, PatchSampler
from cellseg.torch.devices import threads
from cellseg.torch.loaders import Loaders
from cellseg.torch.patches import TrainingPatches, ValidationPatches
from cellseg.torch.training import fit
from cellseg.torch.weights import seeded
from cellseg_vista.calibrate import PLANE, calibrate, pieces
from cellseg_vista.description import Description
from cellseg_vista.learner import VistaLearner
from cellseg_vista.network import Architecture, Network, notes
from cellseg_vista.options import VistaOptions
from cellseg_vista.patches import Targets
from cellseg_vista.predict_options import (
    Vista2dPredictOptions,
    Vista3dPredictOptions,
    VistaPredictOptions,
)

_ONE_CLASS = ("background", "cell")
_CORE, _HALO = 128, 16
"""Of a tile, in voxels, where these are cubes."""
_PREDICTING: dict[int, type[VistaPredictOptions]] = {
    2: Vista2dPredictOptions,
    3: Vista3dPredictOptions,
}


def train(job: TrainJob[VistaOptions], emit: Emit, dims: int) -> Trained:
    """Train (or resume), and leave the network of the best validation in ``job.model``.

    Args:
        job: core's job.
        emit: gets the events.
        dims: 2 segments planes, 3 volumes.

    Raises:
        ConfigError: the data has more classes than the network, or not the one to ignore, or none
            with a weight.
        WeightsError: ``--encoder-weights`` does not fit.
        CellsegError: as ``cellseg.torch.training.fit`` says.
    """
    with threads(job.options.threads):
        return _train(job, emit, dims)


def _train(job: TrainJob[VistaOptions], emit: Emit, dims: int) -> Trained:
    options = job.options
    remove_leftovers(job.model)
    classes = job.train[0].classes or _ONE_CLASS
    _check(options, classes)
    spacing = _spacing([sample.spacing for sample in job.train], dims)
    if options.swap_depth_probability and not are_cubes(spacing):
        raise ConfigError(
            f"--swap-depth-probability: the voxels are no cubes, but {_listed(spacing)} µm.",
            hint="Leave it out: what is deep does not look like what is wide.",
        )
    network = _network(job, spacing, dims, len(classes))
    trainable = tuple(name for name, _ in network.named_parameters())
    for note in notes(network.architecture, spacing):
        emit(Note(note))
    base = _start(network, job, emit)
    tiling = _tiling(network, spacing)
    calibrated: dict[str, object] = {}
    if job.epochs:
        sampler = PatchSampler.of(job.train, options, job.seed)
        if sampler.skipped:
            listed = ", ".join(sampler.skipped[:5]) + (", ..." if len(sampler.skipped) > 5 else "")
            emit(Note(f"Not trained on, for want of objects (--min-instances): {listed}"))
        judged = Targets(options, dims, job.val)
        val = None
        if job.val:
            val = ValidationPatches(
                PatchGrid(job.val, options.patch_shape), judged, options.val_patches
            )
        loaders = Loaders(
            train=TrainingPatches(sampler, Targets(options, dims, job.train), options, job.seed),
            epoch_samples=options.patches_per_image * len(job.train),
            val=val,
            val_batches=len(val) if val else 0,
        )
        predicting = _PREDICTING[dims]
        learner = VistaLearner(network, options, spacing, len(classes), predicting())
        fit(learner, loaders, job, emit)
        if val:
            tiles = ValidationPatches(pieces(job.val, tiling), judged, options.val_patches)
            choice = calibrate(network, tiles, job.device, predicting, spacing, len(classes))
            emit(Note(str(choice)))
            calibrated = choice.stored
    network.save(job.model)
    Description(classes, spacing).save(job.model)
    return Trained(
        trainable=trainable,
        calibrated=calibrated,
        classes=classes,
        tiling=tiling if dims == 3 else None,
        base_weights=base,
    )


def _check(options: VistaOptions, classes: Sequence[str]) -> None:
    named = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
    if len(classes) > options.num_classes:
        raise ConfigError(
            f"--num-classes {options.num_classes} is too few: the data has {len(classes)}, {named}."
        )
    if options.ignore_index >= len(classes):
        raise ConfigError(
            f"--ignore-index {options.ignore_index}: the data has no such class, only {named}."
        )
    if options.class_weights and not any(options.class_weights[: len(classes)]):
        raise ConfigError(f"--class-weights are 0 for all classes that the data has: {named}.")


def _network(
    job: TrainJob[VistaOptions], spacing: Sequence[float], dims: int, kinds: int
) -> Network:
    options = job.options
    architecture = Architecture.planned(
        channels=job.train[0].image.shape[0],
        feature_size=options.feature_size,
        emb_dim=options.emb_dim,
        num_classes=options.num_classes,
        dims=dims,
        encoder=options.encoder,
        deep_supervision=options.deep_supervision,
        levels=options.levels,
        spacing=spacing,
        patch=options.patch_shape[3 - dims :],
    )
    with seeded(job.seed):
        network = Network(architecture)
    network.expect(kinds)
    return network


def _start(network: Network, job: TrainJob[VistaOptions], emit: Emit) -> tuple[BaseWeights, ...]:
    """Fill the encoder from the checkpoint that the user named."""
    path = job.options.encoder_weights
    if path is None:
        return ()
    from cellseg_vista.encoder_weights import load_encoder

    loaded = load_encoder(network, path)
    emit(Note(str(loaded)))
    return (
        BaseWeights(
            name=path.name, source=str(path), licence="as its source says", sha256=loaded.sha256
        ),
    )


def _spacing(all_sizes: Sequence[Sequence[float]], dims: int) -> tuple[float, ...]:
    """The median voxel size along each spatial axis."""
    return tuple(np.median(np.array(all_sizes), axis=0)[3 - dims :].tolist())


def _listed(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in spacing)


def _tiling(network: Network, spacing: Sequence[float]) -> Tiling:
    """Tiles of about two million voxels, as large along all axes in micrometres.

    Cores and halos are multiples of the network's stride, so that its coarse levels see all tiles
    alike. The halo is what matters of the surroundings, not all that a voxel depends on: that
    would be most of a tile.
    """
    if network.architecture.dims == 2:
        return Tiling(core=(1, PLANE, PLANE))
    shares = np.min(spacing) / np.array(spacing)
    edge = _CORE / math.prod(shares) ** (1 / 3)
    core, halo = [], []
    for share, step in zip(shares, network.stride, strict=True):
        core.append(math.ceil(max(edge * share, 16) / step) * step)
        halo.append(math.ceil(max(_HALO * share, 4) / step) * step)
    return Tiling(core=(core[0], core[1], core[2]), halo=(halo[0], halo[1], halo[2]))
