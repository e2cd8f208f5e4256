"""The option that names the system calls of a Linux-CR kernel."""

from __future__ import annotations

import click

linux_cr_option = click.option(
    "--linux-cr", envvar="CRD_ENGINE__LINUX_CR", default="", metavar="RELEASE",
    help="Whose system calls this kernel has: v13, v14-rc, v14, v16, v18, v19, v21, v23, 3.0, or "
         "CHECKPOINT/RESTART/ARGUMENTS; not given: what the kernel proves.  On a kernel without them these numbers are "
         "other calls.")
