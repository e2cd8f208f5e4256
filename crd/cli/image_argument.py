"""The argument IMAGE: checked here, looked up by the daemon."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from crd.ids import parse_image_ref


def checked_reference(_context: click.Context, _parameter: click.Parameter,
                      given: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Let pass what can name an image, one or several; a callback of click."""
    for text in (given,) if isinstance(given, str) else given:
        parse_image_ref(text, now=datetime.now(UTC))
    return given


image_argument = click.argument("image", callback=checked_reference)
