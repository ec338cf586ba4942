#!/usr/bin/env bash
# Installs Debian's luacheck, as root, for the lint of the Neovim plugin.
# Usage: install_luacheck.sh     elsewhere than on Debian, put a luacheck into PATH
set -euo pipefail

fail() { echo "install_luacheck: $*" >&2; exit 1; }

if command -v luacheck >/dev/null; then echo "install_luacheck: $(command -v luacheck) is there"; exit 0; fi
command -v apt-get >/dev/null || fail "needs apt-get: this works on Debian only; elsewhere put a luacheck into PATH"
[ "$(id -u)" = 0 ] || fail "run it as root, or put a luacheck into PATH"
log=$(mktemp)
options=(-o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -qq)
apt-get "${options[@]}" update >"$log" 2>&1 || fail "apt-get update failed, see $log"
DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -y --no-install-recommends lua-check >>"$log" 2>&1 ||
    fail "cannot install lua-check, see $log"
rm -f "$log"
echo "install_luacheck: $(luacheck --version | head -1)"
