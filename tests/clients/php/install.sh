#!/usr/bin/env bash
# install.sh DIR: the PHP cache libraries that reader.php drives, two suites, both with apt-get from Debian's mirror:
#
#   the machine itself (Debian 12)   Symfony Cache 5.4, Laravel 8.83: `php reader.php ...`
#   DIR/sid (Debian unstable)        Symfony Cache 7, Laravel 13:     `./sid DIR ...`
#
# Needs root (debootstrap, chroot). Prints `SUITE LIBRARY VERSION` lines. A second run installs nothing; a change of this
# file starts over; `rm -r DIR/sid` too, to get what is in unstable now. Parallel runs wait for each other.
set -euo pipefail

if [ $# -ne 1 ] || [ -z "$1" ]; then
    echo "usage: install.sh DIR" >&2
    exit 2
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "install.sh: needs root on a Debian system" >&2
    exit 69
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
libraries=(php-cli php-redis php-symfony-cache php-illuminate-cache php-illuminate-redis)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
# Maintainer scripts in the tree look for programs there.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

exec 9>"$dir/.lock"
flock 9

# missing PACKAGE...: those that are not installed here.
missing() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

# versions SUITE [COMMAND...]: what is installed; the command runs dpkg-query there.
versions() {
    local suite=$1
    shift
    "$@" dpkg-query -W -f "$suite "'${Package} ${Version}\n' "${libraries[@]}"
}

make_tree() {
    local tree=$dir/sid.new mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg alone=()
    # Where this machine's own release comes from, as apt reads its sources.
    mirror=$(. /etc/os-release && apt-get indextargets --format '$(REPO_URI)' \
        'Identifier: Packages' 'Origin: Debian' 'Label: Debian' "Codename: $VERSION_CODENAME" | sed -n 1p)
    case $mirror in mirror+file:*) mirror=$(grep -v '^#' "${mirror#mirror+file:}" | sed -n '1s/[[:space:]].*//;1p') ;; esac
    if [ -z "$mirror" ]; then
        echo "install.sh: no mirror of Debian in the sources of apt" >&2
        exit 69
    fi
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    [ -z "${proxy:-}" ] || export http_proxy=$proxy
    # What debootstrap mounts in the tree goes away with its namespace.
    if unshare --mount true 2>/dev/null; then alone=(unshare --mount); fi
    rm -rf --one-file-system "$dir/sid" "$tree"
    if ! "${alone[@]}" debootstrap --variant=minbase --keyring="$keyring" sid "$tree" "$mirror" >"$dir/sid.log" 2>&1; then
        tail -n 20 "$dir/sid.log" "$tree/debootstrap/debootstrap.log" >&2
        exit 1
    fi
    # How apt reaches the mirror (proxies, checks of dates) is this machine's. Its sandbox user may not be able to write
    # or to resolve names in the tree.
    { apt-config dump | grep -E '^Acquire::(https?::|Check-|Retries)' || true; } >"$tree/etc/apt/apt.conf.d/90host"
    echo 'APT::Sandbox::User "root";' >>"$tree/etc/apt/apt.conf.d/90host"
    echo '127.0.0.1 localhost' >"$tree/etc/hosts"
    printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # starts no services
    chmod 755 "$tree/usr/sbin/policy-rc.d"
    if ! {
        chroot "$tree" apt-get update -qq &&
            chroot "$tree" apt-get install -y -qq --no-install-recommends "${libraries[@]}" &&
            chroot "$tree" apt-get clean
    } >>"$dir/sid.log" 2>&1; then
        tail -n 20 "$dir/sid.log" >&2
        exit 1
    fi
    rm -rf "$tree"/var/lib/apt/lists/* "$tree"/usr/share/doc/* "$tree"/usr/share/locale/*
    mv "$tree" "$dir/sid"
}

packages=$(missing debootstrap debian-archive-keyring "${libraries[@]}")
want=$(sha256sum <"$here/install.sh" | cut -d' ' -f1)
have=$(cat "$dir/sid/.stamp" 2>/dev/null || true)
if [ -n "$packages" ] || [ "$have" != "$want" ]; then
    # A third party's source that is out of reach is no reason to stop: what is missing shows in the next step.
    apt-get update -qq >&2 || true
fi
if [ -n "$packages" ]; then
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $packages >"$dir/host.log" 2>&1 ||
        { tail -n 20 "$dir/host.log" >&2; exit 1; }
fi
if [ "$have" != "$want" ]; then
    make_tree
    echo "$want" >"$dir/sid/.stamp"
fi
versions "$(. /etc/os-release && echo "$VERSION_CODENAME")"
versions sid chroot "$dir/sid"
