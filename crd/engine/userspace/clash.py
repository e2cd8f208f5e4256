"""What stands in the way of a restart: errors, told rather than raised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.errors import AccessDenied, FeatureMissing, RestartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import ParamSpec

    P = ParamSpec("P")

Clash = RestartError | AccessDenied | FeatureMissing


def clash(check: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> Iterator[Clash]:
    """Yield what a check raises, if it does."""
    try:
        check(*arguments, **named)
    except (RestartError, AccessDenied, FeatureMissing) as error:
        yield error
