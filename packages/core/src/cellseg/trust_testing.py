"""The conformance tests of models from strangers: part of ``cellseg.testing.BackendTests``."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cellseg.download.remote import Settings, check
from cellseg.errors import CellsegError, UnknownPluginError
from cellseg.plugins import Plugins
from cellseg.specs import PredictJob, PredictorSpec, TrainerSpec, TrainJob

CANARY = "cellseg_canary"
"""A module that can be imported while the test runs, and must not be."""
Place = tuple[str | int, ...]


class TrustTests:
    """What a backend must never do with a model that it was given."""

    backend: ClassVar[str]
    device: ClassVar[str]
    predict_options: ClassVar[dict[str, Any]]

    @classmethod
    def _job(cls, trainer: TrainerSpec[Any], path: Path, epochs: int) -> TrainJob[Any]:
        raise NotImplementedError

    def test_a_model_imports_nothing_that_it_names(
        self, trainer: TrainerSpec[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each text in each JSON or YAML file of a model becomes the name of a module, one by one.

        Loading such a model is an error of cellseg or works, and never imports the module.
        """
        try:
            predictor = Plugins().get(PredictorSpec, self.backend)
        except UnknownPluginError:
            pytest.skip(f"{self.backend} has no predictor")
        job = self._job(trainer, tmp_path / "trained", 0)
        trainer.train(job, lambda event: None)
        options = predictor.options(**self.predict_options)
        imported = tmp_path / "imported"
        (tmp_path / "modules").mkdir()
        code = f"open({str(imported)!r}, 'w').close()\ndef __getattr__(name): return object\n"
        (tmp_path / "modules" / f"{CANARY}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))
        changed = 0
        for file, place, values in _texts(job.model):
            original = file.read_text(encoding="utf-8")
            for name in (CANARY, f"{CANARY}.Thing"):
                file.write_text(json.dumps(_with(values, place, name)), encoding="utf-8")
                try:
                    predictor.load(PredictJob(options=options, device=self.device, model=job.model))
                except CellsegError:
                    pass  # names that mean nothing may be refused
                finally:
                    file.write_text(original, encoding="utf-8")
                assert CANARY not in sys.modules and not imported.exists(), (
                    f"{file.name}: {place} = {name!r} was imported"
                )
                changed += 1
        if not changed:
            pytest.skip("this model has no texts")

    def test_published_models_can_be_trusted(self) -> None:
        """Each has a licence, safe addresses and checksums that are some, and a folder."""
        plugins = Plugins()
        trainer = plugins.all(TrainerSpec).get(self.backend)
        predictor = plugins.all(PredictorSpec).get(self.backend)
        models = [model for card in (trainer, predictor) if card for model in card.models]
        if not models:
            pytest.skip(f"{self.backend} starts from no published models")
        for model in models:
            assert model.licence, f"{model.name} has no licence"
            assert model.folder().is_absolute(), model.name
            names = [file.name for file in model.files]
            assert names and len(set(names)) == len(names), f"{model.name}: {names}"
            for file in model.files:
                check(file, Settings())
                assert file.url.startswith("https://"), f"{file.url} is not secure"


def _texts(model: Path) -> Iterator[tuple[Path, Place, Any]]:
    """Each text of each file: the file, where the text is in it, and all that the file holds."""
    for file in sorted(model.rglob("*")):
        if file.suffix in (".json", ".yaml", ".yml") and file.is_file():
            text = file.read_text(encoding="utf-8")
            values = json.loads(text) if file.suffix == ".json" else _of_yaml(text)
            for place in list(_places(values)):
                yield file, place, values


def _of_yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _places(values: Any, at: Place = ()) -> Iterator[Place]:
    if isinstance(values, str) and at:
        yield at
    items = values.items() if isinstance(values, dict) else ()
    for key, value in items if not isinstance(values, list) else enumerate(values):
        yield from _places(value, (*at, key))


def _with(values: Any, place: Place, text: str) -> Any:
    made = copy.deepcopy(values)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = text
    return made
