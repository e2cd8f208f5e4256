#!/bin/bash
# Installs what make cannot do without and what is missing here: a compiler, Python's venv and headers, and the programs
# that tests checkpoint, or run crd under.  Asks nothing; does nothing where all is there.
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
need systemd test -x /lib/systemd/systemd
need systemd-container command -v systemd-nspawn
need dbus command -v dbus-daemon
need e2fsprogs command -v mkfs.ext4
need man-db command -v man
need groff-base command -v groff
need prometheus command -v prometheus
need nginx-light command -v nginx
need redis-server command -v redis-server
need nodejs command -v node
need openjdk-17-jdk-headless command -v javac
need postgresql test -n "$(compgen -G '/usr/lib/postgresql/*/bin/postgres')"
need tmux command -v tmux
need vim command -v vim
need iproute2 command -v ip
need faketime command -v faketime
need gdb command -v gdb

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "crd: please install: ${missing[*]}" >&2
    exit 1
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d # deb-systemd-invoke(1p): nothing that is installed here shall run as a service
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 0755 $policy
fi
apt-get update -qq >/dev/null
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
if [[ " ${missing[*]} " == *" prometheus "* ]]; then # nor after the next boot
    ! command -v systemctl >/dev/null || systemctl --quiet disable prometheus >/dev/null 2>&1 || true
    ! command -v update-rc.d >/dev/null || update-rc.d prometheus disable >/dev/null 2>&1 || true
fi
