"""What several policy servers share in Redis, and the scripts that guard it.

    PREFIX:lease        "TOKEN IDENTITY NAME ADMIN" of the leader; expires
    PREFIX:fence        the largest token ever given out
    PREFIX:generations  hash: epoch, and the largest generation given out
    PREFIX:weights      hash: id and envelope of the weights in force; expires with them
    PREFIX:state        hash: id and envelope of what was learned
    PREFIX:reports      hash: the newest report of each balancer that a follower took; expires
    PREFIX:reported     its size in bytes; expires with it

Every write of the leader is a Lua script in Redis that first compares the lease with the caller's
own, token and all, and changes nothing when they differ: whoever was paused past its lease cannot
overwrite what its successor wrote. What is read is checked, and its size is asked before it is
sent. The one module that imports redis; when to call what is the `lease`'s and `ensemble`'s.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from trimtab.config import MAX_MESSAGE_BYTES, State
from trimtab.envelope import MOST_BYTES
from trimtab.errors import ConfigError, DependencyError, StateError

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError:
    raise DependencyError(
        "url in [state] needs the package redis; install it: pip install 'trimtab[redis]'"
    ) from None

__all__ = ["AwayError", "Claim", "FencedError", "Look", "RedisStore"]

# Balancers whose reports may lie in Redis at once, and their bytes: reports lie there for an
# interval, and a thousand balancers of a hundred pairs send 60 kB each.
MOST_REPORTS: Final = 4096
MOST_REPORT_BYTES: Final = 64 * 1024 * 1024

# Doubles, which Redis's Lua computes in, are exact up to here; milliseconds since 1970 fit.
MOST_NUMBER: Final = 2**53

# A report's place in order (start and sequence, 20 digits each), and its checksum.
ORDER_BYTES: Final = 40
SUM_BYTES: Final = 32

_MINE: Final = (
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end\n"
)

# KEYS: lease, fence. ARGV: identity, lease in ms, floor of the token.
_ACQUIRE: Final = """
local held = redis.call('GET', KEYS[1])
if held then return {0, held} end
local token = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[3])) + 1
local text = string.format('%.0f', token)
redis.call('SET', KEYS[2], text)
redis.call('SET', KEYS[1], text .. ' ' .. ARGV[1], 'NX', 'PX', ARGV[2])
return {1, text .. ' ' .. ARGV[1]}
"""

# KEYS: lease, weights. ARGV: lease's value, lease in ms, time to live in ms.
_RENEW: Final = (
    _MINE
    + """
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
)

_RELEASE: Final = _MINE + "return redis.call('DEL', KEYS[1])"

# Generations skipped when Redis has lost some: a leader makes one an interval at most, and what a
# follower does not know of yet is an interval or few old.
_SKIPPED: Final = 1000

# KEYS: lease, generations. ARGV: lease's value, fresh epoch, known epoch and generation, skipped.
# What this server knows counts as well: Redis may have lost its data.
_BEGIN: Final = (
    _MINE
    + """
local stored = redis.call('HMGET', KEYS[2], 'epoch', 'generation')
local epoch, generation = tonumber(stored[1] or '0'), tonumber(stored[2] or '0')
local known, floor = tonumber(ARGV[3]), tonumber(ARGV[4])
local lost = 0
if known > epoch or known == epoch and floor > generation then
  epoch, generation, lost = known, floor + tonumber(ARGV[5]), 1
end
if epoch == 0 then epoch = tonumber(ARGV[2]) end
redis.call('HSET', KEYS[2], 'epoch', string.format('%.0f', epoch),
           'generation', string.format('%.0f', generation))
return {string.format('%.0f', epoch), lost}
"""
)

# KEYS: lease, generations. ARGV: lease's value.
_NEXT: Final = _MINE + "return redis.call('HINCRBY', KEYS[2], 'generation', 1)"

# KEYS: lease, what. ARGV: lease's value, id, envelope, time to live in ms or 0.
_PUT: Final = (
    _MINE
    + """
redis.call('HSET', KEYS[2], 'id', ARGV[2], 'body', ARGV[3])
if ARGV[4] ~= '0' then redis.call('PEXPIRE', KEYS[2], ARGV[4]) end
return 1
"""
)

# KEYS: lease, weights, state. ARGV: known ids of weights and state, most bytes.
_LOOK: Final = """
local function fresh(key, known)
  local id = redis.call('HGET', key, 'id') or ''
  if id == '' or id == known then return id, '' end
  if redis.call('HSTRLEN', key, 'body') > tonumber(ARGV[3]) then return id, '' end
  return id, redis.call('HGET', key, 'body') or ''
end
local weights, body = fresh(KEYS[2], ARGV[1])
local state, learned = fresh(KEYS[3], ARGV[2])
return {redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[2]), weights, body, state,
        learned}
"""

# KEYS: reports, size. ARGV: time to live in ms, most reports, most bytes, then name and value in
# turn. A later report stands; what there is no room for is left out (the next one has it all).
_MAIL: Final = """
local size = tonumber(redis.call('GET', KEYS[2]) or '0')
local left = 0
for n = 4, #ARGV, 2 do
  local name, value = ARGV[n], ARGV[n + 1]
  local old = redis.call('HGET', KEYS[1], name)
  if not old or string.sub(old, 1, 40) < string.sub(value, 1, 40) then
    local after = size + #value - (old and #old or 0)
    if after > tonumber(ARGV[3])
       or not old and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[2]) then
      left = left + 1
    else
      redis.call('HSET', KEYS[1], name, value)
      size = after
    end
  end
end
redis.call('SET', KEYS[2], string.format('%.0f', size), 'PX', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return left
"""

# KEYS: lease, reports, size. ARGV: lease's value.
_TAKE: Final = (
    _MINE
    + """
local all = redis.call('HVALS', KEYS[2])
redis.call('DEL', KEYS[2], KEYS[3])
return all
"""
)


class AwayError(StateError):
    """Redis did not answer in time, or answered with an error."""


class FencedError(StateError):
    """The lease is no longer the caller's: nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lease as it stands in Redis: the whole value, and what is in it."""

    value: str
    token: int
    name: str
    admin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What Redis has now. Bodies are envelopes, None where the id is the known one or there is
    none. `left_seconds`: for which the weights are still confirmed."""

    lease: Claim | None
    left_seconds: float
    weights_id: str
    weights: bytes | None
    state_id: str
    state: bytes | None


class RedisStore:
    """A connection to Redis and the operations on what is shared. Safe to use from any thread.

    Every operation raises AwayError when Redis does not answer within a third of the lease, and
    those that take a claim FencedError when the lease is another's. Raises ConfigError for a URL
    that cannot be, and connects at the first operation only.

    Args:
        config: the section [state], with its url.
        identity: of this process, without spaces; then name and admin address for people.
    """

    def __init__(self, config: State, identity: str) -> None:
        assert config.url is not None  # noqa: S101 - the caller's condition
        self.shown = _shown(config.url)
        self._identity = identity
        patience = config.lease_seconds / 3
        options: dict[str, Any] = {}
        if config.password_file is not None:
            options["password"] = _secret(config)
        try:
            self._client = redis.Redis.from_url(
                config.url,
                socket_timeout=patience,
                socket_connect_timeout=patience,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
                **options,
            )
        except (ValueError, redis.RedisError) as error:
            raise ConfigError(f"url in [state] is {self.shown!r}: {error}") from None
        prefix = config.prefix
        self._lease, self._fence = f"{prefix}:lease", f"{prefix}:fence"
        self._generations = f"{prefix}:generations"
        self._weights, self._state = f"{prefix}:weights", f"{prefix}:state"
        self._reports, self._reported = f"{prefix}:reports", f"{prefix}:reported"
        self._scripts: dict[str, Any] = {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def acquire(self, seconds: float, floor: int) -> tuple[bool, Claim | None]:
        """Take the lease if nobody has it, with a token larger than `floor` and any before it.
        Whether it was taken, and the lease as it stands."""
        keys, told = [self._lease, self._fence], (self._identity, _ms(seconds), floor)
        taken, value = self._run(_ACQUIRE, keys, *told)
        return bool(taken), _claim(value)

    def renew(self, claim: Claim, seconds: float, live_seconds: float) -> None:
        """Lengthen the lease, and the life of the weights in force."""
        keys = [self._lease, self._weights]
        self._run(_RENEW, keys, claim.value, _ms(seconds), _ms(live_seconds))

    def release(self, claim: Claim) -> None:
        """Give the lease up, so that another need not wait for its end."""
        self._run(_RELEASE, [self._lease], claim.value)

    def begin(self, claim: Claim, fresh: int, known: tuple[int, int]) -> tuple[int, bool]:
        """The epoch to lead in: that of Redis or the known one, whichever is later; `fresh` where
        there is none. Generations go on behind those of Redis, or, where it has lost what is known
        (True), far enough behind the known one."""
        keys = [self._lease, self._generations]
        epoch, lost = self._run(_BEGIN, keys, claim.value, fresh, *known, _SKIPPED)
        return _number(epoch), bool(lost)

    def next_generation(self, claim: Claim) -> int:
        """A generation that no leader of this epoch had before."""
        return _number(self._run(_NEXT, [self._lease, self._generations], claim.value))

    def put_weights(self, claim: Claim, name: str, body: bytes, live_seconds: float) -> None:
        """Publish weights for the followers."""
        keys = [self._lease, self._weights]
        self._run(_PUT, keys, claim.value, name, body, _ms(live_seconds))

    def put_state(self, claim: Claim, name: str, body: bytes) -> None:
        """Keep what was learned."""
        self._run(_PUT, [self._lease, self._state], claim.value, name, body, 0)

    def look(self, weights_id: str, state_id: str) -> Look:
        """What there is; bodies only of what has another id than the known one."""
        keys = [self._lease, self._weights, self._state]
        lease, left, *rest = self._run(_LOOK, keys, weights_id, state_id, MOST_BYTES)
        weights, body, state, learned = rest
        return Look(
            lease=_claim(lease),
            left_seconds=max(0.0, int(left) / 1000),
            weights_id=_text(weights),
            weights=body or None,
            state_id=_text(state),
            state=learned or None,
        )

    def mail(self, reports: Mapping[str, tuple[int, int, bytes]], live_seconds: float) -> int:
        """Leave reports (name -> start, sequence, message) for the leader; how many had no
        room."""
        told: list[Any] = [_ms(live_seconds), MOST_REPORTS, MOST_REPORT_BYTES]
        for name, (start, sequence, raw) in reports.items():
            order = f"{start:020d}{sequence:020d}".encode()
            told += [name, order + hashlib.sha256(raw).digest() + raw]
        return int(self._run(_MAIL, [self._reports, self._reported], *told))

    def take(self, claim: Claim) -> Iterator[bytes]:
        """The messages left for the leader, each once; damaged ones are left out."""
        keys = [self._lease, self._reports, self._reported]
        values = self._run(_TAKE, keys, claim.value)
        for value in values:
            checked, raw = value[ORDER_BYTES : ORDER_BYTES + SUM_BYTES], value[72:]
            if len(raw) <= MAX_MESSAGE_BYTES and hashlib.sha256(raw).digest() == checked:
                yield raw

    def _run(self, script: str, keys: list[str], *told: Any) -> Any:
        try:
            known = self._scripts.get(script)
            if known is None:
                known = self._scripts[script] = self._client.register_script(script)
            return known(keys=keys, args=told)
        except redis.ResponseError as error:
            if "FENCED" in str(error):
                raise FencedError("the lease is no longer ours; nothing was written") from None
            raise AwayError(f"Redis at {self.shown} refuses: {error}") from None
        except (redis.RedisError, OSError) as error:
            raise AwayError(f"Redis at {self.shown} does not answer: {error}") from None


def _ms(seconds: float) -> int:
    return max(1, round(1000 * seconds))


def _text(raw: bytes) -> str:
    return bytes(raw).decode("ascii", "replace")


def _claim(raw: bytes | None) -> Claim | None:
    """A lease from its value; None for what is not of ours."""
    if not raw or len(raw) > 1024:
        return None
    value = _text(raw)
    words = value.split(" ")
    if len(words) != 4 or not words[0].isdigit():
        return None
    return Claim(value=value, token=int(words[0]), name=words[2], admin=words[3])


def _number(raw: Any) -> int:
    try:
        number = int(raw)
    except (TypeError, ValueError):
        number = -1
    if not 0 < number < MOST_NUMBER:
        raise AwayError(f"Redis gave {raw!r} where a generation or an epoch should be")
    return number


def _shown(url: str) -> str:
    """The URL without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _secret(config: State) -> str:
    try:
        text = config.password_file.read_text(encoding="utf-8") if config.password_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"password_file {config.password_file} in [state] cannot be read: {error}"
        ) from None
    if not text.strip():
        raise ConfigError(f"password_file {config.password_file} in [state] is empty")
    return text.strip()
