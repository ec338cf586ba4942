-- A plain Neovim: what is typed is what stands in the buffer, and no message ever waits for a key.
-- g:fimserver = {plugin, cmd, init_options} comes from the command line.
vim.cmd('filetype plugin indent off')
vim.o.autoindent = false
vim.o.swapfile = false
vim.o.report = 9999
vim.o.messagesopt = 'wait:0,history:500'

-- Inline completions that wait for an answer, how many were asked for, and where the last one was.
local asked, waiting, place = 0, 0, nil

local function here()
  local cursor = vim.api.nvim_win_get_cursor(0)
  return table.concat({ vim.api.nvim_get_current_buf(), vim.b.changedtick, cursor[1], cursor[2] }, ':')
end

vim.api.nvim_create_autocmd('LspRequest', {
  callback = function(event)
    local request = event.data.request
    if request.method ~= 'textDocument/inlineCompletion' then
      return
    end
    if request.type == 'pending' then
      asked, waiting, place = asked + 1, waiting + 1, here()
    elseif request.type == 'complete' then
      vim.schedule(function() -- after the answer was drawn
        waiting = waiting - 1
      end)
    end
  end,
})

function _G.asked()
  return asked
end

-- Whether something was asked after `mark`, for the text and cursor as they are, and all is answered.
function _G.settled(mark)
  return asked > mark and waiting == 0 and place == here()
end

vim.opt.runtimepath:append(vim.g.fimserver.plugin)
if vim.g.fimserver.cmd[1] then
  vim.lsp.config('fimserver', { cmd = vim.g.fimserver.cmd, init_options = vim.g.fimserver.init_options })
end

-- The mappings of the plugin's help.
local fim = require('fimserver')
vim.keymap.set('i', '<Tab>', function()
  if not fim.accept() then
    return '<Tab>'
  end
end, { expr = true })
vim.keymap.set('i', '<M-w>', fim.accept_word)
vim.keymap.set('i', '<M-l>', fim.accept_line)
vim.keymap.set('i', '<M-]>', fim.next)
vim.keymap.set('i', '<M-\\>', fim.trigger)
vim.keymap.set('i', '<C-e>', fim.dismiss)
vim.o.statusline = "%t %m%=%{v:lua.require'fimserver'.status()} "

-- The ghost text of the current buffer: {row, column in bytes, text}, or nil.
function _G.ghost()
  local namespace = vim.api.nvim_get_namespaces()['nvim.lsp.inline_completion']
  local mark = namespace and vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true })[1]
  if not mark then
    return nil
  end
  local lines = { mark[4].virt_text or {}, unpack(mark[4].virt_lines or {}) }
  for i, chunks in ipairs(lines) do
    lines[i] = vim.iter(chunks):map(function(chunk)
      return chunk[2] ~= 'ComplHintMore' and chunk[1] or '' -- which candidate it is
    end):join('')
  end
  return { mark[2], mark[3], table.concat(lines, '\n') }
end

-- The lines of the window that floats, or nil.
function _G.float()
  for _, window in ipairs(vim.api.nvim_list_wins()) do
    if vim.api.nvim_win_get_config(window).relative ~= '' then
      return vim.api.nvim_buf_get_lines(vim.api.nvim_win_get_buf(window), 0, -1, false)
    end
  end
end

-- What a person sees, one string a row.
function _G.screen()
  vim.cmd.redraw()
  local rows = {}
  for row = 1, vim.o.lines do
    local cells = {}
    for column = 1, vim.o.columns do
      cells[column] = vim.fn.screenstring(row, column)
    end
    rows[row] = table.concat(cells):gsub('%s+$', '')
  end
  return rows
end
