#!/bin/bash
# Installs what make cannot do without and what is missing here: a compiler, Python's venv and headers, and the programs
# that tests checkpoint.  Asks nothing; does nothing where all is there.
set -euo pipefail

missing=()
need() { # need PACKAGE TEST-COMMAND...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
need gcc command -v gcc
need libc6-dev test -e /usr/include/stdio.h
need libzstd-dev test -e /usr/include/zstd.h
need python3-venv python3 -c 'import ensurepip, venv'
need python3-dev python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
need musl-tools command -v musl-gcc
need sqlite3 command -v sqlite3
need strace command -v strace
need tmux command -v tmux
need vim-tiny command -v vi
need postgresql sh -c 'ls /usr/lib/postgresql/*/bin/initdb'

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "crd: please install: ${missing[*]}" >&2
    exit 1
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
