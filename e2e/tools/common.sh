# shellcheck shell=bash
# What the scripts of this folder share; each sources it.

say() { echo "${0##*/}: $*" >&2; }
fail() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }
as_root() { if is_root; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else fail "need root to run: $*"; fi; }

# Prints the comment that heads the running script.
usage() { sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; }

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

# The files of Debian packages without installing them, so that no service of theirs is ever enabled or started.
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

# Puts what `fill` makes in a new folder at DEST in one step, so that a folder that is there is whole whatever was
# interrupted before, and two installs at the same time do the work once.
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
