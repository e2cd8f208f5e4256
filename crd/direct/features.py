"""``crd features``: what this kernel and these privileges offer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from crd.console.program import json_option, print_json
from crd.console.table import print_table

if TYPE_CHECKING:
    from crd.engine.userspace.features import Feature


@click.command()
@json_option
def features(*, as_json: bool) -> None:
    """Say what this kernel and these privileges offer, and what crd does without the rest.

    Each is found out by doing it.

    Exit status: 0 done, 1 failed.
    """
    from crd.engine.userspace.features import features as probe

    found = probe()
    if as_json:
        print_json([asdict(feature) for feature in found])
    else:
        print_table(("feature", "there", "what", "otherwise"), map(_row, found))


def _row(feature: Feature) -> tuple[object, ...]:
    return feature.name, "yes" if feature.available else "no", feature.what, feature.without
