"""Options that ``crctl restart`` and ``crd restart`` have alike."""

from __future__ import annotations

import click

STDIO = ["inherit", "pty", "null"]
STDIO_HELP = ("What takes the place of terminals whose other end is outside of the image, as of what a shell has "
              "started: the caller's own terminal; a fresh one; none, that is /dev/null.")

force_version_option = click.option(
    "--force-version", is_flag=True,
    help="Restart an image that another version of a Linux-CR kernel wrote, if all else in it fits: release of the "
         "patches, format revision, machine.  The kernel is told that it is its own.")

tcp_option = click.option(
    "--tcp", type=click.Choice(["auto", "established", "close"]), default="auto", show_default=True,
    help="What becomes of TCP connections to processes outside of the image: those that are held since a checkpoint "
         "--kill go on and the others are over; all go on, or fail; all are over.")
