--- Public functions, for mappings, statuslines and scripts.

local ghost = require('fimserver.ghost')
local server = require('fimserver.server')

local M = {}

--- Accept the ghost text. Returns false if there is none, so that a mapping can fall back to its
--- key.
---@return boolean
function M.accept() return ghost.accept() end

--- Accept the next word or run of punctuation, with the blanks before it. The rest stays.
---@return boolean
function M.accept_word()
  return ghost.accept(function(text)
    local piece = vim.fn.matchstr(text, [[^\_s*\%(\k\+\|\%(\k\@![^ \t\n]\)\+\)]])
    return piece ~= '' and piece or text
  end)
end

--- Accept up to the end of the line, or of the next line if the cursor is at the end. The rest
--- stays.
---@return boolean
function M.accept_line()
  return ghost.accept(function(text) return text:match('^\n*[^\n]+') or text end)
end

--- Show the next candidate.
function M.next() ghost.select(1) end

--- Show the previous candidate.
function M.prev() ghost.select(-1) end

--- Dismiss the ghost text, if there is any; the server does not suggest it there again.
---@return boolean
function M.dismiss() return ghost.hide(true) end

--- Request up to three candidates now. Returns false if no server is attached.
---@return boolean
function M.trigger() return ghost.ask() end

--- Make no automatic suggestions for a while.
---@param minutes? number 10 by default; 0 ends it
function M.snooze(minutes)
  require('fimserver.command').run({ 'snooze', tostring(minutes or 10) })
end

--- Last known state of the server. The autocommand `User FimserverStatus` reports changes.
---@return fimserver.State
function M.state() return server.state() end

--- Text for a statusline: `fim ar 12 ms`, `fim loading`, `fim off`.
---@return string
function M.status()
  local now = server.state()
  local took = now.state == 'ready' and now.route and ('%s %d ms'):format(now.route, now.latencyMs)
  return 'fim ' .. (took or now.state:gsub('_', ' '))
end

return M
