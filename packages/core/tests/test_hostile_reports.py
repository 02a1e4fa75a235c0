"""Pages, tables and lines with names from strangers: no markup, script, formula or escape."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_report_cross_validation as cross_validations
import test_report_pages as pages
import test_report_tuning as searches

import cellseg.report
from cellseg.events import Failed, Note
from cellseg.report import write_evaluation_report, write_run_report, write_tracks_page
from cellseg.report.cross_validation import write_cross_validation_report
from cellseg.report.tuning import write_tune_report
from cellseg.texts import CsvWriter, printable
from cellseg.tracks import Lineage, Track
from cellseg.tuning.space import Space
from cellseg.workflows.tune_request import TuneDir, TuneRequest

HARMLESS = "cell"
HOSTILE = (
    "<script>document.title='taken'</script>",
    "<img src=x onerror=alert(1)>",
    "</title></style></svg><script>1</script>",
    "\"><a href='javascript:alert(1)'>x</a>",
    "' onmouseover='alert(1)' style='position:fixed",
    "]]>--></textarea><iframe src=data:text/html,x>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&#x3c;script&#x3e;",
    "javascript:alert(1)",
    "a\u202efit.exe\u2066",
)


class Skeleton(HTMLParser):
    """The elements of a page, each with the names of its attributes, and where its links go."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def skeleton(page: Path) -> Skeleton:
    made = Skeleton()
    made.feed(page.read_text(encoding="utf-8"))
    return made


def run_page(folder: Path, name: str) -> Path:
    events = [*pages.training(), Note(f"note {name}"), Failed(name, name)]
    run = pages.new_run(folder / "run", events, data=f"/data/{name.replace('/', '')}")
    return write_run_report(run)


def evaluation_page(folder: Path, name: str) -> Path:
    views: dict[str, Any] = {}
    result = pages.evaluation([f"{name}{i}" for i in range(3)], views)
    return write_evaluation_report(result, folder / "e.html", images=views.get, notes=[name])


def tracks_page(folder: Path, name: str) -> Path:
    frame = np.zeros((1, 40, 50), np.uint32)
    frame[:, 5:15, 5:15] = 1
    lineage = Lineage.of([Track(1, 0, 1)])
    size = (1.0, 1.0, 1.0)
    return write_tracks_page(folder / "t.html", name, None, [frame, frame], lineage, size)


def search_page(folder: Path, name: str) -> Path:
    space = Space.of({"mode": [name, "other"], "rate": {"low": 0.1, "high": 1.0}})
    request = TuneRequest(
        backend="otsu", data=Path("/data") / name.replace("/", ""), space=space,
        search={"trials": 2, "storage": name, "study": name},
        splits={"train": [name], "val": [name], "test": []},
    )  # fmt: skip
    trials = [
        replace(searches.trial(0, 0.5), options={"mode": name, "rate": 0.5}),
        replace(searches.trial(1, 0.7), options={"mode": "other", "rate": 0.2}),
        replace(searches.trial(2, None, "failed", message=name), options={"mode": name}),
    ]
    best = {"mode": name, "rate": 0.5}
    found = searches.Tuned(best, 0.7, tuple(trials), {"mode": 0.9, "rate": 0.1}, replaced=0)
    return write_tune_report(TuneDir(folder), request, found)


def cross_validation_page(folder: Path, name: str) -> Path:
    before = cross_validations.HOSTILE
    cross_validations.HOSTILE = name
    try:
        results = cross_validations.found(folder / "cv", before=True)
    finally:
        cross_validations.HOSTILE = before
    request = {**cross_validations.REQUEST, "options": {"sigma": name}, "reader": name}
    return write_cross_validation_report(results, request)


@pytest.mark.parametrize(
    "write", [run_page, evaluation_page, tracks_page, search_page, cross_validation_page]
)
def test_names_add_no_element_and_no_attribute(
    tmp_path: Path, write: Callable[[Path, str], Path]
) -> None:
    (tmp_path / "plain").mkdir()
    wanted = skeleton(write(tmp_path / "plain", HARMLESS))
    for number, name in enumerate(("".join(HOSTILE), "".join(reversed(HOSTILE)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        page = write(folder, name)
        found = skeleton(page)
        assert found.elements == wanted.elements, name
        assert not any(tag == "script" for tag, _ in found.elements)
        assert not any(a.startswith("on") for _, attributes in found.elements for a in attributes)
        for link in found.links:
            assert re.match(r"data:image/(png|webp);base64,|[\w./#-]+$", link), link
        assert "49" not in re.findall(r"7 \* 7|\{\{.*?\}\}", page.read_text()), "a template ran"


def test_templates_escape_everything() -> None:
    folder = Path(cellseg.report.__file__).parent / "templates"
    for template in folder.glob("*.j2"):
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape|Markup|<script|javascript:|\son\w+=", text)
        assert not re.search(r"=\{[{%]", text), "an attribute without quotes"


@pytest.mark.parametrize(
    "text",
    ["=1+1", "=cmd|'/c calc'!A1", "@SUM(1)", "+cmd|x", "-2+3+cmd(1)", "\t=1"],
)
def test_no_cell_of_a_table_is_a_formula(text: str) -> None:
    file = io.StringIO()
    CsvWriter(file).writerows([["name", "score"], [text, -0.5]])
    rows = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert rows[1] == [f"'{text}", "-0.5"]


def test_control_characters_break_no_row() -> None:
    file = io.StringIO()
    CsvWriter(file).writerow(["a\r=1", "\x1b[2J"])
    assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == ["a\\r=1", "\\x1b[2J"]


@pytest.mark.parametrize("text", ["cell", "-1h", "+drug", "a=b", "", "B/03/0", "-0.5"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    file = io.StringIO()
    CsvWriter(file).writerow([text, None, 3])
    assert next(csv.reader([file.getvalue()]))[0] == text


def test_object_tables_have_no_formulas(tmp_path: Path) -> None:
    from cellseg.outputs import table

    assert "CsvWriter" in vars(table) and "csv" not in vars(table)


def test_what_is_printed_moves_no_cursor() -> None:
    hostile = "a\x1b[2J\x1b]0;taken\x07b\x08\x9b31m\u202egnp\x00\r"
    shown = printable(hostile)
    assert shown.isprintable() and "\\x1b[2J" in shown and "\\u202e" in shown
    assert printable("µm 5\n\tZüge 細胞") == "µm 5\n\tZüge 細胞"
    printable("\udcff").encode()
