#!/usr/bin/env bash
# Unpacks Emacs 30 with lsp-mode 10 (lsp-inline-completion) from Debian's testing suite beside the system.
# Usage: install_emacs.sh [FOLDER]     then run FOLDER/emacs --batch -l FILE
name=emacs elsewhere='EMACS to an Emacs with lsp-mode 10'
. "$(dirname "$0")/unpack.sh"

works() { [ -x "$folder/emacs" ] && [ "$("$folder/emacs" --batch -l lsp-inline-completion --eval '(princ (fboundp (quote lsp-inline-completion-mode)))' 2>/dev/null)" = t ]; }

claim "${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fimserver/emacs}"
unpack emacs-nox elpa-lsp-mode
program=$root/usr/bin/emacs-nox
own "$program"
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
echo "install_$name: $("$folder/emacs" --batch --eval '(princ emacs-version)') with lsp-mode in $folder/emacs"
