--- Loaded at start: enables the server and defines `:Fim`.

if vim.g.loaded_fimserver or vim.fn.has('nvim-0.11') == 0 then
  return
end
vim.g.loaded_fimserver = true

vim.api.nvim_create_autocmd('LspAttach', {
  group = vim.api.nvim_create_augroup('fimserver', {}),
  callback = function(event)
    local client = vim.lsp.get_client_by_id(event.data.client_id)
    if client and client.name == 'fimserver' then
      require('fimserver.server').attached(client, event.buf)
    end
  end,
})

vim.api.nvim_create_user_command('Fim', function(command)
  require('fimserver.command').run(command.fargs)
end, {
  nargs = '*',
  complete = function(...) return require('fimserver.command').complete(...) end,
})

if not vim.list_contains({ false, 0 }, vim.g.fimserver_enabled) then
  vim.lsp.enable('fimserver')
  local function warn()
    local missing = require('fimserver.server').missing()
    if missing then vim.notify_once('fimserver: ' .. missing, vim.log.levels.WARN) end
  end
  vim.api.nvim_create_autocmd('FileType', { once = true, callback = vim.schedule_wrap(warn) })
end
