#!/usr/bin/env bash
# Unpacks Emacs 30 with lsp-mode 10 (lsp-inline-completion) from Debian's testing suite beside the system.
# Needs no root and installs nothing: its own apt folders, its own libc, so no lock is shared with another apt.
# Usage: install_emacs.sh [FOLDER]     then run FOLDER/emacs --batch -l FILE
set -euo pipefail

suite=forky
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fimserver/emacs}

fail() { echo "install_emacs: $*" >&2; exit 1; }
works() { [ -x "$folder/emacs" ] && [ "$("$folder/emacs" --batch -l lsp-inline-completion --eval '(princ (fboundp (quote lsp-inline-completion-mode)))' 2>/dev/null)" = t ]; }

for tool in apt-get dpkg dpkg-deb flock; do
    command -v $tool >/dev/null || fail "needs $tool: this works on Debian only; elsewhere set EMACS to an Emacs with lsp-mode 10"
done
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keys ] || fail "no $keys: this works on Debian only; elsewhere set EMACS to an Emacs with lsp-mode 10"
mkdir -p "$folder" || fail "cannot write $folder"
folder=$(cd "$folder" && pwd)
exec 9>"$folder/.lock"
flock -w 300 9 || fail "another install holds $folder/.lock for 5 minutes"
if works; then echo "install_emacs: $folder/emacs is there"; exit 0; fi

# The archive host as this system has it: deb822 sources, else one-line sources.
uri=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | grep '/debian/*$' | head -1 || true)
[ -n "$uri" ] || uri=$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' /etc/apt/sources.list 2>/dev/null | grep '/debian/*$' | head -1 || true)
[ -n "$uri" ] || fail "no Debian archive in /etc/apt: this works on Debian only; elsewhere set EMACS to an Emacs with lsp-mode 10"

apt=$folder/apt
root=$folder/root
rm -rf "$apt" "$root" "$folder/emacs"
mkdir -p "$apt"/etc/apt/{sources.list.d,preferences.d,apt.conf.d,trusted.gpg.d} "$apt"/var/lib/apt/lists/partial \
    "$apt"/var/cache/apt/archives/partial "$apt"/var/lib/dpkg
: >"$apt/var/lib/dpkg/status" # nothing is installed: every library comes along, libc too
printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$uri" $suite $keys >"$apt/etc/apt/sources.list.d/x.sources"
options=(-o "Dir=$apt" -o "Dir::State::status=$apt/var/lib/dpkg/status" -o Acquire::Retries=3 -o Acquire::Languages=none -o APT::Update::Error-Mode=any
    -o "APT::Sandbox::User=$(id -un)" -qq)
apt-get "${options[@]}" update >"$folder/install.log" 2>&1 || fail "cannot read $suite from $uri, see $folder/install.log"
apt-get "${options[@]}" -y --no-install-recommends --download-only install emacs-nox elpa-lsp-mode patchelf >>"$folder/install.log" 2>&1 ||
    fail "cannot download Emacs from $uri, see $folder/install.log"
for package in "$apt"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
rm -rf "$apt"

# The binary names its loader and libraries itself: nothing in the environment that a child process could inherit.
lib=$(echo "$root"/usr/lib/*-linux-gnu*)
loader=$(find "$lib" -maxdepth 1 -name 'ld-linux*.so.*' | head -1)
program=$root/usr/bin/emacs-nox
"$loader" --library-path "$lib" "$root/usr/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$lib" "$program"
libexec=$(find "$root/usr/libexec/emacs" -name '*.pdmp' -printf '%h\n' | head -1)
version=$(basename "$(dirname "$libexec")")
dump=$(find "$libexec" -name '*.pdmp' | head -1)
lisp=$(find "$root/usr/share/emacs/$version/lisp" "$root/usr/share/emacs/site-lisp" -type d ! -name '*.dir' | tr '\n' ':')
cat >"$folder/emacs" <<WRAPPER
#!/bin/sh
export EMACSLOADPATH='${lisp%:}' EMACSDATA='$root/usr/share/emacs/$version/etc' EMACSDOC='$root/usr/share/emacs/$version/etc' EMACSPATH='$libexec'
exec '$program' --dump-file='$dump' -Q --eval '(setq native-comp-enable-subr-trampolines nil native-comp-jit-compilation nil)' "\$@"
WRAPPER
chmod +x "$folder/emacs"
works || fail "the Emacs of $suite does not start or has no lsp-inline-completion: run $folder/emacs to see"
echo "install_emacs: $("$folder/emacs" --batch --eval '(princ emacs-version)') with lsp-mode in $folder/emacs"
