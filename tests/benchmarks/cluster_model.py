"""``sync.lua`` in Python, for simulations; a test shows that both answer the same."""

import heapq

from asgi_closecodes.gates.cluster.lease import Reply


class Model:
    """What the script keeps, and what it answers; times are milliseconds."""

    def __init__(self):
        self.flush()

    def flush(self):
        self.alloc = self.used = 0
        self.beat = None
        self.skew = self.doubt = self.learn = self.limit_until = 0
        self.limit = self.limit_by = None
        self.records = {}
        self._expiries = []
        """By worker: grant, used, seq, since, anchor, expiry."""

    def sync(self, request, wall):
        r = request
        if self.beat is None:
            self.beat, self.doubt = wall, wall + 0.4 * r.lease_duration
        limit = r.limit if self.limit is None else self.limit
        record = self.records.get(r.worker)
        grant, was_used, last_seq, since, anchor, _ = record or (0, 0, 0, 0, 0, 0)
        if r.seq <= last_seq:
            return Reply(
                last_seq,
                grant,
                grant,
                self.alloc,
                self.used,
                len(self.records),
                limit,
                int(max(self.learn - self.beat, 0)),
            )
        now = max(wall - self.skew, self.beat)
        if last_seq == r.acked and 0 < since <= now:
            if now - since > r.elapsed + r.lease_duration / 50:
                now = max(since + r.elapsed, self.beat)
            if now - self.beat >= 0.6 * r.lease_duration:
                self.doubt = now + 0.4 * r.lease_duration
                if self.learn > self.beat:
                    self.learn = now + r.lease_duration
            self.beat = now
        else:
            anchor = now
            if now - self.beat >= 0.6 * r.lease_duration:
                self.doubt = min(now, self.beat + r.lease_duration) + 0.4 * r.lease_duration
        likely = min(now, self.beat + r.lease_duration)
        is_forgotten = r.acked > last_seq and (r.leased or record is not None)
        is_unknown = record is None and (r.used > 0 or r.acked > 0)
        if is_forgotten or (self.beat < self.doubt and is_unknown):
            self.learn = likely + r.lease_duration
        if self.beat >= self.doubt:
            self._reap(r.worker, anchor, r.lease_duration)
        if self.limit is None or r.limit <= limit or r.worker == self.limit_by or self.beat >= self.limit_until:
            limit, self.limit_by = r.limit, r.worker
            self.limit_until = self.beat if r.leave else likely + r.lease_duration
        self.limit = limit
        workers = len(self.records) + (record is None)
        keep = r.used if r.leave else max(r.have, r.used)
        advice = keep
        if self.learn <= self.beat and not r.leave:
            room = max(limit - (self.alloc - grant) - r.used, 0)
            given = min(r.need, room)
            advice = r.used + given + min(r.headroom, (room - given) // (2 * workers))
        new = max(keep, advice)
        self.alloc += new - grant
        self.used += r.used - was_used
        if r.leave and r.used == 0:
            workers -= 1
            self.records.pop(r.worker, None)
        else:
            self.records[r.worker] = (new, r.used, r.seq, now, anchor, now + r.lease_duration)
            heapq.heappush(self._expiries, (now + r.lease_duration, r.worker))
        self.skew = wall - now
        return Reply(r.seq, new, advice, self.alloc, self.used, workers, limit, int(max(self.learn - self.beat, 0)))

    def _reap(self, worker, anchor, lease_duration):
        looked_at = []
        while self._expiries and self._expiries[0][0] <= self.beat and len(looked_at) < 128:
            expiry, other = heapq.heappop(self._expiries)
            record = self.records.get(other)
            if record is None or record[5] != expiry or (expiry, other) in looked_at:
                continue  # it has synced since
            looked_at.append((expiry, other))
        for expiry, other in looked_at:
            grant, used, _, since, _, _ = self.records[other]
            if other != worker and (anchor <= since or self.beat - anchor >= lease_duration):
                self.alloc -= grant
                self.used -= used
                del self.records[other]
            else:
                heapq.heappush(self._expiries, (expiry, other))
