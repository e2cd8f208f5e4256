"""``crd run``."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
from pathlib import Path

import click

from crd import log
from crd.api.turning_away import turning_away
from crd.daemon.app import App
from crd.daemon.notify import passed_fds
from crd.errors import CrdError
from crd.native.allocator import limit_arenas
from crd.settings.load import load

logger = logging.getLogger(__name__)

_ARENAS = 2
"""Each thread does a bit for each image: with an arena of its own each kept a few MiB, 30 in all with 1,000 targets."""


@click.command("run")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (default: /etc/crd/crd.toml).")
def run(config: Path | None) -> None:
    """Run the daemon in the foreground.

    SIGTERM and SIGINT stop it: running checkpoints end, no target is left stopped, queued requests stay queued.  SIGHUP
    reads targets, schedules, retention and limits again.

    Exit status: 0 stopped, 1 failed, 2 wrong settings, 14 another daemon works on the same state.
    """
    limit_arenas(_ARENAS)
    with turning_away(passed_fds().get("api")):
        settings = load(config)
        log.set_up(settings.daemon.log_level, settings.daemon.log_format)
        os.umask(0o077)
        faulthandler.enable()  # says where it hangs when the watchdog ends it
        asyncio.run(_serve(App(settings, config)))


async def _serve(app: App) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await app.reload()
        except CrdError as error:
            logger.error("the old settings stay: %s", error.message, extra={"event": "daemon.reload-refused"})  # noqa: TRY400

    def reload_soon() -> None:
        task = asyncio.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload_soon)
    await app.serve(stop)
