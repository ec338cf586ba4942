--- `:checkhealth fimserver`: finds out why there is no ghost text.

local health = vim.health
local server = require('fimserver.server')

local M = {}

local INSTALL = 'run `make try` in a checkout of fimserver; vim.g.fimserver_command may name it'
local OTHERS = { 'copilot', 'supermaven', 'codeium', 'minuet', 'llama', 'cmp', 'blink' }

---@param fine any
---@param wrong string the warning if it is not
---@param advice string
local function expect(fine, wrong, advice)
  if not fine then
    health.warn(wrong, { advice })
  end
end

---@return string? # the version of the program
local function check_program()
  local cmd, missing = server.cmd('--version'), server.missing()
  if missing then
    return health.error(missing, { INSTALL })
  end
  local ok, out = pcall(vim.system, cmd, { text = true, timeout = 5000 })
  local version = ok and out:wait().stdout:match('version (%S+)') or nil
  expect(version, cmd[1] .. ' does not say its version', INSTALL)
  health.info(('%s, version %s'):format(vim.fn.exepath(cmd[1]), version or 'unknown'))
  return version
end

---@param client vim.lsp.Client
---@param buf integer
local function check_buffer(client, buf)
  local name, bo = vim.fs.basename(vim.api.nvim_buf_get_name(buf)), vim.bo[buf]
  local why = (name == '' or bo.buftype ~= '') and 'it is no file'
    or bo.filetype == '' and 'it has no filetype, :set one'
    or 'open it again with :edit'
  local attached = client.attached_buffers[buf]
  health.info(attached and 'attached to ' .. name or 'not attached where you come from: ' .. why)
end

---@param client vim.lsp.Client
---@param version? string
local function check_host(client, version)
  local start = vim.uv.hrtime()
  local echo = client:request_sync('fimserver/explain', vim.empty_dict(), 2000)
  local echo_ms = (vim.uv.hrtime() - start) / 1e6
  local answer = echo and client:request_sync('fimserver/health', vim.empty_dict(), 8000)
  if not answer then
    return health.error('the server does not answer', { 'run :lsp restart, or see :Fim log' })
  elseif not answer.result then
    return health.error('the server is older than the plugin', { INSTALL })
  end
  local it = answer.result
  expect(not version or it.version == version, 'the server has another version', 'run :lsp restart')
  expect(it.enabled, 'completions are switched off', 'run :Fim enable')
  for _, problem in ipairs(it.settings or {}) do
    expect(false, 'setting ' .. problem, 'see :help fimserver-settings')
  end
  if it.state ~= 'ready' then
    local advice = 'wait while it loads; else run :Fim restart, or see :Fim log'
    return expect(false, ('the model is not ready, %s: %s'):format(it.state, it.message), advice)
  end
  local times = '%s answers by route %s: to the server and back %.1f ms, to the host %.1f ms'
  health.ok(times:format(it.model, it.route, echo_ms, it.roundTripMs))
end

--- Name the coder that fits this machine, with its size. Downloads nothing.
local function check_model()
  local best = server.best()
  if best and best.here then
    health.info(('the best coder for this machine is here: %s'):format(best.name))
  elseif best then
    local offer = 'a better model for this machine: %s, %s to download; '
      .. 'run :Fim get, or %s in a shell'
    health.info(offer:format(best.name, best.size, best.command))
  end
end

---@param client? vim.lsp.Client
---@param buf integer
local function check_ghost(client, buf)
  local inline, advice = vim.lsp.inline_completion, 'use CTRL-X CTRL-O, or Neovim 0.12'
  if not inline then
    return expect(false, 'no ghost text here, only the completion menu', advice)
  end
  local on = not client or not client.attached_buffers[buf]
    or inline.is_enabled({ bufnr = buf, client_id = client.id })
  expect(on, 'inline completion is off', 'run :lua vim.lsp.inline_completion.enable(true)')
  local all = vim.lsp.get_clients({ bufnr = buf, method = 'textDocument/inlineCompletion' })
  for _, other in ipairs(all) do
    expect(other.name == 'fimserver', other.name .. ' shows ghost text too', 'disable one of them')
  end
end

---@param buf integer
local function check_tab(buf)
  local function find() return vim.fn.maparg('<Tab>', 'i', false, true) end
  local tab = vim.api.nvim_buf_call(buf, find)
  local who = tab.desc or tab.rhs or tab.callback and debug.getinfo(tab.callback, 'S').source or ''
  local other = vim.iter(OTHERS):find(function(name) return who:lower():find(name, 1, true) end)
  expect(not other, 'another plugin has <Tab>', 'see :help fimserver-mappings for another key')
  health.info(('<Tab> in insert mode: %s'):format(who == '' and 'not mapped' or who))
end

--- Run the checks of `:checkhealth fimserver`. Every wait has a limit.
function M.check()
  health.start('fimserver')
  health.info('Neovim ' .. tostring(vim.version()))
  local version, client, buf = check_program(), server.client(), vim.fn.bufnr('#')
  buf = vim.api.nvim_buf_is_valid(buf) and buf or vim.api.nvim_get_current_buf()
  if client then
    check_buffer(client, buf)
    check_host(client, version)
  end
  if version then check_model() end
  expect(client or not version, 'no server runs', 'open a file, or run :Fim enable')
  check_ghost(client, buf)
  check_tab(buf)
end

return M
