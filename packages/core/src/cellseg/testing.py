"""The conformance tests that every backend must pass. Subclass, name your backend, run pytest.

    class TestMyBackend(BackendTests):
        backend = "mybackend"
        train_options = {"feature_size": 8}

Everything runs on tiny synthetic images, on a CPU, in seconds. A test that cannot pass yet is
declared with its reason, and must then fail:

        expected_failures = {"test_resume_equals_one_go": "upstream bug #123"}
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cellseg.data import Sample, Segmentation, Tile
from cellseg.diagnosis_testing import DiagnosisTests
from cellseg.errors import UnknownPluginError
from cellseg.examples import examples_of_labels
from cellseg.plugins import Plugins
from cellseg.specs import PredictJob, Predictor, PredictorSpec, Spec, Trained, TrainerSpec, TrainJob
from cellseg.synthetic import blobs as blobs
from cellseg.synthetic_movies import make_movie as make_movie
from cellseg.synthetic_movies import write_ctc as write_ctc
from cellseg.tracker_testing import TrackerTests
from cellseg.tracker_testing import moving_blobs as moving_blobs
from cellseg.trainer_testing import Once, TrainerTests, made
from cellseg.trust_testing import TrustTests

S = TypeVar("S", bound=Spec[Any])
HEAVY = ("numpy", "torch", "tensorflow", "jax", "lightning", "monai", "zarr", "ngio", "dask")


class BackendTests(TrainerTests, TrackerTests, DiagnosisTests, TrustTests):
    """What it means to be a cellseg backend."""

    backend: ClassVar[str]
    """The name of the trainer and the predictor."""
    train_options: ClassVar[dict[str, Any]] = {}
    """Options of a tiny configuration with random weights."""
    predict_options: ClassVar[dict[str, Any]] = {}
    epochs: ClassVar[int] = 2
    """Enough for the tiny configuration to find bright discs on dark noise."""
    shape: ClassVar[tuple[int, int, int]] = (1, 64, 64)
    """``(z, y, x)`` of the images; a 3D backend asks for some depth."""
    device: ClassVar[str] = "cpu"
    expected_failures: ClassVar[dict[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _expect_failure(self, request: pytest.FixtureRequest) -> None:
        unknown = self.expected_failures.keys() - set(dir(self))
        assert not unknown, f"expected_failures names no test: {sorted(unknown)}"
        if reason := self.expected_failures.get(request.node.originalname):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, Trained]:
        """A model trained once for all the tests that predict."""
        trainer = _get_or_skip(TrainerSpec, cls.backend)
        epochs = 1 if trainer.examples else cls.epochs
        if epochs in (1, 2):
            done: Once = request.getfixturevalue({1: "once", 2: "twice"}[epochs])
            return done.job.model, done.trained
        job = cls._job(trainer, tmp_path_factory.mktemp("fitted"), cls.epochs)
        return job.model, trainer.train(job, lambda event: None)

    @pytest.fixture(scope="class")
    @classmethod
    def once(cls, tmp_path_factory: pytest.TempPathFactory) -> Once:
        """One epoch, for all the tests that train."""
        trainer = _get_or_skip(TrainerSpec, cls.backend)
        return Once.of(trainer, cls._job(trainer, tmp_path_factory.mktemp("once"), 1))

    @pytest.fixture(scope="class")
    @classmethod
    def twice(cls, tmp_path_factory: pytest.TempPathFactory) -> Once:
        """Two epochs in one go."""
        trainer = _get_or_skip(TrainerSpec, cls.backend)
        if trainer.examples:
            pytest.skip(f"{cls.backend} learns in one go; there is no second epoch")
        return Once.of(trainer, cls._job(trainer, tmp_path_factory.mktemp("twice"), 2))

    @pytest.fixture
    def trainer(self) -> TrainerSpec[Any]:
        """The card, or a skip where the backend cannot train."""
        return _get_or_skip(TrainerSpec, self.backend)

    @pytest.fixture
    def predictor(self) -> PredictorSpec[Any]:
        """The card, or a skip where the backend cannot predict."""
        return _get_or_skip(PredictorSpec, self.backend)

    # The plugin

    def test_other_processes_can_load_it(self) -> None:
        """``--workers`` sends the card of the predictor to other processes."""
        try:
            spec = Plugins().get(PredictorSpec, self.backend)
        except UnknownPluginError:
            pytest.skip("no predictor")
        sent = pickle.loads(pickle.dumps(spec))
        assert sent.load is spec.load and sent.track is spec.track

    def test_the_plugin_imports_nothing_heavy(self) -> None:
        """Listing backends and asking for help must be quick."""
        assert not (also := _heavy_imports(self.backend)), f"the plugin also imports: {also}"

    @pytest.mark.parametrize("kind", [TrainerSpec, PredictorSpec])
    def test_options_are_flat_documented_and_optional(self, kind: type[Spec[Any]]) -> None:
        """Each becomes a flag, a line of a config file and a keyword."""
        from cellseg.workflows.predict_settings import PredictSettings
        from cellseg.workflows.train_settings import TrainSettings

        spec = _get_or_skip(kind, self.backend)
        core = {*(TrainSettings if kind is TrainerSpec else PredictSettings).model_fields}
        if isinstance(spec, TrainerSpec) and spec.examples:  # cellseg predict --examples takes both
            other = Plugins().get(PredictorSpec, self.backend).options.model_fields
            core |= {*PredictSettings.model_fields, *other}
        assert not core & set(spec.options.model_fields), "these names are taken"
        for name, field in spec.options.model_fields.items():
            assert field.description, f"{name} has no help text"
            assert not field.is_required(), f"{name} has no default"
            assert not hasattr(field.annotation, "model_fields"), f"{name} is nested"
        for base in spec.options.__mro__:
            for names in vars(base).get("panels", {}).values():
                assert set(names) <= set(spec.options.model_fields), "a panel names no option"

    def test_presets_are_options(self, trainer: TrainerSpec[Any]) -> None:
        """Each sets only options that there are, to values that are allowed."""
        from cellseg.options import parse
        from cellseg.workflows.presets import options_of_reader, preset_options
        from cellseg.workflows.train_settings import TrainSettings

        for name in trainer.presets:
            values = preset_options(Plugins(), trainer, name)
            reader = options_of_reader(Plugins(), str(values.get("reader", "auto")))
            for model in (TrainSettings, reader, trainer.options):
                parse(model, {n: v for n, v in values.items() if n in model.model_fields}, name)

    # Prediction

    def test_finds_bright_discs(self, fitted: tuple[Path, Trained]) -> None:
        """The tiny model finds the easy objects, where they are."""
        sample = blobs(4, self.shape)
        found = self._segment(fitted, sample)
        assert _overlap(found.labels > 0, sample) > 0.5, "most of the discs must be found"

    def test_results_are_labels(self, fitted: tuple[Path, Trained]) -> None:
        """Integers of the tile's shape; scores and classes belong to labels that exist."""
        sample = blobs(4, self.shape)
        found = self._segment(fitted, sample)
        assert found.labels.shape == self.shape and found.labels.dtype.kind in "iu"
        ids = set(np.unique(found.labels).tolist()) - {0}
        assert min(ids, default=0) >= 0
        assert set(found.scores) <= ids and set(found.classes) <= ids
        assert all(0 <= score <= 1 for score in found.scores.values())

    def test_probabilities_come_when_asked_for(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """One for each class and voxel, from 0 to 1; those of a voxel sum to 1, within 0.001."""
        sample = blobs(4, self.shape)
        assert self._segment(fitted, sample).probabilities is None, "nobody asked for them"
        if not predictor.probabilities:
            pytest.skip(f"{self.backend} has none, as its card says")
        asked = self._load(fitted, probabilities=True)([_tile(sample)])[0]
        found = asked.probabilities
        assert found is not None and found.dtype == np.float32
        assert found.ndim == 4 and found.shape[1:] == self.shape
        assert len(fitted[1].classes) in (0, len(found)), "as many as the model has classes"
        assert found.min() >= 0 and found.max() <= 1 + 1e-4  # rounding
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-3)
        np.testing.assert_array_equal(asked.labels, self._segment(fitted, sample).labels)

    def test_loading_twice_predicts_the_same(self, fitted: tuple[Path, Trained]) -> None:
        """A model on disk is all there is to a model."""
        sample = blobs(5, self.shape)
        once, again = self._segment(fitted, sample), self._segment(fitted, sample)
        np.testing.assert_array_equal(once.labels, again.labels)

    def test_the_same_tile_gives_the_same_labels(self, fitted: tuple[Path, Trained]) -> None:
        """Predicting is repeatable, and does not change the tile."""
        predict, sample = self._load(fitted), blobs(5, self.shape)
        before = sample.image[:, :, :, :].copy()
        once, again = predict([_tile(sample)])[0], predict([_tile(sample)])[0]
        np.testing.assert_array_equal(once.labels, again.labels)
        np.testing.assert_array_equal(sample.image[:, :, :, :], before)

    def test_an_empty_tile_stays_empty(self, fitted: tuple[Path, Trained]) -> None:
        """Nothing in, nothing out."""
        image = np.zeros((1, *self.shape), np.float32)
        found = self._load(fitted)([Tile(image=image)])[0]
        assert found.labels.shape == self.shape and not found.labels.any()

    def test_a_tile_that_is_not_square_stays_aligned(self, fitted: tuple[Path, Trained]) -> None:
        """Padding inside the backend must be undone exactly."""
        z, y, x = self.shape
        sample = blobs(6, (z, y - 7, x + 21), 7)
        found = self._segment(fitted, sample).labels > 0
        aligned = _overlap(found, sample)
        for axis in (1, 2):
            for shift in (-4, 4):
                assert aligned > _overlap(np.roll(found, shift, axis), sample)

    def test_tiled_equals_untiled(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """What lies further than the halo from a tile's border does not depend on the tile."""
        (_, hy, hx), (z, y, x) = (fitted[1].tiling or predictor.tiling).halo, self.shape
        predict = self._load(fitted)
        sample = blobs(7, (z, y + 2 * hy, x + 2 * hx + 64), 12)
        whole = predict([_tile(sample)])[0].labels
        part = predict([Tile(image=sample.image[:, :, :, : x + 2 * hx])])[0].labels
        inside = (slice(None), slice(hy, hy + y), slice(hx, hx + x))
        whole, part = whole[inside], part[inside]
        np.testing.assert_array_equal(whole > 0, part > 0)
        pairs = np.unique(np.stack([whole[whole > 0], part[whole > 0]]), axis=1)
        assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1], "other objects"

    def test_a_batch_equals_its_tiles(self, fitted: tuple[Path, Trained]) -> None:
        """Two tiles at once give what each gives alone."""
        predict = self._load(fitted)
        tiles = [_tile(blobs(seed, self.shape)) for seed in (7, 8)]
        both = predict(tiles)
        assert len(both) == 2
        assert not np.array_equal(both[0].labels, both[1].labels), "one result for two tiles"
        for tile, found in zip(tiles, both, strict=True):
            np.testing.assert_array_equal(found.labels, predict([tile])[0].labels)

    # Embedding

    def test_features_lie_where_the_image_is(
        self, fitted: tuple[Path, Trained], predictor: PredictorSpec[Any]
    ) -> None:
        """A grid of finite vectors over a tile that is not square; a disc changes those at it."""
        if predictor.embed is None:
            pytest.skip(f"{self.backend} gives no vectors, as its card says")
        z, y, x = self.shape
        plain = _tile(blobs(6, (z, y - 7, x + 21), 0))
        rows, columns = np.indices((y - 7, x + 21))
        disc = np.hypot(rows - (y - 19), columns - (x + 9)) < 7
        shown = replace(plain, image=plain.image + disc.astype(np.float32))
        options = predictor.options(**self.predict_options)  # what is calibrated does not count
        embed = predictor.embed(replace(self._predict_job(predictor, fitted), options=options))
        both = embed([plain, shown])
        assert len(both) == 2, "one result for each tile"
        maps = []
        for tile, found in zip((plain, shown), both, strict=True):
            values, step = found.values, found.step
            assert values.ndim == 4 and values.dtype == np.float32 and np.isfinite(values).all()
            cells = [
                ((np.arange(n) + 0.5) / s).astype(int)
                for n, s in zip(tile.image.shape[1:], step, strict=True)
            ]
            assert all(i[-1] < n for i, n in zip(cells, values.shape[1:], strict=True)), (
                "not all of the tile"
            )
            maps.append(values[:, cells[0]][:, :, cells[1]][..., cells[2]])
            alone = embed([tile])[0].values
            np.testing.assert_allclose(values, alone, rtol=1e-3, atol=1e-4 * float(np.ptp(values)))
        change = np.abs(maps[1] - maps[0]).mean((0, 1))
        assert change[disc].mean() > 1.5 * change[~disc].mean(), "the disc is seen elsewhere"

    @classmethod
    def _job(cls, trainer: TrainerSpec[Any], path: Path, epochs: int) -> TrainJob[Any]:
        images, others = [blobs(seed, cls.shape) for seed in (1, 2)], [blobs(3, cls.shape)]
        if "tracking" in trainer.tasks:
            movies = [moving_blobs(seed, cls.shape, 4) for seed in (1, 2, 3)]
            images, others = movies[0] + movies[1], movies[2]
        return TrainJob(
            options=trainer.options(**cls.train_options),
            train=[] if trainer.examples else images,
            val=[] if trainer.examples else others,
            examples=examples_of_labels(images).images if trainer.examples else (),
            epochs=min(epochs, 1) if trainer.examples else epochs,
            seed=0,
            device=cls.device,
            checkpoint=made(path / "checkpoint"),
            model=made(path / "model"),
            previews=made(path / "previews"),
        )

    def _load(self, fitted: tuple[Path, Trained], probabilities: bool = False) -> Predictor:
        spec = _get_or_skip(PredictorSpec, self.backend)
        return spec.load(self._predict_job(spec, fitted, probabilities))

    def _predict_job(
        self, spec: PredictorSpec[Any], fitted: tuple[Path, Trained], probabilities: bool = False
    ) -> PredictJob[Any]:
        model, trained = fitted
        options = spec.options(**{**trained.calibrated, **self.predict_options})
        return PredictJob(
            options=options, device=self.device, model=model, probabilities=probabilities
        )

    def _segment(self, fitted: tuple[Path, Trained], sample: Sample) -> Segmentation:
        return self._load(fitted)([_tile(sample)])[0]


@cache
def _heavy_imports(backend: str) -> str:
    """What a new process imports with a plugin; asked once, however many classes test it."""
    code = (
        "import sys\nfrom cellseg.plugins import Plugins\n"
        "from cellseg.errors import UnknownPluginError\n"
        "from cellseg.specs import TrainerSpec, PredictorSpec\n"
        "for kind in (TrainerSpec, PredictorSpec):\n"
        f"    try: Plugins().get(kind, {backend!r})\n"
        "    except UnknownPluginError: pass\n"
        f"sys.exit(', '.join(m for m in {HEAVY!r} if m in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def _get_or_skip(kind: type[S], name: str) -> S:
    try:
        return Plugins().get(kind, name)
    except UnknownPluginError:
        pytest.skip(f"{name} offers no {kind.noun}")


def _tile(sample: Sample) -> Tile:
    return Tile(image=sample.image[:, :, :, :], spacing=sample.spacing)


def _overlap(found: NDArray[np.bool_], sample: Sample) -> float:
    """IoU of the foreground."""
    assert sample.labels is not None
    truth = sample.labels[:, :, :] > 0
    return float((found & truth).sum() / max((found | truth).sum(), 1))
