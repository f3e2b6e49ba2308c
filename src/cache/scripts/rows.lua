-- django-cacheops: what one image of a row makes stale. KEYS[1]: the table's set of schemes, each a list of columns that some query had
-- conditions on; ARGV: the prefix, the table, the row as JSON, '1' where the sets are versions (CACHEOPS_INSIDEOUT).
-- As cacheops/lua/invalidate.lua 7.2: values are what Lua's tostring() makes of them, on this server as in the client's own script.
local row = cjson.decode(ARGV[3])
local sets = {}
for _, scheme in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local parts = {}
  for column in string.gmatch(scheme, '[^,]+') do
    table.insert(parts, column .. '=' .. tostring(row[column]))
  end
  table.insert(sets, ARGV[1] .. 'conj:' .. ARGV[2] .. ':' .. table.concat(parts, '&'))
end
local large = {}
for _, set in ipairs(sets) do
  if ARGV[4] ~= '1' and redis.call('SCARD', set) > 500 then
    table.insert(large, set)
  else
    if ARGV[4] ~= '1' then
      local members = redis.call('SMEMBERS', set)
      if #members > 0 then redis.call('UNLINK', unpack(members)) end
    end
    redis.call('UNLINK', set)
  end
end
-- These are done slice by slice.
return large
