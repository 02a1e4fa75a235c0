"""Turns option classes into command-line flags, using only Typer's public API.

Typer reads a command's signature. So the options of core, of a reader and of a backend become
flags by giving the command a signature that lists them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from cellseg.download.environment import offline
from cellseg.errors import ConfigError, InterruptedRunError, PluginError
from cellseg.locations import is_place, location, refuse_address, takes_addresses
from cellseg.options import Options, flag, given_twice, parse, refuse_unknown, unaliased
from cellseg_cli.arguments import Arguments
from cellseg_cli.commands import COMMANDS
from cellseg_cli.console import Console
from cellseg_cli.spelling import PathText, limits, spelling, without_none

OptionsT = TypeVar("OptionsT", bound=Options)
_OURS = "cellseg itself"
_DISPLAY = "Display"


@dataclass(frozen=True)
class Group:
    """The options of one class, as flags under one or more headings."""

    model: type[Options]
    panel: str
    """The heading of the fields that the class itself puts under none."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What stands in for the defaults of the class, such as what a model was calibrated to."""
    short: Mapping[str, str] = field(default_factory=dict)
    """One-letter flags of some fields."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names (``Spec.aliases``) and the option that each is, of this group or another."""
    without: frozenset[str] = frozenset()
    """Fields that do not become flags, because the command has its own of that name."""


@dataclass(frozen=True)
class Given:
    """The options that the user gave: those typed win over those of the config file, and these
    over those of the preset."""

    typed: Mapping[str, object] = field(default_factory=dict)
    configured: Mapping[str, object] = field(default_factory=dict)
    file: Path | None = None
    preset: Mapping[str, object] = field(default_factory=dict)

    def values(self, model: type[Options]) -> dict[str, object]:
        """What was given for ``model``, and is valid.

        Raises:
            ConfigError: it is not; the message names the flag, and the file or the preset if that
                is to blame.
        """
        every = model.over(self.preset, {**self.configured, **self.typed})
        mine = {name: value for name, value in every.items() if name in model.model_fields}
        try:
            parse(model, mine)
        except ConfigError:
            if self.file is not None:
                filed = {name: self.configured[name] for name in mine if name in self.configured}
                parse(model, filed, str(self.file))
            if self.preset.keys() & mine.keys():
                given = {**self.configured, **self.typed}
                parse(model, {name: given[name] for name in mine if name in given})
                parse(model, mine, "together with the preset")
            raise
        return mine

    def options(self, model: type[OptionsT]) -> OptionsT:
        """The options of ``model``, with its defaults for what was not given."""
        return parse(model, self.values(model))


@dataclass(frozen=True)
class Command:
    """A function to run, and the option classes whose fields become its flags.

    The function's parameters are the command's own arguments and flags. One annotated ``Console``
    gets the console, one annotated ``Given`` the options; neither is a flag.
    """

    run: Callable[..., None]
    groups: Sequence[Group] = ()
    config: Path | None = None
    configured: Mapping[str, object] = field(default_factory=dict)
    extra_keys: tuple[str, ...] = ()
    """Keys of the config file that are no options of a class, such as ``backend``."""
    preset: Mapping[str, object] = field(default_factory=dict)
    """Options that the config file and the flags win over."""
    downloads: bool = False
    """Whether it may fetch something; then it has ``--offline``."""


def build(name: str, arguments: Arguments) -> Callable[..., None] | typer.Typer:
    """The command ``name`` in a form that Typer reads, with the flags that it needs now."""
    module = import_module(f"cellseg_cli.commands.{COMMANDS[name].module}")
    made: Command | typer.Typer = getattr(module, name.replace("-", "_"))(arguments)
    return made if isinstance(made, typer.Typer) else with_flags(made)


def with_flags(command: Command) -> Callable[..., None]:
    """``command`` as a function with one flag for each option, and those of the console.

    Raises:
        PluginError: two option classes, or a class and the command, have a flag of one name.
        ConfigError: the config file has a key that is none of the options, or an option under two
            names.
    """
    signature = inspect.signature(command.run, eval_str=True)
    own = [p for p in signature.parameters.values() if p.annotation not in (Console, Given)]
    injected = {p.name: p.annotation for p in signature.parameters.values() if p not in own}
    places = {p.name: _place(p) for p in own if is_place(get_args(p.annotation)[0])}
    own = [_as_text(p) if p.name in places else p for p in own]
    switches = {**_CONSOLE_FLAGS, **(_DOWNLOAD_FLAGS if command.downloads else {})}
    flags = _all_flags(command.groups, own, switches)
    known = {*flags, *command.extra_keys}
    aliases = {a: o for group in command.groups for a, o in group.aliases.items() if o in known}
    configured = command.configured
    if command.config is not None:
        configured = unaliased(configured, aliases, str(command.config))
        refuse_unknown(configured, [*flags, *command.extra_keys, *aliases], str(command.config))

    @wraps(command.run)
    def wrapper(ctx: typer.Context, **kwargs: Any) -> None:
        shown = {name: kwargs.pop(name) for name in _CONSOLE_FLAGS}
        console = Console(**shown)
        stay_offline = kwargs.pop("offline") if command.downloads else False
        values = {name: kwargs.pop(name) for name in flags}
        for name, read in places.items():
            kwargs[name] = None if kwargs[name] is None else read(kwargs[name])
        given: dict[str, object] = {}
        for name in (name for name in values if _was_typed(ctx, name)):
            option = aliases.get(name, name)
            if option in given:
                first = next(n for n in flags if aliases.get(n, n) == option and _was_typed(ctx, n))
                raise given_twice(flag(first), flag(name))
            given[option] = flags[name].read(values[name])
        options = Given(given, configured, command.config, command.preset)
        made = {Console: console, Given: options}
        try:
            with offline(stay_offline):
                command.run(**kwargs, **{name: made[kind] for name, kind in injected.items()})
        except KeyboardInterrupt:  # Typer would end without a word
            raise InterruptedRunError("Interrupted.") from None

    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    parameters = [
        context,
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
        *(f.parameter for f in flags.values()),
        *(
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a)
            for n, (a, d) in switches.items()
        ),
    ]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _place(parameter: inspect.Parameter) -> Callable[[str], Path]:
    """How the text of a path, of one of the command's own parameters, is read."""
    if takes_addresses(parameter.annotation):
        return location
    named = get_args(parameter.annotation)[-1].param_decls or ()
    where = named[0] if named else flag(parameter.name)
    is_flag = isinstance(get_args(parameter.annotation)[-1], OptionInfo)

    def read(text: str) -> Path:
        refuse_address(text, f"what {where} names" if is_flag else "this argument")
        return Path(text)

    return read


def _as_text(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter of a path as Typer sees it: it would join the slashes of an address."""
    about = get_args(parameter.annotation)[-1]
    about.path_type = str
    optional = without_none(get_args(parameter.annotation)[0])[1]
    kind = PathText | None if optional else PathText
    default = parameter.default
    return parameter.replace(
        annotation=Annotated[kind, about],
        default=str(default) if isinstance(default, Path) else default,
    )


def value_flags(
    models: Iterable[type[Options]], aliases: Mapping[str, str] | None = None
) -> tuple[set[str], set[str]]:
    """The flags of ``models``, their aliases included, that take a value, and the switches."""
    takes, switches = set[str](), set[str]()
    for model in models:
        for name, info in model.model_fields.items():
            also = [alias for alias, option in (aliases or {}).items() if option == name]
            if without_none(info.annotation)[0] is bool:
                for typed in (s for n in (name, *also) for s in spelled(n)):
                    switches |= {typed, _off(typed)}
            else:
                takes |= {s for n in (name, *also) for s in spelled(n)}
    return takes, switches


def spelled(name: str) -> tuple[str, ...]:
    """How an alias is typed: ``--patch-shape`` or, as config files have it, ``--patch_shape``."""
    return tuple(dict.fromkeys((flag(name), f"--{name}")))


def _off(switch: str) -> str:
    """The flag that turns a switch off."""
    return f"--no-{switch.removeprefix('--')}"


@dataclass(frozen=True)
class _Flag:
    parameter: inspect.Parameter
    read: Callable[[Any], object]
    """From what Typer gives to what the option class takes."""


def _all_flags(
    groups: Sequence[Group], own: Sequence[inspect.Parameter], switches: Iterable[str]
) -> dict[str, _Flag]:
    taken = dict.fromkeys([*(p.name for p in own), *switches], _OURS)
    flags: dict[str, _Flag] = {}
    for group in groups:
        for name, info in in_order(group.model):
            if name in group.without:
                continue
            if name in taken:
                raise PluginError(
                    f"{group.model.__name__} and {taken[name]} both have an option {flag(name)}."
                )
            taken[name] = group.model.__name__
            flags[name] = _flag(name, info, group, _also(name, groups))
    for group in groups:
        for alias, option in group.aliases.items():
            if alias in taken:
                raise PluginError(
                    f"{group.model.__name__} has another name {flag(alias)} for {flag(option)}, but"
                    f" {taken[alias]} has an option of that name."
                )
            if option in flags:  # it may be of a reader that is not in use
                taken[alias] = group.model.__name__
                flags[alias] = _alias(alias, flags[option])
    return flags


def _also(name: str, groups: Sequence[Group]) -> list[str]:
    """The other names of an option."""
    return [alias for group in groups for alias, option in group.aliases.items() if option == name]


def _alias(alias: str, option: _Flag) -> _Flag:
    """A hidden flag that is typed as another one."""
    annotation = get_args(option.parameter.annotation)[0]
    names = spelled(alias)
    if without_none(annotation)[0] is bool:
        names = tuple(f"{typed}/{_off(typed)}" for typed in names)
    parameter = inspect.Parameter(
        alias,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, typer.Option(*names, hidden=True)],
    )
    return _Flag(parameter, option.read)


def in_order(model: type[Options]) -> list[tuple[str, FieldInfo]]:
    """The fields of ``model``: its own first, then those of the classes it inherits from."""

    def distance(item: tuple[str, FieldInfo]) -> int:
        bases = enumerate(model.__mro__)
        return next(i for i, base in bases if item[0] in inspect.get_annotations(base))

    return sorted(model.model_fields.items(), key=distance)


def _flag(name: str, info: FieldInfo, group: Group, also: Sequence[str]) -> _Flag:
    typed = spelling(info.annotation)
    default = info.get_default(call_default_factory=True)
    shown = typed.write(group.defaults.get(name, default))
    names = (flag(name), group.short[name]) if name in group.short else ()
    option = typer.Option(
        *names,
        help=help_text(info, also),
        metavar=typed.metavar,
        path_type=str if typed.is_path else None,
        show_default=shown not in (None, "", []),
        rich_help_panel=group.model.panel_of(name) or group.panel,
    )
    parameter = inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=shown,
        annotation=Annotated[typed.annotation, option],
    )
    return _Flag(parameter, typed.read)


def help_text(info: FieldInfo, also: Iterable[str] = ()) -> str:
    """The help of an option: what its class says, the range it must be in, and its other names."""
    text = " ".join((info.description or "").replace("``", "").split())
    allowed = limits(info)
    names = ", ".join(map(flag, also))
    return text + (f" ({allowed})" if allowed else "") + (f" (also {names})" if names else "")


def _was_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


_CONSOLE_FLAGS: dict[str, tuple[Any, object]] = {
    "json": (
        Annotated[
            bool,
            typer.Option(
                "--json",
                help="Print the result as JSON, alone on stdout.",
                rich_help_panel=_DISPLAY,
            ),
        ],
        False,
    ),
    "quiet": (
        Annotated[
            bool,
            typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=_DISPLAY),
        ],
        False,
    ),
    "verbose": (
        Annotated[
            int,
            typer.Option(
                "--verbose",
                "-v",
                count=True,
                show_default=False,
                metavar="",
                help="Show each step and what libraries warn about; twice: all they log.",
                rich_help_panel=_DISPLAY,
            ),
        ],
        0,
    ),
}
"""The flags that every command has: name, annotation, default."""

_DOWNLOAD_FLAGS: dict[str, tuple[Any, object]] = {
    "offline": (
        Annotated[
            bool,
            typer.Option(
                "--offline",
                help="Download nothing, as with CELLSEG_OFFLINE=1: what is missing is an error.",
                rich_help_panel=_DISPLAY,
            ),
        ],
        False,
    ),
}
"""The flags of commands that may fetch something."""
