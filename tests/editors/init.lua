-- A plain Neovim: what is typed is what stands in the buffer, and no message ever waits for a key.
-- g:fimserver = {cmd, init_options} comes from the command line.
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

vim.lsp.config('fimserver', {
  cmd = vim.g.fimserver.cmd,
  filetypes = { 'python', 'env', 'sh', 'conf', 'text', 'markdown', 'make' },
  root_markers = { '.git', 'pyproject.toml' },
  init_options = vim.g.fimserver.init_options,
})
vim.lsp.enable('fimserver')
vim.lsp.inline_completion.enable(true)

vim.keymap.set('i', '<Tab>', function()
  if not vim.lsp.inline_completion.get() then
    return '<Tab>'
  end
end, { expr = true })

-- The ghost text of the current buffer: {row, column in bytes, text}, or nil.
function _G.ghost()
  local namespace = vim.api.nvim_get_namespaces()['nvim.lsp.inline_completion']
  local mark = vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true })[1]
  if not mark then
    return nil
  end
  local lines = { mark[4].virt_text or {}, unpack(mark[4].virt_lines or {}) }
  for i, chunks in ipairs(lines) do
    lines[i] = vim.iter(chunks):map(function(chunk)
      return chunk[1]
    end):join('')
  end
  return { mark[2], mark[3], table.concat(lines, '\n') }
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
