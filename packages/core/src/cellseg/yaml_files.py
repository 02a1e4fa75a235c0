"""The one reader of YAML files: plain values only, of bounded size. Light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellseg.errors import ConfigError
from cellseg.limits import MOST_YAML, read_bytes

MOST_VALUES = 100_000
"""Values in a file, each as often as it is referred to."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Tags that name Python objects, keys that come twice, and anchors by which a small file becomes
    a large one are errors.

    Raises:
        ConfigError: the file is missing, too large, or no such YAML.
    """
    import yaml

    try:
        text = read_bytes(path, MOST_YAML, ConfigError).decode("utf-8-sig")
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check(path, root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply.") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: not valid YAML: {message[:500]}") from error


def _check(path: Path, root: Any) -> None:
    """Refuse what is larger than it looks, contains itself, or says one thing twice."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_:
            raise ConfigError(f"{path}: line {_line(node)}: contains itself.")
        open_.add(id(node))
        total = 1
        if node.id == "mapping":
            _refuse_twice(path, node)
            total += sum(size(key) + size(value) for key, value in node.value)
        elif node.id == "sequence":
            total += sum(size(value) for value in node.value)
        open_.discard(id(node))
        if total > MOST_VALUES:
            raise ConfigError(f"{path}: stands for more than {MOST_VALUES} values.")
        sizes[id(node)] = total
        return total

    size(root)


def _refuse_twice(path: Path, node: Any) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.id == "scalar" and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise ConfigError(
                    f"{path}: line {_line(key)}: {key.value[:80]!r} is there twice.",
                    hint="Leave one of them out.",
                )
            seen.add(key.value)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
