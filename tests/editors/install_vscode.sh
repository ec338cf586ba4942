#!/usr/bin/env bash
# Installs VS Code as code-server, with a node of its own, into one folder, and checks, builds and packs our extension.
# Nothing is compiled and nothing outside the folder is changed; Chromium comes from tests/browser/install_chromium.sh.
# Usage: install_vscode.sh [FOLDER]     needs npm
set -euo pipefail

version=4.139.1 # of code-server; VS Code 1.139.1
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fimserver/vscode}
extension=$(cd "$(dirname "$0")/../../editors/vscode" && pwd)

fail() { echo "install_vscode: $*" >&2; exit 1; }
quietly() { "$@" >>"$log" 2>&1 || fail "cannot run: $* (in $PWD), see $log"; }

command -v npm >/dev/null || fail "needs npm"
command -v flock >/dev/null || fail "needs flock"
mkdir -p "$folder" || fail "cannot write $folder"
folder=$(cd "$folder" && pwd)
log=$folder/install.log
exec 9>"$folder/.lock"
flock -w 600 9 || fail "another install holds $folder/.lock for 10 minutes"
: >"$log"

# Without --ignore-scripts native modules would be compiled for minutes; VS Code starts without them.
install=(npm install --no-audit --no-fund --no-save)
node=$folder/node/node_modules/node/bin
server=$folder/node_modules/code-server
[ -x "$node/node" ] || quietly "${install[@]}" --prefix "$folder/node" node@24
export PATH=$node:$PATH
if [ "$(cat "$folder/installed" 2>/dev/null)" != $version ]; then
    quietly "${install[@]}" --ignore-scripts --prefix "$folder" code-server@$version
    for part in "$server/lib/vscode" "$server/lib/vscode/extensions"; do
        cd "$part" && quietly npm install --no-audit --no-fund --omit=dev --ignore-scripts
    done
    echo $version >"$folder/installed"
fi

cd "$extension"
quietly npm ci --no-audit --no-fund --ignore-scripts
for step in lint types test; do quietly npm run $step; done
npm run package >"$log.package" 2>&1 || fail "cannot pack the extension, see $log.package"
! grep -q WARNING "$log.package" || fail "vsce warns, see $log.package"
echo "install_vscode: code-server $version in $folder, $(du -h fimserver.vsix | cut -f1) of extension"
