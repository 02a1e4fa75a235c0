"""Conformance tests of what a plugin says to ``cellseg doctor``; part of ``cellseg.testing``."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cellseg.errors import UnknownPluginError
from cellseg.plugins import Plugins
from cellseg.specs import Finding, PredictorSpec, Spec, TrainerSpec


class DiagnosisTests:
    """What the checks of a backend's cards must keep to."""

    backend: ClassVar[str]

    def test_checks_are_findings_and_leave_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each has a state, says what, advises where it is not well; no network, no files."""
        checks = list(self._checks())
        if not checks:
            pytest.skip(f"{self.backend} has no checks")

        def refuse(*args: Any) -> None:
            raise AssertionError("a check must not use the network")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        for check in checks:
            for found in check():
                assert isinstance(found, Finding), f"{found!r} is no Finding"
                assert found.state in ("ok", "warning", "problem")
                assert found.what.strip() and found.value.strip() and "\n" not in found.what
                assert (found.state == "ok") == (not found.advice), f"{found.what}: advice"
        assert not any(tmp_path.iterdir()), "a check left files in the working directory"

    def _checks(self) -> Iterator[Callable[[], Iterable[Any]]]:
        plugins = Plugins()
        kinds: tuple[type[Spec[Any]], ...] = (TrainerSpec, PredictorSpec)
        for kind in kinds:
            try:
                card = plugins.get(kind, self.backend)
            except UnknownPluginError:
                continue  # not all backends train, and not all predict
            if card.checks is not None:
                yield card.checks
