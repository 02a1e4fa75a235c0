"""Train vista2d, and find the thresholds that suit it."""

from __future__ import annotations

from cellseg import Emit, Trained, TrainJob
from cellseg.events import Note
from cellseg.files import remove_leftovers
from cellseg.patches import PatchGrid, PatchSampler
from cellseg.torch.devices import threads
from cellseg.torch.loaders import Loaders
from cellseg.torch.training import fit
from cellseg.torch.weights import seeded
from cellseg_vista.calibrate import calibrate
from cellseg_vista.learner import Vista2dLearner
from cellseg_vista.network import Architecture, Network
from cellseg_vista.options import Vista2dOptions
from cellseg_vista.patches import TrainingPatches, ValidationPatches


def train(job: TrainJob[Vista2dOptions], emit: Emit) -> Trained:
    """Train (or resume), and leave the network of the best validation in ``job.model``."""
    with threads(job.options.threads):
        return _train(job, emit)


def _train(job: TrainJob[Vista2dOptions], emit: Emit) -> Trained:
    options = job.options
    remove_leftovers(job.model)
    with seeded(job.seed):
        network = Network(
            Architecture(
                channels=job.train[0].image.shape[0],
                feature_size=options.feature_size,
                emb_dim=options.emb_dim,
            )
        )
    trainable = tuple(name for name, _ in network.named_parameters())
    calibrated: dict[str, object] = {}
    if job.epochs:
        sampler = PatchSampler.of(job.train, options, job.seed)
        if sampler.skipped:
            listed = ", ".join(sampler.skipped[:5]) + (", ..." if len(sampler.skipped) > 5 else "")
            emit(Note(f"Not trained on, for want of objects (--min-instances): {listed}"))
        val = None
        if job.val:
            shape = (1, options.patch_size, options.patch_size)
            val = ValidationPatches(PatchGrid(job.val, shape), options)
        loaders = Loaders(
            train=TrainingPatches(sampler, options, job.seed),
            epoch_samples=options.patches_per_image * len(job.train),
            val=val,
            val_batches=len(val) if val else 0,
        )
        fit(Vista2dLearner(network, options), loaders, job, emit)
        if val:
            calibrated = calibrate(network, val, job.device)
    network.save(job.model)
    return Trained(trainable=trainable, calibrated=calibrated, classes=("cell",))
