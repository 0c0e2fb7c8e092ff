"""HTML from values: text is escaped unless it is `Html`, so what a file says can never become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

from vtexport.errors import printable

_VOID = {"meta", "img"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child: TypeAlias = "Html | str | float | None"


def escaped(value: object) -> Html:
    """`value` as text of a page or of an attribute; control characters and stray bytes become visible escapes."""
    return value if isinstance(value, Html) else Html(html.escape(printable(value)))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """One element. An attribute's name takes "_" for "-" and may end in "_" (`class_`); None leaves it out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other; None is nothing."""
    return Html("".join(escaped(child) for child in children if child is not None))


def table(header: Iterable[Child], rows: Iterable[Iterable[Child]], label: str) -> Html:
    """A table that scrolls sideways where it is wider than the page; `label` is for readers that hear it."""
    body = [
        tag("tr", *(tag("td" if number else "th", cell, scope=None if number else "row") for number, cell in pairs))
        for pairs in (list(enumerate(row)) for row in rows)
    ]
    header = list(header)
    head = tag("thead", tag("tr", *(tag("th", each, scope="col") for each in header))) if any(header) else None
    whole = tag("table", head, tag("tbody", *body), aria_label=label)
    return tag("div", whole, class_="scroll", tabindex=0)


def listed(items: Iterable[Child]) -> Html | None:
    """A list, or None of nothing."""
    points = [tag("li", item) for item in items]
    return tag("ul", *points) if points else None
