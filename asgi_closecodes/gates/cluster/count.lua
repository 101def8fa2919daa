-- The sessions of one worker, key by key. What it says is a state, as in sync.lua; a count lives as long as its
-- worker, which says so every ttl / 3: there is no heartbeat a session.
--
-- KEYS[1]   ZSET  worker -> when it is dead
-- KEYS[2…]  HASH  worker -> count:seq, one for each key

local worker, seq = ARGV[1], tonumber(ARGV[2])
local ttl, limit = tonumber(ARGV[3]), tonumber(ARGV[4])  -- ms; sessions of a key, -1 is no limit
local FORGOTTEN = 86400  -- seconds after which a key goes that no worker speaks of; a living one does every few hours

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {redis.call('ZSCORE', KEYS[1], worker) and 1 or 0}
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ttl), worker)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)

for index = 2, #KEYS do
  local key = KEYS[index]
  local count, more = tonumber(ARGV[2 * index + 1]), tonumber(ARGV[2 * index + 2])
  local others, last_seq = 0, 0
  local records = redis.call('HGETALL', key)
  for field = 1, #records, 2 do
    local its_count, its_seq = string.match(records[field + 1], '(%d+):(%d+)')
    if records[field] == worker then
      last_seq = tonumber(its_seq)
    elseif redis.call('ZSCORE', KEYS[1], records[field]) then
      others = others + tonumber(its_count)
    else
      redis.call('HDEL', key, records[field])
    end
  end
  local admitted = 0
  if seq > last_seq then
    admitted = limit < 0 and more or math.max(math.min(more, limit - others - count), 0)
    if count + admitted > 0 then
      redis.call('HSET', key, worker, string.format('%.0f:%.0f', count + admitted, seq))
      redis.call('EXPIRE', key, FORGOTTEN)
    else
      redis.call('HDEL', key, worker)
    end
  end
  answer[index] = admitted
end
return answer
