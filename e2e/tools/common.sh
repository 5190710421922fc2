# shellcheck shell=bash
# Functions that the scripts of this folder share.

say() { echo "${0##*/}: $*" >&2; }
fail() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }
as_root() { if is_root; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else fail "need root to run: $*"; fi; }

# Prints the running script's head comment, which is its usage text.
usage() { sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2; }

apt_updated=
apt_update() {
  [ -n "$apt_updated" ] || as_root apt-get update -qq >&2
  apt_updated=1
}

apt() { # PACKAGE...
  command -v apt-get >/dev/null || fail "missing $*, and there is no apt-get to install it with"
  apt_update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Unpacks Debian packages without installing them, so that none of their services is enabled or started.
unpack_debian() { # FOLDER PACKAGE...
  local folder=$1; shift
  command -v apt-get >/dev/null || fail "missing $*, and there is no apt-get to download it with"
  apt_update
  (
    cd "$folder" || exit
    as_root apt-get download -qq -o APT::Sandbox::User=root "$@" >&2
    local package
    for package in ./*.deb; do dpkg-deb --extract "$package" .; done
    rm -f ./*.deb
  )
}

# Creates the folder DEST with the command FILL. The result is moved there in one step, so an interrupted
# install leaves no partial folder, and of two installs at the same time only one does the work.
install_once() { # DEST FILL ARG...
  local dest=$1 fill=$2 staging; shift 2
  [ -e "$dest" ] && return 0
  mkdir -p "$(dirname "$dest")"
  (
    flock 9
    [ -e "$dest" ] && exit 0
    rm -rf "$dest".part.*
    staging=$(mktemp -d "$dest.part.XXXXXX")
    "$fill" "$staging" "$@"
    chmod -R a+rX "$staging"
    mv "$staging" "$dest"
  ) 9>"$dest.lock"
}
