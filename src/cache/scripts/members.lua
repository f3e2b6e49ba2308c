-- One slice of the set of a tag. KEYS[1]: the set; ARGV: cursor, 'SSCAN' or 'ZSCAN', members per slice, what becomes of the links
-- ('drop', 'gone' or 'keep'; 'list': the records are on other nodes, and the members are returned behind the cursor), the time in seconds, what a member looks like, the head of the key that lists a record's tags and that of
-- a tag's set (both empty: there is none), then heads and tails of the records of a member. Returns the next cursor.
-- Records go before links: a script that fails half-way must leave the links. Only whole members are taken from the set: a rank or a pop
-- would lose those that come and go meanwhile.
local found = redis.call(ARGV[2], KEYS[1], ARGV[1], 'COUNT', ARGV[3])
local sorted = ARGV[2] == 'ZSCAN'
local list = found[2]
local members = {}
for i = 1, #list, (sorted and 2 or 1) do
  local member = list[i]
  -- phpredis serializes and compresses members, too, if it is told to.
  local foreign = string.find(member, '^s:%d+:".*";$') or not string.find(member, ARGV[6])
  if ARGV[6] ~= '' and foreign then
    return redis.error_reply('FOREIGN members of ' .. KEYS[1] .. ' are not what this client writes')
  end
  local gone = 0
  if ARGV[4] == 'list' then
    table.insert(members, member)
  else
    for at = 9, #ARGV, 2 do
      gone = gone + redis.call('UNLINK', ARGV[at] .. member .. ARGV[at + 1])
    end
  end
  if ARGV[7] ~= '' and ARGV[4] ~= 'list' then
    -- The client keeps both directions: half of them left behind would make records that no tag reaches.
    -- A key of another type must not hold up the rest.
    for _, tag in ipairs(redis.pcall('SMEMBERS', ARGV[7] .. member)) do
      redis.pcall('SREM', ARGV[8] .. tag, member)
    end
    redis.call('UNLINK', ARGV[7] .. member)
  end
  local expired = sorted and tonumber(list[i + 1]) >= 0 and tonumber(list[i + 1]) < tonumber(ARGV[5])
  if ARGV[4] == 'drop' or (ARGV[4] == 'gone' and (gone > 0 or expired)) then
    redis.call(sorted and 'ZREM' or 'SREM', KEYS[1], member)
  end
end
if ARGV[4] == 'list' then return {found[1], members} end
return found[1]
