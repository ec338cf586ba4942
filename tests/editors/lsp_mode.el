;;; lsp_mode.el --- Knows how to try a language server in lsp-mode, once. Knows nothing of what to expect.  -*- lexical-binding: t; -*-

;; The environment says what to run: SERVER, a JSON list; PLACES, a JSON list of file contents whose end is the cursor.
;; Prints one line of JSON: the first place with ghost text of two characters or more, and what became of it.

(setq native-comp-enable-subr-trampolines nil)
;; Debian's packages have no autoloads for these.
(dolist (feature '(lsp-mode lsp-lens lsp-modeline lsp-completion lsp-diagnostics lsp-icons lsp-headerline
                            lsp-semantic-tokens lsp-inline-completion))
  (require feature))
(setq lsp-auto-guess-root t
      lsp-enable-snippet nil
      lsp-enable-file-watchers nil
      lsp-headerline-breadcrumb-enable nil
      lsp-restart 'ignore
      lsp-session-file (expand-file-name "session"))

(lsp-register-client
 (make-lsp-client :new-connection (lsp-stdio-connection (append (json-parse-string (getenv "SERVER")) nil))
                  :activation-fn (lsp-activate-on "python")
                  :server-id 'fimserver
                  :add-on? t))

(defun try-wait (what seconds ready)
  "Poll READY for SECONDS and return what it gives, or fail for WHAT."
  (let ((end (+ (float-time) seconds)) value)
    (while (not (setq value (funcall ready)))
      (when (> (float-time) end) (error "Waited %d s for %s" seconds what))
      (accept-process-output nil 0.02))
    value))

(defun try-ask (command)
  "What the server answers to COMMAND."
  (lsp-request "workspace/executeCommand" (list :command command :arguments [])))

(defun try-open (number content)
  "Edit a new file NUMBER with CONTENT, the cursor at its end, once the server is ready."
  (let ((file (expand-file-name (format "place%d.py" number))))
    (with-temp-file file (insert content))
    (find-file file)
    (python-mode)
    (goto-char (point-max))
    (lsp)
    (try-wait "the server to be initialized" 60
              (lambda () (and (lsp-workspaces)
                              (eq 'initialized (lsp--workspace-status (car (lsp-workspaces)))))))
    (try-wait "the model to be loaded" 90
              (lambda ()
                (lsp-inline-completion-display 'implicit)
                (not (equal "loading" (gethash "reason" (try-ask "fimserver.explain"))))))))

(defun try-ghost ()
  "The ghost text that is on the screen, if it is worth accepting."
  (when (lsp-inline-completion--active-p)
    (let ((text (lsp-get (elt lsp-inline-completion--items 0) :insertText)))
      (and (> (length text) 1) text))))

(lsp-workspace-folders-add default-directory)
(let ((places (append (json-parse-string (getenv "PLACES")) nil)) (number 0) ghost before)
  (while (and places (not ghost))
    (try-open number (pop places))
    (setq number (1+ number)
          before (buffer-string)
          ghost (try-ghost)))
  (unless ghost (error "The model said nothing worth accepting at any place"))
  (let* ((overlay lsp-inline-completion--overlay)
         (drawn (concat (overlay-get overlay 'display) (overlay-get overlay 'after-string)))
         (mode lsp-inline-completion-mode))
    (lsp-inline-completion-accept)
    (princ (concat (json-encode `((mode . ,mode) (ghost . ,ghost) (drawn . ,(substring-no-properties drawn))
                                  (before . ,(substring-no-properties before))
                                  (after . ,(buffer-substring-no-properties (point-min) (point-max)))
                                  (stats . ,(try-ask "fimserver.stats"))))
                   "\n"))))
(dolist (buffer (buffer-list)) (with-current-buffer buffer (set-buffer-modified-p nil)))
;;; lsp_mode.el ends here
