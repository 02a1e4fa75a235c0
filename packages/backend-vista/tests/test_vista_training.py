"""Training vista2d and vista3d: events, pictures, gradients, validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.classes import SHIFT, UNKNOWN, encoded  # noqa: E402
from cellseg.data import Sample  # noqa: E402
from cellseg.errors import ConfigError, DataError  # noqa: E402
from cellseg.events import Note, Progress, Validated  # noqa: E402
from cellseg.patches import PatchGrid, PatchSampler  # noqa: E402
from cellseg.plugins import Plugins  # noqa: E402
from cellseg.specs import PredictorSpec, Trained, TrainerSpec, TrainJob  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg.torch.loaders import Loaders  # noqa: E402
from cellseg_vista.learner import VistaLearner  # noqa: E402
from cellseg_vista.network import Architecture, Network, plan_levels  # noqa: E402
from cellseg_vista.options import Vista2dOptions, Vista3dOptions  # noqa: E402
from cellseg_vista.patches import Targets  # noqa: E402
from cellseg_vista.predict_options import (  # noqa: E402
    Vista2dPredictOptions,
    Vista3dPredictOptions,
)

TINY: dict[str, Any] = {
    "feature_size": 4,
    "emb_dim": 2,
    "num_classes": 4,
    "levels": 3,
    "patch_size": 32,
    "batch_size": 4,
    "patches_per_image": 4,
}
OPTIONS = {2: Vista2dOptions(**TINY), 3: Vista3dOptions(**TINY, patch_depth=8)}
SHAPES = {2: (1, 64, 64), 3: (12, 48, 48)}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_job(folder: Path, dims: int = 2, **changes: Any) -> TrainJob[Any]:
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True)
    job: TrainJob[Any] = TrainJob(
        options=OPTIONS[dims],
        train=[blobs(1, SHAPES[dims]), blobs(2, SHAPES[dims])],
        val=[blobs(3, SHAPES[dims])],
        epochs=2,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    return replace(job, **changes)


def train(job: TrainJob[Any]) -> tuple[Trained, list[Any]]:
    events: list[Any] = []
    name = "vista2d" if isinstance(job.options, Vista2dOptions) else "vista3d"
    return Plugins().get(TrainerSpec, name).train(job, events.append), events


def make_network(dims: int = 2, **changes: Any) -> Network:
    kernels, strides = plan_levels((1.0,) * dims, (32,) * dims, 3, dims)
    values: dict[str, Any] = {
        "channels": 1,
        "feature_size": 4,
        "emb_dim": 2,
        "num_classes": 4,
        "dims": dims,
        "encoder": "unet",
        "strides": strides,
        "kernels": kernels,
        "deep_supervision": 0,
    }
    torch.manual_seed(0)
    return Network(Architecture(**{**values, **changes}))


def make_learner(dims: int = 2, network: Network | None = None, **options: Any) -> VistaLearner:
    chosen = OPTIONS[dims].model_copy(update=options)
    predicting = Vista2dPredictOptions() if dims == 2 else Vista3dPredictOptions()
    return VistaLearner(network or make_network(dims), chosen, (1.0,) * dims, 2, predicting)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_reports_losses_scores_and_pictures(dims: int, tmp_path: Path) -> None:
    import cv2

    trained, events = train(make_job(tmp_path, dims))
    steps = [e for e in events if isinstance(e, Progress)]
    assert len(steps) == 4
    named = {"loss", "loss_sem", "loss_ce", "loss_dice", "loss_ins"}
    assert {f"train/{name}" for name in named} <= set(steps[0].metrics)
    validated = [e for e in events if isinstance(e, Validated)]
    assert len(validated) == 2
    named = {"loss", "loss_sem", "loss_ins", "accuracy", "are", "msa", "f1@0.5", "score"}
    assert {f"val/{name}" for name in named} <= set(validated[0].metrics)
    pictures = sorted((tmp_path / "previews").iterdir())
    assert [p.name for p in pictures] == ["epoch-0001.png", "epoch-0002.png"]
    height, width, _ = cv2.imread(str(pictures[0])).shape
    assert height > 32 and 4 * height < width < 4.5 * height, "four patches side by side, enlarged"
    assert trained.classes == ("background", "cell")
    spec = Plugins().get(PredictorSpec, f"vista{dims}d")
    assert trained.calibrated.keys() >= {"method", "foreground_threshold", "min_size"}
    found = spec.options(**trained.calibrated).model_dump()
    assert {name: found[name] for name in trained.calibrated} == trained.calibrated


def test_pictures_show_the_last_validation_alone(tmp_path: Path) -> None:
    import cv2

    options = OPTIONS[2].model_copy(update={"preview_every": 2})
    train(make_job(tmp_path, val=[blobs(3, (1, 32, 32))], options=options))
    (picture,) = (tmp_path / "previews").iterdir()
    height, width, _ = cv2.imread(str(picture)).shape
    assert picture.name == "epoch-0002.png" and width == height, "one patch, not one of each epoch"


def test_without_validation_nothing_is_calibrated(tmp_path: Path) -> None:
    trained, events = train(make_job(tmp_path, val=[]))
    assert trained.calibrated == {}
    assert not [e for e in events if isinstance(e, Validated)]


def test_images_left_out_are_named(tmp_path: Path) -> None:
    empty = replace(blobs(9, count=0), name="nothing-here")
    _, events = train(make_job(tmp_path, train=[blobs(1), empty], epochs=1))
    assert "nothing-here" in next(e.text for e in events if isinstance(e, Note))


def test_nothing_but_empty_images_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        train(make_job(tmp_path, train=[blobs(9, count=0)], epochs=1))
    assert "--min-instances" in (error.value.hint or "")


def test_nothing_but_empty_images_trains_when_asked_to(tmp_path: Path) -> None:
    job = make_job(tmp_path, train=[blobs(9, count=0)], val=[blobs(8, count=0)], epochs=1)
    train(replace(job, options=OPTIONS[2].model_copy(update={"min_instances": 0})))
    assert (job.model / "weights.safetensors").exists()


def batch(dims: int = 2, empty: bool = False) -> dict[str, torch.Tensor]:
    labels = np.zeros((8, 32, 32)[3 - dims :], np.uint32)
    if not empty:
        labels[..., 4:14, 4:14], labels[..., 14:24, 4:14] = 3, 9
    image = np.random.default_rng(0).random((1, *labels.shape), np.float32)
    sample = Sample(name="a", image=image, labels=labels)
    if dims == 2:
        image, labels = image[:, None], labels[None]
    item = Targets(OPTIONS[dims], dims, [sample])(image, labels, "a")
    return {name: torch.stack([tensor, tensor]) for name, tensor in item.items()}


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(
    ("dims", "encoder"), [(2, "unet"), (3, "unet"), (2, "segresnet"), (3, "segresnet_ds")]
)
def test_every_parameter_gets_a_finite_gradient(dims: int, encoder: str, empty: bool) -> None:
    deep = 0 if encoder == "segresnet" else 1
    network = make_network(dims, encoder=encoder, feature_size=8, deep_supervision=deep)
    learner = make_learner(dims, network)
    losses = learner.training_step(batch(dims, empty))
    losses["loss"].backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert empty or parameter.grad.any(), name
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize(
    ("option", "term"),
    [
        ("weight_distance", "loss_distance"),
        ("ce_weight", "loss_ce"),
        ("dice_weight", "loss_dice"),
        ("weight_pull", "loss_pull"),
        ("weight_push", "loss_push"),
    ],
)
def test_a_weight_scales_its_term_by_exactly_itself(option: str, term: str) -> None:
    network = make_network()
    once = make_learner(network=network, delta_v=0, **{option: 1.0}).training_step(batch())
    thrice = make_learner(network=network, delta_v=0, **{option: 3.0}).training_step(batch())
    assert once[term] > 0
    torch.testing.assert_close(thrice["loss"] - once["loss"], 2 * once[term])


def test_deep_supervision_counts_each_coarser_level_half() -> None:
    kernels, strides = plan_levels((1.0, 1.0), (32, 32), 4, 2)
    network = make_network(kernels=kernels, strides=strides, deep_supervision=2).train()
    learner = make_learner(network=network)
    maps = network(batch()["image"])
    terms = [learner._terms(one, batch())["loss"] for one in (maps, *maps.coarse)]
    expected = (terms[0] + terms[1] / 2 + terms[2] / 4) / 1.75
    torch.testing.assert_close(learner.training_step(batch())["loss"], expected)


def test_validation_never_uses_the_true_foreground() -> None:
    """What is predicted does not change with the truth."""
    learner = make_learner().eval()
    with torch.no_grad():
        learner.validation_step(batch())
        learner.validation_step(batch(empty=True))
    first, _, third, _ = learner._seen
    np.testing.assert_array_equal(first.found, third.found)
    assert first.truth.any() and not third.truth.any()


def test_validation_counts_what_matches() -> None:
    class Perfect(Network):
        def forward(self, image: torch.Tensor) -> Any:
            maps = super().forward(image)
            inside = (batch()["labels"] > 0).float()
            sure = torch.stack([1 - inside, inside], 1) * 20
            place = batch()["labels"][:, None].expand(-1, 2, -1, -1) * 2.0
            deep = torch.logit(batch()["distance"], eps=1e-6)[:, None]
            return type(maps)(sure, deep, place)

    learner = make_learner(network=Perfect(make_network().architecture)).eval()
    with torch.no_grad():
        scores = learner.validation_step(batch())
    assert scores["f1@0.5"] == (8, 8)
    assert scores["mean_f1"][0] > 6
    assert scores["accuracy"] == (2 * 32 * 32, 2 * 32 * 32)
    assert scores["are"][0] < 0.2 * scores["are"][1]
    assert scores["score"][0] > 0.8 and scores["score"][1] == 1


@pytest.mark.parametrize(("ignored", "counted"), [(-100, 960), (0, 320), (1, 640)])
def test_accuracy_is_of_the_data_s_classes_that_are_learned(ignored: int, counted: int) -> None:
    """The spare classes, which prediction leaves out, may be the likeliest of all."""

    class Sure(Network):
        def forward(self, image: torch.Tensor) -> Any:
            maps = super().forward(image)
            semantic = torch.zeros_like(maps.semantic)
            semantic[:, 1], semantic[:, 2:] = 1, 9
            return maps._replace(semantic=semantic)

    learner = make_learner(network=Sure(make_network().architecture), ignore_index=ignored).eval()
    item = batch()
    item["classes"][:, :, :10] = 1
    item["classes"][:, :, 10:30] = 0
    item["classes"][:, :, 30:] = -100
    with torch.no_grad():
        right, all_ = learner.validation_step(item)["accuracy"]
    assert (right, all_) == (0 if ignored == 1 else 2 * 320, 2 * counted)


def test_unknown_voxels_do_not_dilute_the_distance_loss() -> None:
    learner, item = make_learner(), batch()
    maps = learner.network(item["image"])
    item["classes"][..., 12:] = -100
    known = {k: v[..., :12] for k, v in item.items()}
    cut = type(maps)(*(m[..., :12] for m in maps[:3]))
    torch.testing.assert_close(
        learner._terms(maps, item)["loss_distance"], learner._terms(cut, known)["loss_distance"]
    )


def test_images_of_one_name_keep_their_own_voxel_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--val may name another folder, whose files are called alike."""
    flat = replace(blobs(1, SHAPES[3]), name="a", spacing=(5.0, 1.0, 1.0))
    np.asarray(flat.labels)[::4] = 0
    even = replace(flat, spacing=(1.0, 1.0, 1.0))
    seen: list[Any] = []
    monkeypatch.setattr("cellseg_vista.train.fit", lambda *given: seen.extend(given))
    for sample, other in ((flat, even), (even, flat)):
        train(make_job(tmp_path / str(sample.spacing), 3, train=[sample], val=[other]))
        (loaders,) = (given for given in seen if isinstance(given, Loaders))
        seen.clear()
        patch = PatchSampler.of([sample], OPTIONS[3], 0).patch(0)
        image, labels = loaders.train._augment(
            patch.image, patch.labels, np.random.default_rng((0, 0, 1))
        )
        expected = Targets(OPTIONS[3], 3, [sample])(image, labels, "a")
        torch.testing.assert_close(loaders.train[0], expected)
        patch = PatchGrid([other], (8, 32, 32))[0]
        expected = Targets(OPTIONS[3], 3, [other])(patch.image, patch.labels, "a")
        torch.testing.assert_close(loaders.val[0]["weight"][0], expected["weight"])


# Classes


def two_classes(seed: int, dims: int = 2) -> Sample:
    """Discs of two classes, and a corner without known labels."""
    sample = blobs(seed, SHAPES[dims])
    labels = np.array(sample.labels)
    coded = np.where(labels % 2 == 1, encoded(labels, 1), encoded(labels, 2))
    coded[:, -6:, -6:] = UNKNOWN
    return replace(sample, labels=coded, classes=("background", "round", "odd"))


@pytest.mark.parametrize("dims", [2, 3])
def test_classes_of_the_data_reach_the_model(dims: int, tmp_path: Path) -> None:
    job = make_job(
        tmp_path, dims, train=[two_classes(1, dims)], val=[two_classes(2, dims)], epochs=1
    )
    trained, _ = train(job)
    assert trained.classes == ("background", "round", "odd")


def test_more_classes_than_the_network_has_are_an_error(tmp_path: Path) -> None:
    sample = replace(two_classes(1), classes=("background", *"abcd"))
    with pytest.raises(ConfigError, match="--num-classes 4"):
        train(make_job(tmp_path, train=[sample], val=[]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_index": 3}, "--ignore-index 3: the data has no such class"),
        ({"class_weights": (0.0, 0.0, 0.0, 1.0)}, "--class-weights are 0 for all classes"),
    ],
)
def test_options_for_classes_that_the_data_lacks_are_an_error(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    job = make_job(
        tmp_path, train=[two_classes(1)], val=[], options=Vista2dOptions(**TINY, **options)
    )
    with pytest.raises(ConfigError, match=f"{message}.*1 round, 2 odd"):
        train(job)


def test_targets_know_classes_and_unknown_voxels() -> None:
    sample = two_classes(1)
    item = Targets(OPTIONS[2], 2, [sample])(sample.image[:, :, :, :], sample.labels, sample.name)
    ids, kinds = item["labels"], item["classes"]
    assert set(kinds.unique().tolist()) == {-100, 0, 1, 2}
    assert not ids[kinds == -100].any()
    assert ((ids >> SHIFT)[ids > 0] == kinds[ids > 0]).all()


def test_unknown_voxels_change_no_loss() -> None:
    sample = two_classes(1)
    learner, make = make_learner(), Targets(OPTIONS[2], 2, [sample])
    known = make(sample.image[:, :, :, :], sample.labels, sample.name)
    one = {name: tensor[None] for name, tensor in known.items()}
    maps = learner.network(one["image"])
    before = learner._terms(maps, one)
    where = (one["classes"] == -100)[:, None]
    shifted = type(maps)(*(torch.where(where, m + 3, m) for m in maps[:3]))
    after = learner._terms(shifted, one)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
