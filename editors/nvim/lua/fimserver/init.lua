--- Public functions, for mappings, statuslines and scripts.

local ghost = require('fimserver.ghost')
local server = require('fimserver.server')

local M = {}

--- Insert the ghost text. Where the answer is false, a mapping falls back to its key.
---@return boolean
function M.accept() return ghost.accept() end

--- Insert the next word, or the signs between words, with the blanks before. The rest stays.
---@return boolean
function M.accept_word()
  return ghost.accept(function(text)
    local piece = vim.fn.matchstr(text, [[^\_s*\%(\k\+\|\%(\k\@![^ \t\n]\)\+\)]])
    return piece ~= '' and piece or text
  end)
end

--- Insert up to the end of the line, or where the cursor is there, of the next. The rest stays.
---@return boolean
function M.accept_line()
  return ghost.accept(function(text) return text:match('^\n*[^\n]+') or text end)
end

--- Show the next candidate.
function M.next() ghost.select(1) end

--- Show the candidate before.
function M.prev() ghost.select(-1) end

--- Hide the ghost text, if there is some; the server does not offer it there again.
---@return boolean
function M.dismiss() return ghost.hide(true) end

--- Ask now, for up to three candidates, if there is a server to ask.
---@return boolean
function M.trigger() return ghost.ask() end

--- Make no suggestions for a while, unless they are asked for.
---@param minutes? number 10 by default; 0 ends it
function M.snooze(minutes)
  require('fimserver.command').run({ 'snooze', tostring(minutes or 10) })
end

--- What is known of the server; `User FimserverStatus` says when it changes.
---@return fimserver.State
function M.state() return server.state() end

--- For a statusline: `fim ar 12 ms`, `fim loading`, `fim off`.
---@return string
function M.status()
  local now = server.state()
  local took = now.state == 'ready' and now.route and ('%s %d ms'):format(now.route, now.latencyMs)
  return 'fim ' .. (took or now.state:gsub('_', ' '))
end

return M
