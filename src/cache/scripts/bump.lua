-- KEYS[1]: a number as PHP's serialize() or igbinary writes it; nothing is 0. What is written can be read under either.
local old = redis.call('GET', KEYS[1])
local number = 0
if old then
  number = tonumber(string.match(old, '^i:(%-?%d+);$'))
  local width = ({['\6'] = 1, ['\8'] = 2, ['\10'] = 4})[string.sub(old, 5, 5)]
  if not number and string.sub(old, 1, 4) == '\0\0\0\2' and width then
    number = 0
    for at = 6, 5 + width do number = number * 256 + string.byte(old, at) end
  end
  -- Something else, or the random number of a later release: one that no counter has reached.
  if not number or number < 0 or number > 2 ^ 52 then number = tonumber(redis.call('TIME')[1]) end
end
redis.call('SET', KEYS[1], 'i:' .. string.format('%d', number + 1) .. ';')
return 1
