"""What a search of trainings is to be, checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.errors import ConfigError, DataError
from cellseg.options import Options, flag, parse, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.specs import DatasetSpec, PredictorSpec, TrainerSpec
from cellseg.splits import SplitOptions, Splits
from cellseg.tuning.searched import PREDICT, Group, refusal, typed_space
from cellseg.tuning.space import Point, Space
from cellseg.workflows.aliases import sorted_out
from cellseg.workflows.example_settings import UNSPLIT, ExampleOptions
from cellseg.workflows.train import refuse_clashes
from cellseg.workflows.train_data import material_of, refuse_idle
from cellseg.workflows.train_settings import TrainSettings
from cellseg.workflows.tune_objective import TrainAndJudge
from cellseg.workflows.tune_request import TuneDir, TuneRequest
from cellseg.workflows.tune_results import known_metric
from cellseg.workflows.tune_settings import TuneSettings

_SAME = "cannot be searched: all trials train, validate and are scored on the same images."


@dataclass(frozen=True)
class Checked:
    """A search that is checked."""

    request: TuneRequest
    objective: TrainAndJudge
    groups: Sequence[Group]
    splits: Splits


def planned(
    plugins: Plugins,
    backend: str,
    data: Path,
    out: Path,
    space: Space | Mapping[str, object],
    how: TuneSettings,
    training: TrainSettings,
    reading: Mapping[str, object],
    options: Mapping[str, object],
) -> Checked:
    """Check a search of trainings, and divide the images.

    Raises:
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    spec = plugins.get(TrainerSpec, backend)
    known_metric(how.metric)
    training, read, own = sorted_out(spec, training, reading, options)
    reader = reader_for(plugins, data, training.reader)
    read = unaliased(read, reader.aliases)
    groups = groups_of(plugins, spec, reader, given_of(training), read, own)
    wanted = space if not isinstance(space, Space) else {one.name: one for one in space.parameters}
    typed = typed_space(wanted, groups)
    _refuse_idle(how, typed)
    refuse_clashes(training, reader.options.model_construct(), spec.options.model_construct())
    request = TuneRequest(
        backend=backend,
        backend_version=plugins.version(backend),
        cellseg_version=core_version(),
        data=data.absolute(),
        space=typed,
        search=given_of(how),
        seed=training.seed,
        settings=_absolute(given_of(training)),
        reader=reader.name,
        reader_options=_plain(reader.options, read),
        options=_plain(spec.options, own),
    )
    objective = objective_of(plugins, TuneDir(out), request)
    first = typed.drawn(1, training.seed, lambda point: not refusal(point, groups))
    if not first:
        point = typed.drawn(1, training.seed)[0]
        raise ConfigError(f"None of the combinations is allowed: {refusal(point, groups)}")
    splits = _splits(plugins, spec, reader, objective, training, first[0])
    request = request.model_copy(update={"splits": splits.model_dump(mode="json")})
    return Checked(request, objective, groups, splits)


def _refuse_idle(how: TuneSettings, space: Space) -> None:
    """Refuse what does nothing where one model is trained for all trials."""
    if not all(one.name.startswith(PREDICT) for one in space.parameters):
        return
    for name in ("prune", "keep_models", "keep_trials"):
        if getattr(how, name) != type(how).model_fields[name].default:
            raise ConfigError(
                f"{flag(name)} does nothing: only options of prediction are searched, so there is "
                "one training.",
                hint="Leave it out.",
            )


def _splits(
    plugins: Plugins,
    spec: TrainerSpec[Any],
    reader: DatasetSpec[Any],
    objective: TrainAndJudge,
    training: TrainSettings,
    point: Point,
) -> Splits:
    """What trains, validates and tests, for all trials; images and labels are seen to be there."""
    chosen = objective.chosen(point)
    for model, given in ((reader.options, chosen.reader), (spec.options, chosen.options)):
        parse(model, model.over({}, given))
    read = parse(reader.options, objective.reading(chosen))
    if not spec.examples:
        refuse_idle(spec, training, read)
        material = material_of(plugins, spec, objective.data, training, reader.name, read)
        if not material.val:
            raise ConfigError(
                "No images are left to validate on, so there is nothing to score.",
                hint="Leave --split full out, or give others: --val FOLDER",
            )
        return material.splits
    bare = training.model_dump(exclude_unset=True, exclude={"val"})
    alone = parse(TrainSettings, bare)
    refuse_idle(spec, alone, read)
    material = material_of(plugins, spec, objective.data, alone, reader.name, read)
    learned = material.splits.train
    given = {**read.model_dump(exclude_unset=True), **chosen.reader}
    source = training.val or objective.data
    scored = open_dataset(plugins, source, reader.name, given, labelled=True)
    names = [s.name for s in scored if training.val is not None or s.name not in learned]
    if training.val is not None and training.val.resolve() == objective.data.resolve():
        raise DataError(f"--val {training.val}: these are the images with the examples.")
    if not names:
        raise DataError(
            "All images have examples to learn from, so none is left to score on.",
            hint="Give others with labels: --val FOLDER",
        )
    return Splits(train=learned, val=tuple(names))


def groups_of(
    plugins: Plugins,
    spec: TrainerSpec[Any],
    reader: DatasetSpec[Any],
    training: Mapping[str, object],
    read: Mapping[str, object],
    own: Mapping[str, object],
) -> list[Group]:
    """What can be searched."""
    same = dict.fromkeys(["val", "reader", *SplitOptions.model_fields], _SAME)
    same["device"] = "cannot be searched: it changes no score."
    if spec.examples:
        same |= dict.fromkeys(UNSPLIT, f"does nothing with {spec.name}: it learns in one go.")
    else:
        learns = f"does nothing with {spec.name}: it learns from labelled images."
        same |= dict.fromkeys(ExampleOptions.model_fields, learns)
    groups = [
        Group(TrainSettings, training, spec.aliases, unsearchable=same),
        Group(reader.options, read, reader.aliases),
        Group(spec.options, own, spec.aliases),
    ]
    predictor = plugins.all(PredictorSpec).get(spec.name)
    if predictor is not None:
        groups.append(Group(predictor.options, {}, predictor.aliases, PREDICT))
    return groups


def groups_again(plugins: Plugins, request: TuneRequest) -> list[Group]:
    """What can be searched, of a search that goes on."""
    if request.function:
        return []
    spec = plugins.get(TrainerSpec, request.backend)
    reader = plugins.get(DatasetSpec, request.reader)
    return groups_of(
        plugins, spec, reader, request.settings, request.reader_options, request.options
    )


def objective_of(plugins: Plugins, folder: TuneDir, request: TuneRequest) -> TrainAndJudge:
    """What each trial does."""
    assert request.data is not None
    predicts = all(one.name.startswith(PREDICT) for one in request.space.parameters)
    return TrainAndJudge(
        backend=request.backend,
        data=request.data,
        reader=request.reader,
        settings=request.settings,
        reader_options=request.reader_options,
        options=request.options,
        splits=folder.splits.absolute(),
        metric=request.how.metric,
        trained=folder.trained.absolute() if predicts else None,
        plugins=plugins,
    )


def given_of(options: Options) -> dict[str, Any]:
    """What was given, as JSON has it."""
    return options.model_dump(mode="json", exclude_unset=True)


def _plain(model: type[Options], values: Mapping[str, object]) -> dict[str, Any]:
    """Options as JSON has them, each by itself: they need not be allowed without those searched."""
    return {
        name: model.model_construct(None, **{name: value}).model_dump(
            mode="json", include={name}, warnings=False
        )[name]
        for name, value in values.items()
    }


def _absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose paths mean the same from any working directory."""
    paths = {name: settings[name] for name in ("val", "splits", "examples") if settings.get(name)}
    return settings | {name: str(Path(path).absolute()) for name, path in paths.items()}


def core_version() -> str:
    """Of cellseg."""
    from importlib.metadata import version

    return version("cellseg-core")
