"""Training a decoder alone: what keeping the embeddings saves, and what the cheaper decoder saves.

Times are CPU seconds of one thread, medians of a few single steps with ViT-B at 1024 x 1024 and
random weights, which cost what trained ones do; an epoch is computed from them. A step reads a
patch's embedding from the file (or prepares and encodes the patch), decodes it, and makes loss,
gradients and new weights. The peers are segment_anything's image encoder and the decoder of
torch_em, which micro-SAM trains, with the same weights, loss and optimiser: their maps and
gradients are compared with ours. Of ViT-H the encoder is timed once; the decoder is the same.

That the result is as good is measured with the tiny model, whose encoder has learned cells before:
a new decoder learns with and without kept embeddings, as many steps, from three seeds.

``--quick`` is a trial: a square of 512 pixels, no ViT-H, one seed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch_em.model.unetr import UNETR

from _table import finish, result, table
from cellseg import Sample, TrainJob
from cellseg.events import Validated
from cellseg.synthetic import make_image
from cellseg.torch.frames import Frame
from cellseg.torch.optimisation import make_optimiser
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.weights import seeded
from cellseg_microsam.cache import Store
from cellseg_microsam.learner import MicrosamLearner
from cellseg_microsam.losses import maps_loss
from cellseg_microsam.model import MicroSam
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.patches import Targets
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.stored import load_model
from cellseg_microsam.thresholds import resolve
from cellseg_microsam.train import train

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
PATCHES, EPOCHS, COPIES = 100, 100, 4
"""Of the training that the totals are for: patches in an epoch, epochs, kept versions of each."""
TOLERANCES = 1e-4, 1e-3
"""How far maps (0 to 1), and gradients as parts of the largest, may lie apart in float32: where
rounding turns a rectifier on or off, a gradient jumps."""
QUALITY = 0.02
"""How much less the validation score may be with kept embeddings."""


def seconds(step: Callable[[], object], runs: int) -> float:
    """Median CPU seconds."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times)


def autocast(precision: str) -> AbstractContextManager[Any]:
    """As a training with this ``--precision``."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


class Peer(nn.Module):
    """micro-SAM's decoder as it trains it."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        encoder = ImageEncoderViT(
            img_size=side, embed_dim=8, depth=1, num_heads=2, out_chans=channels
        )
        self.unetr = UNETR(
            encoder=encoder,
            out_channels=3,
            use_sam_stats=True,
            final_activation="Sigmoid",
            use_skip_connection=False,
        )
        del self.unetr.encoder.blocks

    def load(self, decoder: nn.Module) -> None:
        """Take over the weights."""
        self.unetr.load_state_dict(decoder.state_dict(), strict=False)

    def forward(self, embeddings: Tensor, frame: Frame) -> Tensor:
        """Maps of images."""
        return self.unetr.decode((embeddings, None, None), frame.scaled, frame.size)


@dataclass
class Setting:
    """One patch, and what learns from it."""

    learner: MicrosamLearner
    peer: Peer
    batch: dict[str, Tensor]
    frame: Frame
    store: Store

    @classmethod
    def make(cls, side: int, folder: Path) -> Setting:
        """With a ViT-B of random weights."""
        with seeded(0):
            model = MicroSam(replace(Architecture.named("vit_b"), side=side))
        options = MicrosamOptions(mode="decoder", patch_size=side, learning_rate=1e-4)
        frame = model.frame((side, side), side)
        segmenting = resolve(MicrosamPredictOptions(), "ais", "vit_b")
        learner = MicrosamLearner(model, options, frame, segmenting)
        image, labels = make_image(0, (side, side))
        item = {
            "image": torch.from_numpy(normalised(image))[None],
            **Targets(options)(labels.astype(np.uint32), 0),
        }
        a = model.architecture
        peer = Peer(a.out_channels, side)
        assert model.decoder is not None
        peer.load(model.decoder)
        store = Store(folder / "store", {}, 1, (a.out_channels, a.grid, a.grid), (side, side))
        return cls(learner, peer, {n: t[None] for n, t in item.items()}, frame, store)

    def encode(self) -> Tensor:
        """The embedding of the patch."""
        with torch.no_grad():
            return self.learner.embeddings({"image": self.batch["image"]})

    def embedding(self) -> Tensor:
        """The one in the file."""
        return self.store.get(0)[0][None]

    def step(self, precision: str, kept: bool) -> Callable[[], None]:
        """A step of the training."""
        optimiser = make_optimiser(self.learner, self.learner.options)
        self.learner.train()

        def run() -> None:
            batch = {n: t for n, t in self.batch.items() if n != "image" or not kept}
            if kept:
                batch["embedding"] = self.embedding()
            with autocast(precision):
                terms = self.learner.training_step(batch)
            terms["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()

        return run

    def peer_step(self, precision: str) -> Callable[[], None]:
        """The same with torch_em's decoder, on the kept embedding."""
        optimiser = make_optimiser(self.peer, self.learner.options)
        self.peer.train()

        def run() -> None:
            with autocast(precision):
                maps = self.peer(self.embedding(), self.frame)
                loss = maps_loss(maps, self.batch["maps"], self.batch["known"]).sum()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        return run


def normalised(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, (1, 99.5))
    return ((image - low) / (high - low)).clip(0, 1).astype(np.float32)


def compare_decoders(setting: Setting) -> None:
    """Maps and gradients of both decoders for the same embedding, in float32."""
    learner, peer = setting.learner.train(), setting.peer.train()
    decoder = learner.model.decoder
    assert decoder is not None
    peer.load(decoder)
    embeddings, found = setting.embedding(), []
    for maps in (learner.maps(embeddings), peer(embeddings, setting.frame)):
        maps_loss(maps, setting.batch["maps"], setting.batch["known"]).sum().backward()
        found.append(maps.detach())
    apart = float((found[0] - found[1]).abs().max())
    theirs = dict(peer.unetr.named_parameters())
    pairs = [(p.grad, theirs[name].grad) for name, p in decoder.named_parameters()]
    largest = max(float(grad.abs().max()) for _, grad in pairs)
    far = max(float((ours - grad).abs().max()) for ours, grad in pairs) / largest
    learner.zero_grad()
    peer.zero_grad()
    for name, value, most in zip(("maps", "gradients"), (apart, far), TOLERANCES, strict=True):
        result(f"{name}_apart", value, f"<={most}", value <= most)


def peer_encoder(model_type: str, setting: Setting) -> Callable[[], Tensor]:
    """segment_anything's encoder with our weights, on the same patch."""
    model = setting.learner.model
    if model.architecture.side == 1024:
        encoder = sam_model_registry[model_type]().image_encoder
    else:
        from micro_sam.models.build_sam import sam_model_registry as sized

        encoder = sized[model_type](image_size=model.architecture.side).image_encoder
    encoder.load_state_dict(model.sam.image_encoder.state_dict())
    prepared = model.prepare(setting.batch["image"], setting.frame)

    def run() -> Tensor:
        with torch.no_grad():
            return encoder(prepared)

    return run


@dataclass
class Times:
    """CPU seconds."""

    encode: float
    keep: float
    with_cache: float
    without: float
    peer_encode: float
    peer_step: float


def measure(setting: Setting, precision: str, runs: int) -> Times:
    """The parts of a training with ViT-B."""
    theirs = peer_encoder("vit_b", setting)

    def in_precision(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with autocast(precision):
                return function()

        return run

    encode = seconds(in_precision(setting.encode), runs)
    embedding = in_precision(setting.encode)().float()
    labels = setting.batch["labels"].numpy().astype(np.uint32)
    keep = seconds(lambda: setting.store.put([0], embedding, list(labels)), runs)
    steps = (setting.step(precision, True), setting.step(precision, False))
    peer_step = setting.peer_step(precision)
    for step in (steps[0], peer_step):
        step()  # the first makes the optimiser's state
    return Times(
        encode=encode,
        keep=keep,
        with_cache=seconds(steps[0], runs),
        without=seconds(steps[1], runs),
        peer_encode=seconds(in_precision(theirs), max(1, runs - 1)),
        peer_step=seconds(peer_step, max(1, runs - 1)),
    )


def encode_once(model_type: str, precision: str, setting: Setting) -> float:
    """CPU seconds of one encoding by another, larger encoder."""
    with seeded(0):
        model = MicroSam(replace(Architecture.named(model_type), unetr=None)).eval()
    prepared = model.prepare(setting.batch["image"], setting.frame)
    with torch.no_grad(), autocast(precision):
        return seconds(lambda: model.encode(prepared), 1)


def report(precision: str, times: Times, huge: float | None) -> None:
    """What the parts come to."""
    name = precision.partition("-")[0].replace("32", "fp32")
    fill = COPIES * (times.encode + times.keep)
    rows: list[list[object]] = [[f"{precision}: CPU seconds for a patch", "cellseg", "peer"]]
    rows.append(["encode (segment_anything)", times.encode, times.peer_encode])
    rows.append(["write the embedding", times.keep, "-"])
    rows.append(["step, embedding kept (torch_em's decoder)", times.with_cache, times.peer_step])
    peer_without = times.peer_encode + times.peer_step
    rows.append(["step, patch encoded again", times.without, peer_without])
    table(rows)
    hours = PATCHES / 3600
    rows = [[f"CPU hours with {PATCHES} patches", "first epoch", "later ones", f"{EPOCHS} epochs"]]
    for what, first, later in (
        ("micro-SAM's parts, no cache", peer_without, peer_without),
        ("cellseg, no cache", times.without, times.without),
        (f"cellseg, {COPIES} versions kept", fill + times.with_cache, times.with_cache),
    ):
        rows.append([what, hours * first, hours * later, hours * (first + (EPOCHS - 1) * later)])
    table(rows)
    saved = times.without - times.with_cache
    print(f"{COPIES} versions of each patch are paid back after {fill / saved:.1f} epochs\n")
    epoch = times.without / times.with_cache
    result(f"cached_epoch_vit_b_{name}", epoch, ">=1.4", epoch >= 1.4)
    if huge is not None:
        rows = [["ViT-H", "CPU s"], ["encode, once", huge], ["step, kept", times.with_cache]]
        table(rows)
        epoch = (huge + times.with_cache) / times.with_cache
        result(f"cached_epoch_vit_h_{name}", epoch, ">=3", epoch >= 3)
    decoder = times.peer_step / times.with_cache
    result(f"decoder_step_{name}", decoder, ">=1.5", decoder >= 1.5)
    both = peer_without / times.with_cache
    result(f"epoch_against_micro_sam_{name}", both, "none", True)


def sample(seed: int) -> Sample:
    image, labels = make_image(seed, (256, 256))
    pixels = normalised(image)[None, None]
    return Sample(name=f"cells{seed}", image=pixels, labels=labels[None].astype(np.uint32))


def learn(folder: Path, seed: int, epochs: int, **changes: Any) -> float:
    """Train a tiny model on drawn cells; the best validation score."""
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True)
    options = {
        "patch_size": 64,
        "batch_size": 4,
        "n_samples": 64,
        "val_patches": 32,
        "learning_rate": 3e-3,
        "warmup_steps": 20,
        "decay_epochs": epochs,
        "early_stopping": 0,
        "calibrate": False,
        "threads": 1,
        "num_workers": 0,
        **changes,
    }
    job = TrainJob(
        options=MicrosamOptions(**options),
        train=[sample(seed) for seed in range(8)],
        val=[sample(seed) for seed in range(8, 12)],
        epochs=epochs,
        seed=seed,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    scores: list[float] = []
    train(
        job, lambda e: scores.append(e.metrics["val/score"]) if isinstance(e, Validated) else None
    )
    return max(scores)


def quality(folder: Path, seeds: int, epochs: int) -> None:
    """New decoders on an encoder that has learned, with and without kept embeddings."""
    learn(folder / "first", 0, epochs, model_type="tiny", mode="instances")
    model, _ = load_model(folder / "first" / "model")
    encoder = folder / "encoder.pt"
    torch.save(model.sam.state_dict(), encoder)
    rows: list[list[object]] = [["seed", "embeddings kept", "encoded again"]]
    for seed in range(1, seeds + 1):
        scores = [
            learn(
                folder / f"{seed}-{kept}",
                seed,
                epochs,
                checkpoint=encoder,
                mode="decoder",
                cache_embeddings=kept,
            )
            for kept in (True, False)
        ]
        rows.append([seed, *scores])
    table(rows)
    means = [statistics.mean(float(str(row[i])) for row in rows[1:]) for i in (1, 2)]
    less = means[1] - means[0]
    result("score_lost_by_the_cache", less, f"<={QUALITY}", less <= QUALITY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a trial in two minutes")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    side, runs = (512, 2) if quick else (1024, 3)
    with tempfile.TemporaryDirectory() as temporary:
        quality(Path(temporary), 1 if quick else 3, 4 if quick else 20)
        setting = Setting.make(side, Path(temporary))
        labels = setting.batch["labels"].numpy().astype(np.uint32)
        setting.store.put([0], setting.encode(), list(labels))
        compare_decoders(setting)
        print()
        for precision in PRECISIONS:
            times = measure(setting, precision, runs)
            huge = None if quick else encode_once("vit_h", precision, setting)
            report(precision, times, huge)
            print()
    finish()


if __name__ == "__main__":
    main()
