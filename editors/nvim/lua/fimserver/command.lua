--- Subcommands of `:Fim`.

local server = require('fimserver.server')

local M = {}

local ROUTES = { 'auto', 'dllm', 'ar' }
local FACTS = 'reason message filter shown source route model why tokens totalMs engineMs queueMs'

---@param text string
local function say(text) vim.api.nvim_echo({ { 'fimserver: ' .. text } }, true, {}) end

--- Send a request and call `go_on` with the answer, or show why there is none.
---@param method string
---@param go_on fun(answer: table)
local function ask(method, go_on)
  local client = server.client()
  if not client then return say(server.state().message) end
  client:request(method, vim.empty_dict(), function(err, answer)
    if err then return say(err.message) end
    go_on(answer)
  end)
end

local COMMANDS = {} ---@type table<string, fun(argument?: string)>

function COMMANDS.enable()
  server.disabled = false
  vim.lsp.enable('fimserver')
  server.tell('toggle', true)
end

function COMMANDS.disable()
  server.disabled = true
  server.tell('toggle', false)
  require('fimserver.ghost').hide(false)
end

function COMMANDS.toggle()
  local off = server.disabled or vim.list_contains({ 'off', 'no_server' }, server.state().state)
  COMMANDS[off and 'enable' or 'disable']()
end

function COMMANDS.snooze(minutes)
  server.tell('snooze', tonumber(minutes) or 10)
  require('fimserver.ghost').hide(false)
end

function COMMANDS.pause(minutes) server.tell('pause', tonumber(minutes) or 60) end
function COMMANDS.resume() server.tell('pause', 0) end

function COMMANDS.route(route)
  if route and not vim.list_contains(ROUTES, route) then
    return say(('no route %s: auto, dllm or ar'):format(route))
  elseif route and not server.tell('setRoute', route) then
    return say(server.state().message)
  end
  say('route ' .. (route or server.state().setRoute or 'auto'))
end

function COMMANDS.explain()
  ask('fimserver/explain', function(answer)
    local lines = vim.iter(vim.gsplit(FACTS, ' ')):map(function(fact)
      return answer[fact] and answer[fact] ~= '' and ('%-9s %s'):format(fact, answer[fact]) or nil
    end)
    vim.lsp.util.open_floating_preview(lines:totable(), '', { border = 'rounded' })
  end)
end

function COMMANDS.stats()
  vim.cmd('botright new')
  vim.keymap.set('n', 'q', '<Cmd>bwipeout!<CR>', { buffer = true })
  vim.fn.jobstart(server.cmd('stats'), { term = true, env = vim.lsp.config.fimserver.cmd_env })
end

function COMMANDS.log()
  vim.cmd.tabnew(vim.lsp.log.get_filename())
  ask('fimserver/health', function(health)
    say(health.log == '' and 'the host keeps its log where it runs' or 'the host: ' .. health.log)
  end)
end

function COMMANDS.restart()
  server.tell('restart')
  vim.lsp.config('fimserver', {}) -- looks for the program again
  vim.lsp.enable('fimserver') -- starts the server if it has exited
end

--- Download the coder that fits this machine, in a terminal, after asking the user.
function COMMANDS.get()
  local best = server.best()
  if not best then
    return say('the program does not say which model fits: see :checkhealth fimserver')
  end
  if best.here then return say(('%s is on this machine: %s'):format(best.name, best.why)) end
  local question = ('Download %s (%s)?'):format(best.name, best.size)
  if vim.fn.confirm(question, '&Download\n&Cancel', 2) ~= 1 then return end
  vim.cmd('botright new')
  vim.fn.jobstart(server.models_cmd('get', best.name), { term = true })
end

function COMMANDS.doctor() vim.cmd.checkhealth('fimserver') end

--- Run a subcommand; without one, show the state of the server.
---@param arguments string[]
function M.run(arguments)
  vim.validate('arguments', arguments, 'table')
  local name, argument = unpack(arguments)
  if COMMANDS[name] then
    return COMMANDS[name](argument)
  elseif name then
    return say(('no :Fim %s: %s'):format(name, table.concat(M.complete('', 'Fim '), ', ')))
  end
  local now, status = server.state(), require('fimserver').status()
  local parts = { status, 'route ' .. (now.setRoute or 'auto'), now.message }
  say((table.concat(parts, ', '):gsub(', $', '')))
end

--- Complete the word at the cursor of the command line.
---@param lead string
---@param line string
---@return string[]
function M.complete(lead, line)
  local words = vim.split(line:match('Fim.*') or '', ' +')
  local choices = #words == 2 and vim.tbl_keys(COMMANDS) or words[2] == 'route' and ROUTES or {}
  choices = vim.tbl_filter(function(choice) return vim.startswith(choice, lead) end, choices)
  table.sort(choices)
  return choices
end

return M
