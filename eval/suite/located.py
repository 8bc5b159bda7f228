"""YAML whose mappings and lists remember their lines, so that what is wrong can be pointed at."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import yaml


class SuiteError(ValueError):
    """A suite that cannot be run; the message names every problem and its line."""


class Lines(dict[str, Any]):
    """A mapping: `line` of its beginning, and `lines` of its keys."""

    line: int
    lines: Mapping[str, int]


class Entries(list[Any]):
    """A list, with the `lines` of its entries."""

    lines: Sequence[int]


class _Loader(yaml.SafeLoader):
    pass


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> Entries:
    found = Entries(loader.construct_object(entry, deep=True) for entry in node.value)
    found.lines = [entry.start_mark.line + 1 for entry in node.value]
    return found


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Lines:
    loader.flatten_mapping(node)
    pairs = [
        (str(loader.construct_object(key, deep=True)), key.start_mark.line + 1, value) for key, value in node.value
    ]
    found = Lines((key, loader.construct_object(value, deep=True)) for key, _, value in pairs)
    found.line, found.lines = node.start_mark.line + 1, {key: line for key, line, _ in pairs}
    names = [key for key, _, _ in pairs]
    if twice := [key for key in found if names.count(key) > 1]:
        raise yaml.MarkedYAMLError(problem=f"{twice[0]} stands there twice", problem_mark=node.start_mark)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG, _sequence)


def read(text: str, name: str) -> Lines:
    """A mapping from YAML. Raises SuiteError, with the line, for what is none."""
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise SuiteError(f"{name} is no YAML: line {mark.line + 1 if mark else 1}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SuiteError(f"{name} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, Lines):
        raise SuiteError(f"{name} holds no mapping, expected title, models, methods and evaluations")
    return content


class Problems:
    """All that is wrong with a suite, collected with its lines."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, problem: str) -> None:
        """Note a problem."""
        self._found.append((line, problem))

    @contextmanager
    def at(self, line: int) -> Iterator[None]:
        """Note what the block raises as ValueError or OSError."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.add(line, str(error))

    def one_of(self, line: int, what: str, value: object, known: Collection[str]) -> bool:
        """Whether a value is known; else it is noted, with what may have been meant."""
        if isinstance(value, str) and value in known:
            return True
        near = difflib.get_close_matches(str(value), list(known), 1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        self.add(line, f"{what} {value!r} is not known; {meant}")
        return False

    def keys(self, mapping: Lines, known: Collection[str]) -> None:
        """Note keys that are not known."""
        for key, line in mapping.lines.items():
            self.one_of(line, "key", key, known)

    def raise_any(self, name: str) -> None:
        """Raise SuiteError if there is a problem."""
        if found := sorted(dict.fromkeys(self._found)):
            lines = "".join(f"\n  line {line}: {problem}" for line, problem in found)
            raise SuiteError(f"{name} has {len(found)} problem{'s' * (len(found) > 1)}:{lines}")
