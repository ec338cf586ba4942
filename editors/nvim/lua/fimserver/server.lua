--- The server: its program, its clients, and their last status.

local M = { disabled = false } -- by the user, for this session

---@class fimserver.State `fimserver/status`, or the plugin's own state without a server.
---@field kind 'Normal'|'Inactive'|'Warning'|'Error'
---@field state string `ready`, or the code of a reason
---@field message string a sentence, empty when ready
---@field setRoute? 'auto'|'dllm'|'ar'
---@field route? 'dllm'|'ar' route of the last answer, which took `latencyMs`
---@field latencyMs? integer

local states = {} ---@type table<integer, fimserver.State> by client

---@return string[] # the command if `vim.lsp.config` has none
function M.default_cmd()
  local file = assert(vim.uv.fs_realpath(debug.getinfo(1, 'S').source:sub(2)))
  local own = vim.fs.normalize(file .. '/../../../../../.venv/bin/fimserver') -- of this checkout
  local is_own = vim.fn.executable('fimserver') == 0 and vim.fn.executable(own) == 1
  local cmd = vim.g.fimserver_command or (is_own and own or 'fimserver')
  local words = vim.iter({ cmd }):flatten():totable()
  words[1] = vim.fs.normalize(words[1])
  return words
end

--- The command with a verb before the options.
---@param verb string
---@return string[]
function M.cmd(verb)
  local cmd = vim.lsp.config.fimserver.cmd
  local words = type(cmd) == 'table' and vim.list_slice(cmd) or M.default_cmd()
  local at = vim.iter(ipairs(words)):find(function(_, word) return vim.startswith(word, '--') end)
  table.insert(words, at or #words + 1, verb)
  return words
end

---@class fimserver.Advice Output of `fimserver models best` for a route.
---@field route 'dllm'|'ar'
---@field name string
---@field here boolean whether it is on this machine
---@field size string
---@field why string
---@field command string shell command that downloads it

--- The command with a verb of `models`, without options.
---@param ... string
---@return string[]
function M.models_cmd(...)
  local cmd = M.cmd('models')
  local at = vim.iter(ipairs(cmd)):find(function(_, word) return vim.startswith(word, '--') end)
  return vim.list_extend(vim.list_slice(cmd, 1, at and at - 1 or #cmd), { ... })
end

--- The best coder for this machine; nil with a remote host or if the program does not answer.
---@return fimserver.Advice?
function M.best()
  if vim.list_contains(M.cmd('models'), '--connect') then return nil end
  local ok, run = pcall(vim.system, M.models_cmd('best', '--json'), { text = true, timeout = 5000 })
  local out = ok and run:wait() or { code = 1 }
  local read, all = pcall(vim.json.decode, out.code == 0 and out.stdout or '')
  local is_coder = function(advice) return advice.route == 'ar' end
  return read and vim.iter(all):find(is_coder) or nil
end

---@return string? # why the program cannot be started, or nil
function M.missing()
  local cmd = vim.lsp.config.fimserver.cmd
  local missing = type(cmd) == 'table' and vim.fn.executable(cmd[1]) == 0
  return missing and ('no program %s: see :checkhealth fimserver'):format(cmd[1]) or nil
end

---@return vim.lsp.Client? # the current buffer's client, else any
function M.client()
  local here = vim.lsp.get_clients({ name = 'fimserver', bufnr = 0 })[1]
  return here or vim.lsp.get_clients({ name = 'fimserver' })[1]
end

---@return fimserver.State
function M.state()
  local client = M.client()
  local missing = not client and M.missing()
  local idle = { kind = 'Inactive', state = 'no_server', message = 'no file has asked for it' }
  local dead = missing and { kind = 'Error', state = 'no_program', message = missing }
  local fresh = { kind = 'Warning', state = 'starting', message = 'the server has just started' }
  return client and (states[client.id] or fresh) or dead or idle
end

--- Trigger the autocommand `User FimserverStatus`.
function M.announce()
  local event = { pattern = 'FimserverStatus', data = M.state(), modeline = false }
  vim.api.nvim_exec_autocmds('User', event)
end

--- Handle `fimserver/status`.
---@type lsp.Handler
function M.heard(_, state, context)
  local before = states[context.client_id] or { kind = 'Warning' }
  states[context.client_id] = state
  M.announce()
  if state.state == 'ready' and before.kind == 'Warning' then
    require('fimserver.ghost').ask_again()
  end
end

--- Enable ghost text in a buffer, or the completion menu if Neovim has no ghost text.
---@param client vim.lsp.Client
---@param buf integer
function M.attached(client, buf)
  local group = vim.api.nvim_create_augroup('fimserver.' .. buf, {})
  local function tell_cursor() -- the server prefills the prompt where the cursor rests
    local place = vim.lsp.util.make_position_params(0, client.offset_encoding)
    client:notify('textDocument/didFocus', place)
  end
  vim.api.nvim_create_autocmd({ 'BufEnter', 'CursorMoved' }, {
    group = group,
    buffer = buf,
    callback = tell_cursor,
  })
  if buf == vim.api.nvim_get_current_buf() then tell_cursor() end
  if vim.lsp.inline_completion then
    vim.lsp.inline_completion.enable(true, { bufnr = buf })
    vim.api.nvim_create_autocmd('CursorMovedI', {
      group = group,
      buffer = buf,
      callback = vim.schedule_wrap(function() require('fimserver.ghost').moved(client.id) end),
    })
  else
    vim.lsp.completion.enable(true, client.id, buf)
  end
  if M.disabled then
    M.tell('toggle', false)
  end
end

--- Run one of the server's commands in all clients. Returns whether there are any.
---@param command string without `fimserver.`
---@param ... any its arguments
---@return boolean
function M.tell(command, ...)
  local clients = vim.lsp.get_clients({ name = 'fimserver' })
  local name = 'fimserver.' .. command
  for _, client in ipairs(clients) do
    client:exec_cmd({ title = name, command = name, arguments = { ... } }, {}, function() end)
  end
  return #clients > 0
end

return M
