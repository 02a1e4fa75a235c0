"""The same work in several processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellseg.errors import DataError, PluginError
from cellseg.splits import Splits
from cellseg.workflows.processes import spread


def test_results_come_in_order_and_errors_with_their_hint(tmp_path: Path) -> None:
    made = [tmp_path / f"{number}.json" for number in range(4)]
    for number, path in enumerate(made[:3]):
        Splits(train=(str(number),)).save(path)
    found = spread(Splits.load, made, 2)
    assert [next(found).train[0] for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"3\.json: there is no such file"):
        next(found)
    made[0].write_text("[]")
    with pytest.raises(DataError, match="not a splits file") as error:
        next(spread(Splits.load, made[:1], 1))
    assert "It looks like" in (error.value.hint or "")


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(PluginError, match="cannot be sent to another process") as error:
        next(spread(os.fspath, [lambda: None], 2))
    assert error.value.hint == "Use --workers 1."
