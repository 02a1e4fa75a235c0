"""What was typed, before anything is parsed: enough to know which flags a command must have.

The flags of a command depend on its backend, its reader and its config file, so those are looked
up first. Typer then parses the line as usual, and finds every mistake.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

HELP = ("--help", "-h")
COMPLETING = "_CELLSEG_COMPLETE"
"""Set by the completion scripts of the shells."""


@dataclass(frozen=True)
class Arguments:
    """The words after a command's name."""

    words: tuple[str, ...] = ()
    completing: bool = False
    """Whether the shell asks how the line could go on."""

    @property
    def only_shown(self) -> bool:
        """Whether nothing is run, so that what is missing is no error yet."""
        return self.completing or any(word in HELP for word in self.words)

    def value(self, *flags: str) -> str | None:
        """The last value given to one of ``flags``, or None."""
        found = None
        for index, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            if equals and name in flags:
                found = value
            elif word in flags and index + 1 < len(self.words):
                found = self.words[index + 1]
        return found

    def positionals(self, takes_value: Collection[str], switches: Collection[str]) -> list[str]:
        """The words that are neither flags nor values of flags.

        A flag that is in neither collection may be one of a reader that is not known yet; the
        word after it counts as its value.
        """
        found: list[str] = []
        skip = False
        for index, word in enumerate(self.words):
            if skip:
                skip = False
            elif word == "--":
                return [*found, *self.words[index + 1 :]]
            elif word in takes_value or (word.startswith("--") and word not in switches):
                skip = "=" not in word
            elif not word.startswith("-") or word == "-":
                found.append(word)
        return found


def typed(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str | None, Arguments]:
    """The command asked for, if any, and the words after it; also while the shell completes."""
    completing = COMPLETING in environ
    if completing:
        argv = _completed_words(environ)
    if not argv or argv[0].startswith("-"):
        return None, Arguments()
    return argv[0], Arguments(tuple(argv[1:]), completing)


def _completed_words(environ: Mapping[str, str]) -> list[str]:
    """The words before the one being typed: each shell passes them in variables of its own."""
    if "COMP_WORDS" in environ:
        line, before = environ["COMP_WORDS"], int(environ.get("COMP_CWORD", "1"))
    else:
        line = environ.get("_TYPER_COMPLETE_ARGS", "")
        before = len(line.split()) - (not line.endswith(" "))
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is still open
        words = line.split()
    return words[1 : max(before, 1)]
