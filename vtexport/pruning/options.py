"""Options of methods and settings of ops: declared once, with what they may be and a line of help.

An op's settings are the fields of its class, all of them set. What a user typed are `Options`: some are given, the
others are at their default, which for many follows from the budget and is therefore None until a plan is made.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtexport.errors import UsageError

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: As after `--set`.
        kind: int, float, bool or str. A float option also takes an int.
        about: One line for `vtexport list methods`.
        default: Value when the user gives none. None means "derived", as `about` says.
        choices: The allowed words of a str option.
        minimum: Smallest allowed number.
        above: The number has to be larger than this one.
    """

    name: str
    kind: type
    about: str
    default: Any = None
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    above: float | None = None

    @property
    def allowed(self) -> str:
        """The values it may have, for a sentence."""
        if self.above is not None:
            return f"a number above {self.above:g}"
        if self.minimum is not None:
            return f"a {'whole ' if self.kind is int else ''}number from {self.minimum}"
        return "true or false" if self.kind is bool else ", ".join(self.choices)

    def checked(self, value: Any) -> Any:
        """`value` in the option's type.

        Raises:
            UsageError: It is not allowed.
        """
        if not self._allows(value):
            raise UsageError(f"{self.name}={value!r} is not allowed; give {self.allowed}")
        return float(value) if self.kind is float else value

    def parsed(self, value: Any) -> Any:
        """The value that a text stands for, as a command line gives it; anything else, and nonsense, as it is."""
        if not isinstance(value, str) or self.kind is str:
            return value
        text = value.strip().lower()
        if text == "none" and self.default is None:
            return None
        try:
            return _WORDS[text] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            return value  # `checked` refuses it and says what is allowed

    def _allows(self, value: Any) -> bool:
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and value in self.choices
        if not isinstance(value, (int, float) if self.kind is float else int) or not math.isfinite(value):
            return False
        if self.above is not None and not value > self.above:
            return False
        return self.minimum is None or value >= self.minimum


class Options(Mapping[str, Any]):
    """Options of a method as a user set them: every option by name, at its default where it was not given.

    Attributes:
        given: Those that were set, checked.
    """

    def __init__(self, owner: str, known: Sequence[Option], values: Mapping[str, Any]):
        """Takes texts, as a command line gives them, too. `owner` is the method's name, for errors.

        Raises:
            UsageError: A name or a value is not allowed.
        """
        self.known = {option.name: option for option in known}
        for name in values:
            if name not in self.known:
                hint = closest(str(name), sorted(self.known)) if self.known else "it has no parameters"
                raise UsageError(f"parameter {name!r} is not known to {owner}; {hint}")
        self.given: dict[str, Any] = {}
        for name, value in values.items():
            option = self.known[name]
            value = option.parsed(value)
            self.given[name] = None if value is None and option.default is None else option.checked(value)

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name, self.known[name].default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def set_or(self, name: str, derived: Any) -> Any:
        """The option's value, `derived` where it is None."""
        value = self[name]
        return derived if value is None else value

    def changed(self) -> dict[str, Any]:
        """Those that are not at their default, in the options' order."""
        return {name: self[name] for name, option in self.known.items() if self[name] != option.default}

    def resolved(self, **settings: Any) -> dict[str, Any]:
        """Every option with the value it has in `settings`, else its own: what a plan says it was made with."""
        return {name: settings.get(name, self[name]) for name in self.known}


_REQUIRED = dataclasses.MISSING


def setting(
    default: Any = _REQUIRED,
    *,
    kind: type,
    about: str,
    choices: tuple[str, ...] = (),
    minimum: int | None = None,
    above: float | None = None,
) -> Any:
    """A documented field of an op's class; without a default the option of the same name is derived.

    The arguments are those of `Option`. Op classes are dataclasses with `kw_only=True`, so that order is free.
    """
    metadata = {"kind": kind, "about": about, "choices": choices, "minimum": minimum, "above": above}
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(op: Any, *names: str, after: Mapping[str, Sequence[Option]] | None = None) -> tuple[Option, ...]:
    """The settings of an op's class as options, in the order of its fields.

    Args:
        op: The class.
        names: Those wanted; all of them when left out.
        after: Options of the method itself that stand after the setting of that name.
    """
    options = {
        spec.name: Option(spec.name, default=None if spec.default is _REQUIRED else spec.default, **spec.metadata)
        for spec in dataclasses.fields(op)
    }
    found: list[Option] = []
    for name in names or options:
        found += [options[name], *(after or {}).get(name, ())]
    return tuple(found)


def closest(name: str, known: Sequence[str]) -> str:
    """The known names, and the one that `name` may have meant, for a sentence."""
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(known)}"
