# For the `install` scripts beside it: a package of Debian or Ubuntu, installed as root without starting its services,
# which packages do when they are installed and at each boot. What is installed already is left as it is.
# They set `title`, `package` and `services` (names its scripts may start), source this, and call `quietly`.
policy=${DPKG_ROOT:-}/usr/sbin/policy-rc.d # decides whether a package may start its service; most machines have none

installed() {
    dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

allowed() { # 101 is the one answer that forbids
    code=0
    "$policy" "$package" start >/dev/null 2>&1 || code=$?
    [ "$code" != 101 ]
}

forbid() { # for as long as this script lives: left behind by one that was killed, it forbids nothing
    cat >"$policy" <<POLICY
#!/bin/sh
# Written by Penstock's installation of $title; it may be deleted.
kill -0 $$ 2>/dev/null || exit 0
for word; do case " $services " in *" \$word "*) exit 101 ;; esac; done
exit 0
POLICY
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
}

get() {
    apt-get install --yes --quiet --no-install-recommends --no-upgrade -o DPkg::Lock::Timeout=300 "$@"
}

quietly() {
    if installed "$package"; then exit 0; fi
    if grep -qs "Written by Penstock's installation of" "$policy"; then rm "$policy"; fi
    if [ ! -e "$policy" ]; then
        forbid
    elif allowed; then
        echo "$policy lets packages start their services: install $package by hand, and stop its service" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    if ! get "$package"; then # its lists may be old, or missing
        apt-get update --quiet
        get "$package"
    fi
}

not_at_boot() {
    if command -v systemctl >/dev/null; then
        systemctl disable "$@" >/dev/null 2>&1 || true
    else
        update-rc.d "${1%.service}" disable >/dev/null 2>&1 || true
    fi
}
