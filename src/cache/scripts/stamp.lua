-- KEYS[1]: a string, or a hash; ARGV: the stamp, milliseconds to live (0: none), the oldest stamp that any record needs (0: all), then the
-- value, or fields and values of which the first holds the stamp. A stamp is never lowered: what was stored between the two would come
-- back to life.
local isHash = #ARGV > 4
local old
if isHash then old = redis.call('HGET', KEYS[1], ARGV[4]) else old = redis.call('GET', KEYS[1]) end
if old then
  local stamp = tonumber(old)
  -- A float as Python pickles it: G and eight bytes.
  local at = string.find(old, 'G........%.$')
  if at then stamp = struct.unpack('>d', string.sub(old, at + 1, at + 8)) end
  -- Within a text: what stands where our own stamp does. Anything else is overwritten.
  local head = string.match(ARGV[isHash and 5 or 4], '^%D*')
  if #head > 0 and string.sub(old, 1, #head) == head then
    stamp = tonumber(string.match(old, '^[%d.eE+]+', #head + 1))
  end
  if stamp and stamp >= tonumber(ARGV[1]) then
    local left = redis.call('PTTL', KEYS[1])
    if left >= 0 and left < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
    return 0
  end
end
if isHash then redis.call('HSET', KEYS[1], unpack(ARGV, 4)) else redis.call('SET', KEYS[1], ARGV[4]) end
if ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if isHash and ARGV[3] ~= '0' then
  -- Nobody else drops old fields. Each write adds one and looks at three: those that are too old stay a minority.
  local some = redis.call('HRANDFIELD', KEYS[1], 3, 'WITHVALUES')
  for at = 1, #some, 2 do
    local stamp = tonumber(some[at + 1])
    if stamp and stamp < tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], some[at]) end
  end
end
return 1
