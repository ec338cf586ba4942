;;; eglot.el --- Knows how to connect a language server to eglot, once. Knows nothing of what to expect.  -*- lexical-binding: t; -*-

;; SERVER in the environment is a JSON list. Prints one line of JSON: whether the buffer is managed, and its menu.

(setq native-comp-enable-subr-trampolines nil)
(require 'eglot)
(setq eglot-sync-connect 60)
(add-to-list 'eglot-server-programs (cons 'python-mode (append (json-parse-string (getenv "SERVER")) nil)))

(defun try-menu ()
  "What completion at point offers."
  (let ((found (run-hook-wrapped 'completion-at-point-functions #'completion--capf-wrapper 'all)))
    (and found (all-completions "" (nth 3 found)))))

(let ((end (+ (float-time) 90)) (file (expand-file-name "menu.py")) menu)
  (with-temp-file file (insert "items = [1, 2, 3]\nfor item in items:\n    print("))
  (find-file file)
  (python-mode)
  (goto-char (point-max))
  (call-interactively 'eglot)
  (while (and (not (setq menu (try-menu))) (< (float-time) end)) (accept-process-output nil 0.1))
  (princ (concat (json-encode `((managed . ,(and (eglot-managed-p) t)) (menu . ,(vconcat (mapcar #'substring-no-properties menu))))) "\n"))
  (set-buffer-modified-p nil)
  (eglot-shutdown (eglot-current-server)))
;;; eglot.el ends here
