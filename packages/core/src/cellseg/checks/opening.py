"""Opening a data set file by file, so that one bad file does not hide the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cellseg.checks.findings import FileVerdict, Finding
from cellseg.checks.samples import unreadable
from cellseg.data import Sample
from cellseg.errors import DataError
from cellseg.options import parse, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.readers.ctc import chosen, open_sequence
from cellseg.readers.folder import image_file, label_image, match
from cellseg.readers.options import CtcOptions, FolderOptions
from cellseg.readers.view import samples_of


@dataclass(frozen=True, slots=True)
class Opened:
    """What can be used, and a verdict on each file that cannot."""

    samples: list[Sample]
    refused: list[FileVerdict]


def open_each(plugins: Plugins, path: Path, reader: str, options: Mapping[str, object]) -> Opened:
    """Open ``path`` with labels; where that fails, open its files one at a time.

    Raises:
        DataError: no reader understands ``path``.
        ConfigError: the reader has no such option.
    """
    spec = reader_for(plugins, path, reader)
    try:
        return Opened(list(open_dataset(plugins, path, spec.name, options, labelled=True)), [])
    except DataError as error:
        whole = error
    if not path.is_dir():
        return Opened([], [_refused(path, unreadable(whole))])
    if spec.name == "folder":
        opened = _pairs(path, parse(FolderOptions, options))
    elif spec.name == "ctc":
        return _sequences(path, parse(CtcOptions, unaliased(options, spec.aliases)), whole)
    else:
        children = [child for child in sorted(path.iterdir()) if spec.recognises(child)]
        opened = Opened([], [])
        for child in children:
            try:
                opened.samples.extend(
                    open_dataset(plugins, child, spec.name, options, labelled=True)
                )
            except DataError as error:
                opened.refused.append(_refused(child, unreadable(error)))
    if not opened.refused:  # what is wrong is with the whole
        opened.refused.append(_refused(path, unreadable(whole)))
    return opened


def _refused(path: Path, finding: Finding) -> FileVerdict:
    return FileVerdict(path.name, path, findings=(finding,))


def _sequences(path: Path, options: CtcOptions, whole: DataError) -> Opened:
    """The frames that can be opened, with tables that contradict themselves: the check says how."""
    opened = Opened([], [])
    try:
        found = chosen(path, labelled=True)
    except DataError:
        return Opened([], [_refused(path, unreadable(whole))])
    for sequence in found:
        part = open_sequence(sequence, options, labelled=True)
        opened.samples.extend(part.samples)
        findings = [replace(unreadable(error), code="frames-missing") for error in part.missing]
        findings += [unreadable(error) for error in part.problems]
        if findings:
            verdict = FileVerdict(sequence.name, sequence.where, findings=tuple(findings))
            opened.refused.append(verdict)
    return opened


def _pairs(path: Path, options: FolderOptions) -> Opened:
    """The pairs of a folder that can be opened; files without a partner are refused."""
    try:
        found = match(path, options)
    except DataError:  # what is wrong is with the folder, and said by the caller
        return Opened([], [])
    opened = Opened([], [])
    for pair in found.pairs:
        assert pair.labels is not None
        try:
            labels = label_image(pair.labels)
            opened.samples.extend(
                samples_of(pair.name, image_file(pair.image), labels, options, pair.image)
            )
        except DataError as error:
            finding = replace(unreadable(error), code=_kind(pair.image, pair.labels, options))
            opened.refused.append(FileVerdict(pair.name, pair.image, findings=(finding,)))
    for alone, other in [
        *((file, "labels") for file in found.lonely),
        *((file, "image") for file in found.orphans),
    ]:
        finding = Finding(
            "unmatched",
            "error",
            f"{alone} has no {other} of that name.",
            "Add it, or remove this file. A pair has one name; --image-suffix and "
            "--label-suffix are cut off first.",
        )
        opened.refused.append(_refused(alone, finding))
    return opened


def _kind(image: Path, truth: Path, options: FolderOptions) -> str:
    """Why a pair is refused: each file is opened on its own, to see what is wrong between them."""
    try:
        pictures = samples_of("image", image_file(image), None, options, image)
        labels = samples_of("labels", label_image(truth), None, FolderOptions(), truth)
    except DataError:
        return "unreadable"
    if labels[0].image.shape[0] > 1:
        return "labels-colours"
    if labels[0].image.dtype.kind == "f":
        return "labels-not-integers"
    same = len(labels) == len(pictures) and labels[0].image.shape[1:] == pictures[0].image.shape[1:]
    return "unreadable" if same else "shape"
