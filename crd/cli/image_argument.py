"""The argument IMAGE: checked here, looked up by the daemon."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from crd.ids import parse_image_ref


def _checked(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    parse_image_ref(text, now=datetime.now(UTC))
    return text


image_argument = click.argument("image", callback=_checked)
