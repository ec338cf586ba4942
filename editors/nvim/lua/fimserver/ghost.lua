--- Ghost text at the cursor: its remaining text, and partial acceptance.

local api = vim.api
local M = {}
local SOON_MS = 40 -- from a key to its request: keys that repeat come faster. Neovim waits 200 ms
local AUTOMATIC = 2 -- vim.lsp.protocol.InlineCompletionTriggerKind

--- Neovim's inline completion state of the current buffer. It is private: other versions may
--- lack it. An answer that comes late is fitted to the text.
---@return table?
local function completor()
  local ok, capability = pcall(require, 'vim.lsp._capability')
  local here = api.nvim_get_current_buf()
  local found = ok and vim.tbl_get(capability, 'all', 'inline_completion', 'active', here) or {}
  if not (found.hide and found.show and found.request and found.reset_timer) then return nil end
  found.handler = M.answered
  return found
end

---@param item vim.lsp.inline_completion.Item
local function is_ours(item)
  local client = vim.lsp.get_client_by_id(item.client_id)
  return client and client.name == 'fimserver' and item.range and type(item.insert_text) == 'string'
end

--- Whether `text` contains the characters of `tail` in order, so that it may replace it.
local function covers(text, tail)
  local at = 0 ---@type integer?
  for sign in tail:gmatch('%S') do
    at = at and text:find(sign, at + 1, true)
  end
  return at ~= nil
end

--- The remaining text of an item, and the text after the cursor that it replaces. `nil` if
--- something else or all of it was typed.
---@param item vim.lsp.inline_completion.Item
---@return string? text
---@return string tail
local function rest_of(item)
  local first_row, first, _, last = item.range:to_extmark()
  local cursor = api.nvim_win_get_cursor(0)
  local row, col = cursor[1] - 1, cursor[2]
  local line = api.nvim_buf_get_lines(0, first_row, first_row + 1, false)[1] or ''
  if row < first_row or #line < first or (row == first_row and col < first) then
    return nil, ''
  end
  local typed = table.concat(api.nvim_buf_get_text(0, first_row, first, row, col, {}), '\n')
  local text = vim.startswith(item.insert_text, typed) and item.insert_text:sub(#typed + 1) or ''
  local size = last - first - #(item._filter_text or '')
  local tail = api.nvim_get_current_line():sub(col + 1, col + size)
  return #tail == size and text ~= tail and covers(text, tail) and text or nil, tail
end

--- The item with another text that begins at the cursor and replaces `size` bytes after it.
---@param item vim.lsp.inline_completion.Item
---@param text string
---@param size integer
---@return vim.lsp.inline_completion.Item
local function at_cursor(item, text, size)
  local row, col = unpack(api.nvim_win_get_cursor(0))
  local function at(byte) return { line = row - 1, character = byte } end
  local range = vim.range.lsp(0, { start = at(col), ['end'] = at(col + size) }, 'utf-8')
  return vim.tbl_extend('force', item, { insert_text = text, range = range, _filter_text = '' })
end

--- Hide ghost text that no longer matches the typed text, and draw the rest at the cursor where a
--- line of it is typed. Neovim would show the old text until the next answer.
---@param ghost table
local function fit(ghost)
  local item = ghost.current
  if not item or not is_ours(item) or ghost.bufnr ~= api.nvim_get_current_buf() then return end
  local text, tail = rest_of(item)
  if not text then
    ghost:hide()
  elseif api.nvim_win_get_cursor(0)[1] > item.range:to_extmark() + 1 then
    ghost.current = at_cursor(item, text, #tail)
    ghost:show()
  end
end

--- Handle an answer as Neovim does. Text that was typed or accepted since the request may be part
--- of the suggestion.
---@param ghost table
function M.answered(ghost, ...)
  getmetatable(ghost).handler(ghost, ...)
  fit(ghost)
end

local function break_undo() vim.go.undolevels = vim.go.undolevels end

--- The piece that Neovim inserts. The rest is shown again at once.
---@param item vim.lsp.inline_completion.Item
---@param cut fun(text: string): string
---@return vim.lsp.inline_completion.Item?
local function take(item, cut)
  local text, tail = rest_of(item)
  if not text then
    return nil
  end
  local left, gone = text:sub(#cut(text) + 1), 0
  -- The part of the tail that the rest does not contain is replaced with the piece, in whole
  -- characters.
  while not covers(left, tail:sub(gone + 1)) or tail:find('^[\128-\191]', gone + 1) do
    gone = gone + 1
  end
  if vim.trim(left) == vim.trim(tail:sub(gone + 1)) then -- the rest is already in the buffer
    left, gone = '', #tail
  end
  break_undo()
  vim.schedule(function()
    break_undo()
    local ghost = left ~= '' and completor()
    if ghost then
      ghost.current = at_cursor(item, left, #tail - gone)
      ghost:show()
    end
  end)
  local piece = at_cursor(item, text:sub(1, #text - #left), gone)
  piece.command = left == '' and item.command or nil
  return piece
end

--- Accept the piece of the ghost text that `cut` returns. Another server's item is accepted in
--- Neovim's own way.
---@param cut? fun(text: string): string nil: accept all
---@return boolean
function M.accept(cut)
  local current, buf = (completor() or {}).current, api.nvim_get_current_buf()
  if not current or not is_ours(current) then
    return not cut and vim.lsp.inline_completion ~= nil and vim.lsp.inline_completion.get()
  end
  local function on_accept(item)
    return buf == api.nvim_get_current_buf() and take(item, cut or tostring) or nil
  end
  return rest_of(current) ~= nil and vim.lsp.inline_completion.get({ on_accept = on_accept })
end

--- Hide the ghost text, if there is any, and optionally tell the server that it was dismissed.
---@param tell boolean
---@return boolean
function M.hide(tell)
  local function on_accept(item)
    if tell and is_ours(item) and item.command then
      local command = vim.tbl_extend('force', item.command, { command = 'fimserver.rejected' })
      vim.lsp.get_client_by_id(item.client_id):exec_cmd(command, {}, function() end)
    end
  end
  local inline = vim.lsp.inline_completion
  return inline ~= nil and inline.get({ on_accept = on_accept })
end

--- After a key or a move of the cursor: fit the ghost text, and make the waiting request sooner,
--- unless it also goes to another server. Ours waits itself for the next key of a burst.
---@param client_id integer
function M.moved(client_id)
  local ghost = completor() or { client_state = {} }
  fit(ghost)
  local alone = ghost.client_state[client_id] and vim.tbl_count(ghost.client_state) == 1
  if alone and ghost.timer and not ghost.timer:is_closing() then
    ghost:reset_timer()
    ghost.timer = vim.defer_fn(function() -- the timer has fired; a newer key has one that runs
      if ghost.timer and ghost.timer:is_closing() then ghost:request(AUTOMATIC) end
    end, SOON_MS)
  end
end

--- Show another candidate.
---@param count integer offset from the current candidate
function M.select(count)
  return vim.lsp.inline_completion and vim.lsp.inline_completion.select({ count = count })
end

--- Request now, instead of the automatic request that is waiting.
---@param kind? integer nil: as the user asks, for several candidates
---@return boolean
function M.ask(kind)
  local ghost = completor()
  if ghost then
    ghost:reset_timer()
    ghost:request(kind or vim.lsp.protocol.InlineCompletionTriggerKind.Invoked)
  end
  return ghost ~= nil
end

--- Ask as after a key, where someone has typed and waits: nobody answered while the server started
--- or its model was loaded.
function M.ask_again()
  local is_typed = api.nvim_get_mode().mode == 'i' and vim.bo.modified
  if is_typed and not (completor() or {}).current then M.ask(AUTOMATIC) end
end

return M
