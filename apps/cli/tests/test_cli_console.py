"""How events are shown."""

from __future__ import annotations

import sys

import pytest

from cellseg.events import Checkpointed, Failed, Note, Progress, Resumed, Validated
from cellseg_cli.console import Console, columns


def shown(capsys, *events, **flags) -> list[str]:
    with Console(**flags).following("Work", "step") as emit:
        for event in events:
            emit(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_plain_lines_are_few(capsys) -> None:
    lines = shown(capsys, *[Progress(step, 100, {"loss": 0.5}) for step in range(1, 101)])
    assert lines[0] == "Work: step 1/100, loss 0.5"
    assert lines[1].startswith("Work: step 100/100, ") and len(lines) == 2


def test_plain_lines_have_rate_and_time_left(capsys, monkeypatch) -> None:
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr("cellseg_cli.console.time.monotonic", lambda: next(clock))
    lines = shown(capsys, Progress(1, 100, epoch=1), Progress(11, 100), Progress(21, 100))
    assert lines[0] == "Work: epoch 1, step 1/100"
    assert lines[1] == "Work: step 11/100, 2 s/step, 3 min left"


def test_a_resumed_run_does_not_count_old_steps_as_fast(capsys, monkeypatch) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("cellseg_cli.console.time.monotonic", lambda: next(clock))
    lines = shown(capsys, Resumed(50), Progress(51, 100), Progress(61, 100))
    assert lines[0] == "Going on after step 50."
    assert "1 steps/s, 39 s left" in lines[2]


def test_every_kind_of_event_is_shown(capsys) -> None:
    events = [
        Note("by the way"),
        Failed("tile 3", "it broke"),
        Validated(4, {"f1": 0.25}, epoch=2),
        Checkpointed(4),
    ]
    lines = shown(capsys, *events, verbose=1)
    assert lines == [
        "by the way",
        "Failed: tile 3: it broke",
        "Validation after epoch 2: f1 0.25",
        "Checkpoint after step 4.",
    ]


def test_quiet_still_shows_failures(capsys) -> None:
    events = [Note("by the way"), Progress(1, 2), Failed("tile 3", "it broke")]
    assert shown(capsys, *events, quiet=True) == ["Failed: tile 3: it broke"]


@pytest.mark.parametrize("total", [None, 3])
def test_a_terminal_gets_a_bar(capsys, monkeypatch, total) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    events = [Progress(step, total, {"loss": 0.5}) for step in (1, 2, 3)]
    text = "\n".join(shown(capsys, *events, Note("[a] note")))
    assert "Work" in text and "[a] note" in text


def test_columns_are_aligned() -> None:
    assert columns([("NAME", "N"), ("a", 10)]) == ["NAME  N", "a     10"]
    assert columns([("NAME", "N"), ("a", 10)], numbers_from=1) == ["NAME   N", "a     10"]
