#!/usr/bin/env bash
# Installs Debian's Chromium and a font for the tests of the page, as root. Playwright itself comes with the test extra,
# and brings the node that drives the browser; its own browsers are not downloaded.
# Usage: install_chromium.sh     elsewhere than on Debian, name a Chromium in CHROMIUM
set -euo pipefail

fail() { echo "install_chromium: $*" >&2; exit 1; }
works() { command -v "${CHROMIUM:-chromium}" >/dev/null && "${CHROMIUM:-chromium}" --version --no-sandbox >/dev/null 2>&1; }

if works; then echo "install_chromium: $(command -v "${CHROMIUM:-chromium}") is there"; exit 0; fi
command -v apt-get >/dev/null || fail "needs apt-get: this works on Debian only; elsewhere set CHROMIUM to a Chromium"
[ "$(id -u)" = 0 ] || fail "run it as root, or set CHROMIUM to a Chromium"
log=$(mktemp)
options=(-o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -qq)
apt-get "${options[@]}" update >"$log" 2>&1 || fail "apt-get update failed, see $log"
DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -y --no-install-recommends chromium fonts-dejavu-core >>"$log" 2>&1 ||
    fail "cannot install chromium, see $log"
works || fail "chromium does not start: run chromium --version --no-sandbox to see"
rm -f "$log"
echo "install_chromium: $(chromium --version --no-sandbox)"
