# Unpacks packages of Debian's testing suite beside the system, for the install scripts that source this.
# Needs no root and installs nothing: its own apt folders, its own libc, so no lock is shared with another apt.
# Before: name (of the script's program), elsewhere (what to set where this is no Debian), works (whether it is there).
# After: folder, root (what was unpacked), lib (its libraries), own (gives a binary that loader and those libraries).
set -euo pipefail

suite=forky

fail() { echo "install_$name: $*" >&2; exit 1; }
not_here() { fail "$1: this works on Debian only; elsewhere set $elsewhere"; }

# The folder to install to, held until the script ends; ends the script where the program is there already.
claim() {
    folder=$1
    for tool in apt-get dpkg dpkg-deb flock; do
        command -v $tool >/dev/null || not_here "needs $tool"
    done
    mkdir -p "$folder" || fail "cannot write $folder"
    folder=$(cd "$folder" && pwd)
    root=$folder/root
    exec 9>"$folder/.lock"
    flock -w 300 9 || fail "another install holds $folder/.lock for 5 minutes"
    if works; then echo "install_$name: $folder/$name is there"; exit 0; fi
}

# Packages with all that they need, into $root.
unpack() {
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r $keys ] || not_here "no $keys"
    # The archive host as this system has it: deb822 sources, else one-line sources.
    uri=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | grep '/debian/*$' | head -1 || true)
    [ -n "$uri" ] || uri=$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' /etc/apt/sources.list 2>/dev/null | grep '/debian/*$' | head -1 || true)
    [ -n "$uri" ] || not_here "no Debian archive in /etc/apt"
    apt=$folder/apt
    rm -rf "$apt" "$root" "${folder:?}/$name"
    mkdir -p "$apt"/etc/apt/{sources.list.d,preferences.d,apt.conf.d,trusted.gpg.d} "$apt"/var/lib/apt/lists/partial \
        "$apt"/var/cache/apt/archives/partial "$apt"/var/lib/dpkg
    : >"$apt/var/lib/dpkg/status" # nothing is installed: every library comes along, libc too
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$uri" $suite $keys >"$apt/etc/apt/sources.list.d/x.sources"
    options=(-o "Dir=$apt" -o "Dir::State::status=$apt/var/lib/dpkg/status" -o Acquire::Retries=3 -o Acquire::Languages=none -o APT::Update::Error-Mode=any
        -o "APT::Sandbox::User=$(id -un)" -qq)
    apt-get "${options[@]}" update >"$folder/install.log" 2>&1 || fail "cannot read $suite from $uri, see $folder/install.log"
    apt-get "${options[@]}" -y --no-install-recommends --download-only install "$@" patchelf >>"$folder/install.log" 2>&1 ||
        fail "cannot download $* from $uri, see $folder/install.log"
    for package in "$apt"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
    rm -rf "$apt"
    lib=$(echo "$root"/usr/lib/*-linux-gnu*)
}

# A binary names its loader and libraries itself: nothing in the environment that a child process could inherit.
own() {
    loader=$(find "$lib" -maxdepth 1 -name 'ld-linux*.so.*' | head -1)
    "$loader" --library-path "$lib" "$root/usr/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$lib" "$1"
}
