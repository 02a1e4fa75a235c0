"""What is installed here, whether it works, and what to do where it does not."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellseg.errors import CellsegError
from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec, Finding, Spec
from cellseg.texts import counted
from cellseg.workflows.doctor_cluster import cluster
from cellseg.workflows.doctor_devices import devices
from cellseg.workflows.doctor_packages import packages
from cellseg.workflows.doctor_storage import storage
from cellseg.workflows.doctor_system import system
from cellseg.workflows.doctor_weights import weights
from cellseg.workflows.installed import InstalledBackend, installed_backend, installed_backends

WIDTH = 100
"""Columns of the page."""
_WIDEST = 30
"""Columns of the left side of it."""
_MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Section:
    """Findings under one heading."""

    heading: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Diagnosis:
    """All findings about this computer."""

    sections: tuple[Section, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all sections."""
        return tuple(finding for section in self.sections for finding in section.findings)

    @property
    def ok(self) -> bool:
        """Whether cellseg can work here; warnings do not matter."""
        return all(finding.state != "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "ok": self.ok,
            "findings": [
                {"heading": section.heading, **asdict(finding)}
                for section in self.sections
                for finding in section.findings
            ],
        }

    def lines(self) -> list[str]:
        """For a terminal: a line for each finding, then what to do about the bad ones."""
        lines: list[str] = []
        for section in self.sections:
            lines += [section.heading, *_table(section.findings), ""]
        return lines + list(self._summary())

    def _summary(self) -> Iterator[str]:
        bad = [
            finding
            for state in ("problem", "warning")
            for finding in self.findings
            if finding.state == state
        ]
        if not bad:
            yield "All is well."
            return
        counts = (sum(finding.state == state for finding in bad) for state in _MARKS)
        _, warnings, problems = counts
        told = [counted(problems, "problem")] if problems else ["No problem"]
        told += [counted(warnings, "warning")] if warnings else []
        yield f"{', '.join(told)}:"
        for finding in bad:
            text = f"{finding.what}: {finding.value}"
            yield from _wrapped(f"  {_MARKS[finding.state].ljust(7)}  ", text)
            if finding.advice:
                yield from _wrapped(f"  {'':7}  -> ", finding.advice)


def diagnose(
    plugins: Plugins | None = None,
    directory: Path | None = None,
    *,
    output: Path | None = None,
    backend: str | None = None,
) -> Diagnosis:
    """Look at this computer and at what is installed. Nothing is downloaded or left behind.

    Args:
        plugins: the installed plugins; found by itself if None, and a clash among them is then a
            finding.
        directory: the working directory, by default that of this process.
        output: where the user is about to write, if elsewhere; it need not exist.
        backend: look at this one only, besides the computer; all if None.

    Raises:
        UnknownPluginError: there is no such backend.
    """
    plugins, found, clash = _installed(plugins, backend)
    here = [one for one in found if one.error is None]
    owners = [one.package for one in here if one.version]
    if not found and not clash:
        advice = "Install one, such as: uv pip install cellseg-vista"
        clash = [Finding("warning", "Backends", "none", advice)]
    checked: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("System", system),
        ("Packages", lambda: packages(owners)),
        ("Devices", devices),
        ("Storage", lambda: storage(directory or Path.cwd(), output)),
        ("Weights", lambda: weights(plugins, backend) if plugins is not None else ()),
        ("Cluster", cluster),
        ("Backends", lambda: (*clash, *_backends(found), *_readers(plugins, backend))),
    ]
    sections = (Section(heading, tuple(check())) for heading, check in checked)
    return Diagnosis(tuple(section for section in sections if section.findings))


def check_of(what: str, spec: Spec[Any], owner: str = "") -> Iterator[Finding]:
    """What the check of a card finds; one that fails is itself a problem.

    Args:
        what: who is checked; stands before each finding.
        spec: a card with ``checks``.
        owner: the package that it comes from.
    """
    try:
        for finding in spec.checks() if spec.checks is not None else ():
            yield Finding(finding.state, f"{what}: {finding.what}", finding.value, finding.advice)
    except Exception as error:  # whatever a stranger's function raises is the finding
        value = f"the check itself failed: {type(error).__name__}: {error}"
        advice = f"Reinstall it, or tell its authors: uv pip install --force-reinstall {owner}"
        yield Finding("problem", f"{what}: checks", value, advice.rstrip() if owner else "")


def _installed(
    plugins: Plugins | None, backend: str | None
) -> tuple[Plugins | None, list[InstalledBackend], list[Finding]]:
    """The plugins, and the backends to look at; a clash of two is a finding instead."""
    try:
        plugins = plugins or Plugins()
        found = installed_backends(plugins)
    except CellsegError as error:
        return None, [], [Finding("problem", "Backends", str(error), error.hint or "")]
    if backend is None:
        return plugins, found, []
    chosen = [one for one in found if one.name == backend]
    return plugins, chosen or [installed_backend(plugins, backend)], []  # the latter raises


def _readers(plugins: Plugins | None, backend: str | None) -> Iterator[Finding]:
    if plugins is not None and backend is None:
        for reader in plugins.all(DatasetSpec).values():
            yield from check_of(f"reader {reader.name}", reader)


def _backends(found: Iterable[InstalledBackend]) -> Iterator[Finding]:
    done: dict[Callable[[], Iterable[Finding]], str] = {}
    for one in found:
        what = f"Backend {one.name}"
        if one.error is not None:
            yield Finding("problem", what, str(one.error), one.error.hint or "")
            continue
        yield Finding("ok", what, f"{one.package} {one.version}".strip())
        for card in one.cards:
            if card.checks is None:
                continue
            if card.checks not in done:
                done[card.checks] = one.name
                yield from check_of(one.name, card, one.package)
            elif done[card.checks] != one.name:
                yield Finding("ok", f"{one.name}: checks", f"those of {done[card.checks]}")


def _table(findings: Iterable[Finding]) -> Iterator[str]:
    findings = list(findings)
    width = min(_WIDEST, max(len(finding.what) for finding in findings))
    for finding in findings:
        yield from _wrapped(
            f"  {_MARKS[finding.state].ljust(7)}  {finding.what.ljust(width)}  ", finding.value
        )


def _wrapped(start: str, text: str) -> list[str]:
    """``text`` behind ``start``, in lines of at most ``WIDTH`` columns where words allow it."""
    return textwrap.wrap(
        text or "-",
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
