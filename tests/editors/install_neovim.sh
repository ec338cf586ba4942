#!/usr/bin/env bash
# Unpacks Neovim with vim.lsp.inline_completion (0.12 or newer) from Debian's testing suite beside the system.
# Needs no root and installs nothing: its own apt folders, its own libc, so no lock is shared with another apt.
# Usage: install_neovim.sh [FOLDER]     then run FOLDER/nvim
set -euo pipefail

suite=forky
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fimserver/neovim}

fail() { echo "install_neovim: $*" >&2; exit 1; }
works() { [ -x "$folder/nvim" ] && [ "$("$folder/nvim" --clean --headless +'lua io.write(tostring(vim.lsp.inline_completion ~= nil))' +qa 2>&1)" = true ]; }

for tool in apt-get dpkg dpkg-deb flock; do
    command -v $tool >/dev/null || fail "needs $tool: this works on Debian only; elsewhere set NVIM to a Neovim 0.12"
done
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keys ] || fail "no $keys: this works on Debian only; elsewhere set NVIM to a Neovim 0.12"
mkdir -p "$folder" || fail "cannot write $folder"
folder=$(cd "$folder" && pwd)
exec 9>"$folder/.lock"
flock -w 300 9 || fail "another install holds $folder/.lock for 5 minutes"
if works; then echo "install_neovim: $folder/nvim is there"; exit 0; fi

# The archive host as this system has it: deb822 sources, else one-line sources.
uri=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | grep '/debian/*$' | head -1 || true)
[ -n "$uri" ] || uri=$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' /etc/apt/sources.list 2>/dev/null | grep '/debian/*$' | head -1 || true)
[ -n "$uri" ] || fail "no Debian archive in /etc/apt: this works on Debian only; elsewhere set NVIM to a Neovim 0.12"

apt=$folder/apt
root=$folder/root
rm -rf "$apt" "$root" "$folder/nvim"
mkdir -p "$apt"/etc/apt/{sources.list.d,preferences.d,apt.conf.d,trusted.gpg.d} "$apt"/var/lib/apt/lists/partial \
    "$apt"/var/cache/apt/archives/partial "$apt"/var/lib/dpkg
: >"$apt/var/lib/dpkg/status" # nothing is installed: every library comes along, libc too
printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$uri" $suite $keys >"$apt/etc/apt/sources.list.d/x.sources"
options=(-o "Dir=$apt" -o "Dir::State::status=$apt/var/lib/dpkg/status" -o Acquire::Retries=3 -o Acquire::Languages=none -o APT::Update::Error-Mode=any
    -o "APT::Sandbox::User=$(id -un)" -qq)
apt-get "${options[@]}" update >"$folder/install.log" 2>&1 || fail "cannot read $suite from $uri, see $folder/install.log"
apt-get "${options[@]}" -y --no-install-recommends --download-only install neovim patchelf >>"$folder/install.log" 2>&1 ||
    fail "cannot download Neovim from $uri, see $folder/install.log"
for package in "$apt"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
rm -rf "$apt"

# The binary names its loader and libraries itself: nothing in the environment that a child process could inherit.
lib=$(echo "$root"/usr/lib/*-linux-gnu*)
loader=$(find "$lib" -maxdepth 1 -name 'ld-linux*.so.*' | head -1)
"$loader" --library-path "$lib" "$root/usr/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$lib" "$root/usr/bin/nvim"
cat >"$folder/nvim" <<WRAPPER
#!/bin/sh
export VIM='$root/usr/share/nvim' VIMRUNTIME='$root/usr/share/nvim/runtime'
export LUA_PATH='$root/usr/share/lua/5.1/?.lua;;' LUA_CPATH='$lib/lua/5.1/?.so;;'
exec '$root/usr/bin/nvim' --cmd "let &runtimepath .= ',$root/usr/lib/nvim'" "\$@"
WRAPPER
chmod +x "$folder/nvim"
works || fail "the Neovim of $suite does not start or has no vim.lsp.inline_completion: run $folder/nvim to see"
echo "install_neovim: $("$folder/nvim" --version | head -1) in $folder/nvim"
