#!/usr/bin/env bash
# Unpacks Neovim with vim.lsp.inline_completion (0.12 or newer) from Debian's testing suite beside the system.
# Usage: install_neovim.sh [FOLDER]     then run FOLDER/nvim
name=nvim elsewhere='NVIM to a Neovim 0.12'
. "$(dirname "$0")/unpack.sh"

works() { [ -x "$folder/nvim" ] && [ "$("$folder/nvim" --clean --headless +'lua io.write(tostring(vim.lsp.inline_completion ~= nil))' +qa 2>&1)" = true ]; }

claim "${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fimserver/neovim}"
unpack neovim
own "$root/usr/bin/nvim"
cat >"$folder/nvim" <<WRAPPER
#!/bin/sh
export VIM='$root/usr/share/nvim' VIMRUNTIME='$root/usr/share/nvim/runtime'
export LUA_PATH='$root/usr/share/lua/5.1/?.lua;;' LUA_CPATH='$lib/lua/5.1/?.so;;'
exec '$root/usr/bin/nvim' --cmd "let &runtimepath .= ',$root/usr/lib/nvim'" "\$@"
WRAPPER
chmod +x "$folder/nvim"
works || fail "the Neovim of $suite does not start or has no vim.lsp.inline_completion: run $folder/nvim to see"
echo "install_$name: $("$folder/nvim" --version | head -1) in $folder/nvim"
