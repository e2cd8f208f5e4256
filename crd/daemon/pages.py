"""Long lists, page by page: a cursor says where the next page begins, whatever comes and goes meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from crd.catalog.rows import Place
from crd.errors import BadRequest
from crd.ids import CRID_MAX, Crid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crd.catalog.rows import Image, Request

ROWS_MAX = 500
"""Of a page: what the daemon holds in memory for one caller, whatever the catalog has."""

T = TypeVar("T")


def page_rows(limit: int | None) -> int:
    """Return how many rows a page has.

    Raises:
        BadRequest: the limit is no number of rows.
    """
    if limit is not None and limit < 1:
        raise BadRequest(f"limit: {limit} is not a number of rows", hint="Give 1 or more, or leave it out.")
    return min(limit or ROWS_MAX, ROWS_MAX)


def page(found: Sequence[T], rows: int, cursor: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """Return the rows of a page, and where the next one begins, None if there is none.

    Args:
        found: one row more than the page has, if there are as many.
        rows: of the page.
        cursor: of a row.
    """
    return found[:rows], cursor(found[rows - 1]) if len(found) > rows else None


def image_cursor(image: Image) -> str:
    """Return where the images behind this one begin."""
    return f"{image.taken_at.isoformat()} {image.crid} {image.host}"


def image_place(cursor: str) -> Place:
    """Return where a cursor points to.

    Raises:
        BadRequest: it is none.
    """
    when, _, rest = cursor.partition(" ")
    crid, _, host = rest.partition(" ")
    try:
        return Place(datetime.fromisoformat(when).astimezone(UTC), Crid(_number(crid)), host)
    except (ValueError, OverflowError) as error:
        raise _no_cursor(cursor) from error


def request_cursor(request: Request) -> str:
    """Return where the requests behind this one begin."""
    return str(request.number)


def request_number(cursor: str) -> int:
    """Return where a cursor points to; raises as ``image_place``."""
    try:
        return _number(cursor)
    except ValueError as error:
        raise _no_cursor(cursor) from error


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number <= CRID_MAX:
        raise ValueError(text)
    return number


def _no_cursor(cursor: str) -> BadRequest:
    return BadRequest(f"{cursor!r} is no cursor", hint="Pass on the one of the reply before, of the same method.")
