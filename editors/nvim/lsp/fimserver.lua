--- Configuration of the language server: its command, and the buffers that it attaches to.

local server = require('fimserver.server')

---@type vim.lsp.Config
return {
  cmd = server.default_cmd(),
  root_markers = { '.git' },
  root_dir = function(buf, on_dir) -- files only: no help pages, terminals or unnamed buffers
    local name = vim.api.nvim_buf_get_name(buf)
    if vim.bo[buf].buftype == '' and name ~= '' and not name:find('^%a[%w+.-]+:/') then
      on_dir(vim.fs.root(buf, vim.lsp.config.fimserver.root_markers or {}))
    end
  end,
  init_options = { status = true },
  handlers = { ['fimserver/status'] = server.heard },
  -- After Neovim has removed the client.
  on_exit = function() vim.defer_fn(server.announce, 100) end,
}
