-- One sync of one worker: it says what it holds and needs, and is told what it may hold. What it says is a
-- state, never a change of one: a sync that is lost, doubled or late does no harm.
--
-- KEYS[1]  meta    HASH  alloc, used: sums over the workers; beat, skew, doubt, learn, limit, limit_by,
--                limit_until
-- KEYS[2]  grants  HASH  worker -> grant:used:seq:since:anchor
-- KEYS[3]  expiry  ZSET  worker -> when its permits are free again
--
-- Times are milliseconds of this server's clock, less `skew`: what it was seen to jump.

local META, GRANTS, EXPIRY = KEYS[1], KEYS[2], KEYS[3]
local worker = ARGV[1]
local seq = tonumber(ARGV[2])       -- this sync's number
local acked = tonumber(ARGV[3])     -- the last one that was answered
local elapsed = tonumber(ARGV[4])   -- ms since that answer, by the worker's own clock
local is_leased = ARGV[5] == '1'    -- whether its lease is valid
local used = tonumber(ARGV[6])      -- its open sessions
local have = tonumber(ARGV[7])      -- what it may have open without asking
local need = tonumber(ARGV[8])      -- sessions that lack a permit
local spare = tonumber(ARGV[9])     -- permits that it would like to have in advance
local limit = tonumber(ARGV[10])
local ttl = tonumber(ARGV[11])      -- ms
local leaves = ARGV[12] == '1'

-- What is under a key may be somebody else's: the error names the key, which Redis' own does not.
local function first(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if string.find(answer.err, '^WRONGTYPE') then error('WRONGTYPE ' .. key, 0) end
  return redis.call(command, key, ...)  -- for its own error
end
local function checked(key, text, least)
  local value = tonumber(text)
  if not value or value ~= value or value < least or value > 2 ^ 53 then error('GARBAGE ' .. key, 0) end
  return value
end

local time = redis.call('TIME')
local wall = time[1] * 1000 + math.floor(time[2] / 1000)

local meta = first('HMGET', META, 'alloc', 'used', 'beat', 'skew', 'doubt', 'learn', 'limit', 'limit_until', 'limit_by')
local workers, grants = first('ZCARD', EXPIRY), first('HLEN', GRANTS)
local lost = not meta[1] or workers ~= grants or (workers == 0 and meta[1] ~= '0')
if lost then  -- new, flushed, or evicted in parts
  redis.call('DEL', META, GRANTS, EXPIRY)
  meta, workers = {}, 0
end
local function number(index, default, least) return checked(META, meta[index] or default, least or 0) end
local alloc, total, beat, skew = number(1, 0), number(2, 0), number(3, wall), number(4, 0, -2 ^ 53)
local doubt, learn = number(5, wall + 0.4 * ttl), number(6, 0)  -- whoever lives syncs within 0.4 ttl
local lowest, lowest_until, lowest_by = number(7, limit), number(8, 0), meta[9]

local function parsed(record)
  local fields = {}
  for field in string.gmatch(record or '', '%d+') do fields[#fields + 1] = checked(GRANTS, field, 0) end
  if #fields ~= 5 then error('GARBAGE ' .. GRANTS, 0) end
  return unpack(fields)
end
local record = redis.call('HGET', GRANTS, worker)
local grant, was_used, last_seq, since, anchor = 0, 0, 0, 0, 0
if record then grant, was_used, last_seq, since, anchor = parsed(record) end
if seq <= last_seq then
  return {last_seq, grant, grant, alloc, total, workers, lowest, math.max(learn - beat, 0)}
end

-- A server's clock jumps, and another server has another clock. It does not go back here, and not ahead of the
-- clocks of the workers: between its `anchor` and now this worker has measured the time without a gap.
local now = math.max(wall - skew, beat)
if last_seq == acked and since > 0 and since <= now then
  if now - since > elapsed + ttl / 50 then now = math.max(since + elapsed, beat) end
  if now - beat >= 0.6 * ttl then  -- nobody could sync: they shall come back first
    doubt = now + 0.4 * ttl
    if learn > beat then learn = now + ttl end
  end
  beat = now
else
  anchor = now
  if now - beat >= 0.6 * ttl then doubt = math.min(now, beat + ttl) + 0.4 * ttl end
end
local likely = math.min(now, beat + ttl)  -- `now` may have jumped where it was not measured

-- A promise that is not recorded, one that was answered later than what is, or a worker that is not known when it is in
-- doubt whether all are: others may be missing too. Nobody gets more until they have come back, or their leases have
-- ended.
local is_forgotten = acked > last_seq and (is_leased or record)
if is_forgotten or (beat < doubt and not record and (used > 0 or acked > 0)) then learn = likely + ttl end

if beat >= doubt then
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', beat, 'LIMIT', 0, 128)) do
    local its_grant, its_used, _, its_since = parsed(redis.call('HGET', GRANTS, other))
    if other ~= worker and (anchor <= its_since or beat - anchor >= ttl) then
      alloc, total, workers = alloc - its_grant, total - its_used, workers - 1
      redis.call('HDEL', GRANTS, other)
      redis.call('ZREM', EXPIRY, other)
    end
  end
end

-- The lowest limit counts, until the last who had it has another one, leaves, or is not heard of any more.
if limit <= lowest or worker == lowest_by or beat >= lowest_until then
  lowest, lowest_until, lowest_by = limit, leaves and beat or likely + ttl, worker
end

if not record then workers = workers + 1 end
local keep = leaves and used or math.max(have, used)
local advice = keep
if learn <= beat and not leaves then
  local room = math.max(lowest - (alloc - grant) - used, 0)
  local given = math.min(need, room)
  advice = used + given + math.min(spare, math.floor((room - given) / (2 * workers)))
end
alloc = alloc - grant
grant = math.max(keep, advice)  -- what a worker was promised is never taken back behind its back
alloc, total = alloc + grant, total - was_used + used

if leaves and used == 0 then
  workers = workers - 1
  redis.call('HDEL', GRANTS, worker)
  redis.call('ZREM', EXPIRY, worker)
else
  redis.call('HSET', GRANTS, worker, string.format('%.0f:%.0f:%.0f:%.0f:%.0f', grant, used, seq, now, anchor))
  redis.call('ZADD', EXPIRY, string.format('%.0f', now + ttl), worker)
end
redis.call('HSET', META, 'alloc', alloc, 'used', total, 'beat', beat, 'skew', wall - now, 'doubt', doubt,
  'learn', learn, 'limit', lowest, 'limit_until', lowest_until, 'limit_by', lowest_by)
return {seq, grant, advice, alloc, total, workers, lowest, math.max(learn - beat, 0)}
