"""``cellseg submit``."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from cellseg.clusters.command import Restart
from cellseg.clusters.recipes import Recipe, recipe_names, recipe_text, recipe_values
from cellseg.errors import ConfigError, DataError, UsageError
from cellseg.options import Options, flag
from cellseg.texts import did_you_mean
from cellseg.workflows.submit_settings import SubmitSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.commands import COMMANDS
from cellseg_cli.console import Console
from cellseg_cli.flags import Command, Given, Group, with_flags
from cellseg_cli.pages import CommandPage, settings
from cellseg_cli.signals import stoppable

_DEFAULT = "a100"
_PROGRAM = (sys.executable, "-m", "cellseg_cli.main")
_ONLY_FILES = frozenset({"setup", "interface"})
"""What is no flag: shell belongs into a file, and only workers of predict use a network."""
_OWN_FIRST = ("tune", "cross-validate")
"""Commands that pass options on to trainings, which not all of them suit as they are."""


def submit(arguments: Arguments) -> Command:
    """The command, with the options of the recipe; the words after ``--`` are for the job."""
    words = arguments.words
    own = words[: words.index("--")] if "--" in words else words
    name = Arguments(own).value("--recipe") or _DEFAULT
    shown = replace(arguments, words=own).only_shown
    try:
        values, file = recipe_values(name)
    except ConfigError:
        if not shown:
            raise
        values, file = {}, None
    groups = [
        Group(SubmitSettings, "Job"),
        Group(Recipe, "Recipe", values, without=_ONLY_FILES),
    ]

    def run(
        console: Console,
        given: Given,
        command: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="-- COMMAND",
                help="Any command of cellseg, as it would be typed without the word cellseg.",
                show_default=False,
            ),
        ] = None,
        recipe: Annotated[
            str,
            typer.Option(
                help=f"What the job asks for: {', '.join(recipe_names())}, or a YAML file.",
                rich_help_panel="Job",
            ),
        ] = _DEFAULT,
        show_recipe: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                help="Print a recipe that comes with cellseg, to edit it.",
                rich_help_panel="Job",
            ),
        ] = None,
    ) -> None:
        """Run a command of cellseg as a job on a SLURM cluster.

        The job is queued again when it reaches its time limit or its node fails, and goes on where
        it was. Flags of the recipe win over its file.
        """
        if show_recipe is not None:
            text = recipe_text(show_recipe)
            console.result({"recipe": text}, [text.rstrip("\n")])
            return
        if not command or "--" not in words:
            raise UsageError(
                "Which command? It comes after two dashes.",
                hint="As in: cellseg submit -- train DATA -o RUN --backend vista2d",
            )
        how = given.options(SubmitSettings)
        if how.cluster == "local":
            _refuse_idle(given)
        parsed = _checked(command)
        from cellseg.workflows.submit import submit

        with stoppable() as interrupted:
            found = submit(
                command,
                _PROGRAM,
                given.options(Recipe),
                how,
                restart=_restart(command, parsed),
                interrupted=interrupted,
            )
        console.result(found.to_dict(), found.lines())

    return Command(run, groups, file, values, tuple(_ONLY_FILES))


@dataclass
class _Parsed:
    """What a command line was understood as."""

    own: dict[str, Any] = field(default_factory=dict)
    """The command's own arguments and flags."""
    given: Given = field(default_factory=Given)
    models: list[type[Options]] = field(default_factory=list)

    def option(self, name: str) -> Any:
        """The value of a flag, its default included; None where the command has none such."""
        if name in self.own:
            return self.own[name]
        models = (model for model in self.models if name in model.model_fields)
        model = next(models, None)
        return None if model is None else getattr(self.given.options(model), name)


def _checked(words: Sequence[str]) -> _Parsed:
    """Parse a command without running it, so that mistakes are found before the job waits.

    Raises:
        UsageError: there is no such command.
        DataError: what it reads is not there, or where it writes is taken.
        CellsegError: of the kind that the command itself would raise for such options.
    """
    name, parsed = words[0], _Parsed()
    if name not in COMMANDS or name == "submit":
        others = [each for each in COMMANDS if each != "submit"]
        raise UsageError(
            f"cellseg submit has no use for {name!r}."
            if name in COMMANDS
            else f"There is no command cellseg {name}.",
            hint=did_you_mean(name, others, "cellseg --help lists them."),
        )
    module = import_module(f"cellseg_cli.commands.{COMMANDS[name].module}")
    made = getattr(module, name.replace("-", "_"))(Arguments(tuple(words[1:])))
    app = typer.Typer(**settings())
    app.callback()(_nothing)
    if isinstance(made, typer.Typer):
        for info in made.registered_commands:
            assert info.callback is not None
            info.callback = functools.wraps(info.callback)(lambda **kwargs: None)
        app.add_typer(made, name=name)
    else:
        parsed.models = [group.model for group in made.groups]
        app.command(name, cls=CommandPage)(with_flags(_noting(name, made, parsed)))
    typer.main.get_command(app).main(list(words), prog_name="cellseg", standalone_mode=False)
    if Arguments(tuple(words)).only_shown:
        raise typer.Exit
    _refuse_taken(name, parsed)
    return parsed


def _noting(name: str, made: Command, parsed: _Parsed) -> Command:
    """A command that notes what it is given and checks it, instead of running."""

    @functools.wraps(made.run)
    def run(**kwargs: Any) -> None:
        parsed.own = {n: v for n, v in kwargs.items() if not isinstance(v, Console | Given)}
        parsed.given = next((v for v in kwargs.values() if isinstance(v, Given)), Given())
        for model in parsed.models[: 1 if name in _OWN_FIRST else None]:
            parsed.given.options(model)
        for word in _paths(made.run):
            path = parsed.own.get(word)
            if path is not None and "://" not in str(path) and not Path(path).exists():
                raise DataError(f"There is nothing at {path}.")

    return replace(made, run=run)


def _paths(run: Callable[..., None]) -> list[str]:
    """The arguments of a command that say where to read."""
    found = []
    for parameter in inspect.signature(run, eval_str=True).parameters.values():
        kind, *more = getattr(parameter.annotation, "__args__", (parameter.annotation,))
        notes = [*more, *getattr(parameter.annotation, "__metadata__", ())]
        argument = any(isinstance(note, typer.models.ArgumentInfo) for note in notes)
        if argument and kind in (Path, Path | None):
            found.append(parameter.name)
    return found


def _refuse_taken(name: str, parsed: _Parsed) -> None:
    """Refuse a folder that already holds something, where the command would."""
    output = parsed.option("output")
    if output is None:
        return
    if name == "train":
        from cellseg.runs import RunDir

        RunDir.check_free(output)
    elif name == "tune":
        from cellseg.workflows.tune_request import TuneDir

        TuneDir(output).check_free()


def _restart(command: Sequence[str], parsed: _Parsed) -> Restart | None:
    """How the command goes on after it was stopped."""
    from cellseg.workflows.submit import restart_of

    output, work = parsed.option("output"), None
    if command[0] == "predict" and not parsed.option("dry_run"):
        from cellseg.workflows.predict_settings import PredictSettings
        from cellseg.workflows.work_folder import work_folder

        work = work_folder(parsed.own["where"], parsed.given.options(PredictSettings))
    elif command[0] == "embed" and output is not None:
        from cellseg.workflows.embed import WORK

        work = output / WORK
    return restart_of(
        command,
        output=output,
        work=work,
        resume=bool(parsed.option("resume")),
        shard=bool(parsed.option("shard")),
    )


def _refuse_idle(given: Given) -> None:
    """Refuse flags that do nothing on this computer."""
    from cellseg.clusters.submission import LOCAL

    for name in given.typed:
        if name in Recipe.model_fields and name not in LOCAL:
            raise ConfigError(
                f"{flag(name)} does nothing with --cluster local.", hint="Leave it out."
            )


def _nothing() -> None:
    """Stand in for the callback of the program."""
