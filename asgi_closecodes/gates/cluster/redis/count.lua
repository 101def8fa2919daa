-- The sessions of one worker, key by key. What it says is a state, as in sync.lua; a count lives as long as its
-- worker, which says so every ttl / 3: there is no heartbeat a session.
--
-- Where the oldest session is replaced, each has a number: the time at which this server heard of it, made to grow
-- within its key whatever the clock does. The oldest loses its permit at once. Its worker is called to count, and is
-- told with every answer until it says that it has heard: a call that is lost makes that session leave later, no more.
--
-- KEYS[1]   ZSET  worker -> when it is dead; KEYS[1]:worker is the channel on which it is called
-- KEYS[2]   HASH  worker -> the number of its last call, and key:number of its sessions that were replaced
-- KEYS[3…]  HASH  worker -> count:numbers, one for each key

local WORKERS, SAID = KEYS[1], KEYS[2]
local worker, seq = ARGV[1], tonumber(ARGV[2])
local ttl, limit = tonumber(ARGV[3]), tonumber(ARGV[4])  -- ms; sessions of a key, -1 is no limit
local replaces = ARGV[5] == '1'
local heard = tonumber(ARGV[6])     -- so many names of replaced sessions follow; then count, more, numbers of each key
local FORGOTTEN = 86400  -- seconds after which a key goes that no worker speaks of; a living one does every few hours

local function words(text)
  local found = {}
  for word in string.gmatch(text or '', '[^ ,]+') do found[#found + 1] = word end
  return found
end

-- What is under a key may be somebody else's: the error names the key, which Redis' own does not.
local function first(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if string.find(answer.err, '^WRONGTYPE') then error('WRONGTYPE ' .. key, 0) end
  return redis.call(command, key, ...)  -- for its own error
end
local function checked(key, text)
  local value = tonumber(text)
  if not value or value ~= value or value < 0 or value > 2 ^ 53 then error('GARBAGE ' .. key, 0) end
  return value
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local said = words(first('HGET', SAID, worker))
local last_seq = table.remove(said, 1)
if last_seq and checked(SAID, last_seq) >= seq then return redis.error_reply('STALE a later call was here first') end
local known = last_seq and redis.call('ZSCORE', WORKERS, worker) and 1 or 0
first('ZADD', WORKERS, string.format('%.0f', now + ttl), worker)
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now)) do
  redis.call('ZREM', WORKERS, dead)
  redis.call('HDEL', SAID, dead)
end

local is_acked, is_replaced, replaced = {}, {}, {}
for index = 7, 6 + heard do is_acked[ARGV[index]] = true end
local function tell(name)
  is_replaced[name] = true
  replaced[#replaced + 1] = name
end
for _, name in ipairs(said) do
  if not is_acked[name] then tell(name) end
end

local function record(key, whose, count, numbers)
  if count > 0 then
    redis.call('HSET', key, whose, string.format('%.0f:', count) .. table.concat(numbers, ','))
    redis.call('EXPIRE', key, FORGOTTEN)
  else
    redis.call('HDEL', key, whose)
  end
end

local called = {}
local function replace(count, digest, number)  -- it is the first of its worker
  table.remove(count.numbers, 1)
  count.count, count.is_changed = count.count - 1, true
  local name = digest .. ':' .. number
  if count.worker == worker then
    tell(name)
  else
    called[count.worker] = (called[count.worker] or '') .. ' ' .. name
  end
end

local answer = {known, replaced}
for index = 3, #KEYS do
  local key, digest = KEYS[index], string.sub(KEYS[index], #WORKERS + 2)
  local argument = 6 + heard + 3 * (index - 3)
  local own = {worker = worker, count = tonumber(ARGV[argument + 1]), numbers = {}}
  local more = tonumber(ARGV[argument + 2])
  local all, total, numbered, highest = {own}, 0, 0, now - 1
  for _, number in ipairs(words(ARGV[argument + 3])) do
    if is_replaced[digest .. ':' .. number] then
      own.count = own.count - 1
    else
      table.insert(own.numbers, number)
    end
  end
  local records = first('HGETALL', key)
  for field = 1, #records, 2 do
    if records[field] == worker then  -- said anew
    elseif redis.call('ZSCORE', WORKERS, records[field]) then
      local its_count, its_numbers = string.match(records[field + 1], '(%d+):(.*)')
      table.insert(all, {worker = records[field], count = checked(key, its_count), numbers = words(its_numbers)})
    else
      redis.call('HDEL', key, records[field])
    end
  end
  for _, count in ipairs(all) do
    for _, number in ipairs(count.numbers) do highest = math.max(highest, checked(key, number)) end
  end
  local first = highest + 1
  local function number_all()
    for number = highest + 1, highest + own.count - #own.numbers do
      table.insert(own.numbers, string.format('%.0f', number))
      highest = number
    end
  end
  if replaces then number_all() end
  for _, count in ipairs(all) do total, numbered = total + count.count, numbered + #count.numbers end

  local admitted = more
  if limit >= 0 and not replaces then
    admitted = math.max(math.min(more, limit - total), 0)
  elseif limit >= 0 then
    admitted = math.max(math.min(more, limit - (total - numbered)), 0)
    for _ = 1, admitted > 0 and total + admitted - limit or 0 do
      local oldest
      for _, count in ipairs(all) do
        if count.numbers[1] and not (oldest and tonumber(oldest.numbers[1]) <= tonumber(count.numbers[1])) then
          oldest = count
        end
      end
      replace(oldest, digest, oldest.numbers[1])
    end
  end
  own.count = own.count + admitted
  if replaces then number_all() end
  record(key, worker, own.count, own.numbers)
  for _, count in ipairs(all) do
    if count.is_changed and count ~= own then record(key, count.worker, count.count, count.numbers) end
  end
  answer[2 * index - 3], answer[2 * index - 2] = admitted, replaces and first or 0
end

if ttl > 0 then redis.call('HSET', SAID, worker, string.format('%.0f ', seq) .. table.concat(replaced, ' ')) end
for other, names in pairs(called) do
  redis.call('HSET', SAID, other, (redis.call('HGET', SAID, other) or '0') .. names)
  redis.pcall('PUBLISH', WORKERS .. ':' .. other, '')
end
return answer
