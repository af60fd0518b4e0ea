"""One of several policy servers: leader or follower, and what either does.

The leader has the controller; it publishes weights in Redis before they come into force at itself,
keeps there what was learned, and takes in the reports that followers left. A follower fetches
weights, answers with them until their time to live is over, and leaves for the leader the newest
report of each balancer: reports are cumulative, so the newest has all that those before it had.
Every server keeps a copy of the learned state, so Redis may lose its data while one lives.
"""

import logging
import os
import re
import threading
import time
from typing import Any, Final

from trimtab import assembly, overview
from trimtab.actuators.board import Board
from trimtab.bounds import MessageError
from trimtab.config import Config
from trimtab.controller import Controller
from trimtab.errors import SourceError, StateError, TrimtabError
from trimtab.estimate import Estimates
from trimtab.explain import explain
from trimtab.ha import published
from trimtab.ha.lease import Lease, boottime
from trimtab.ha.redis_store import (
    MOST_REPORT_BYTES,
    MOST_REPORTS,
    AwayError,
    Claim,
    FencedError,
    RedisStore,
)
from trimtab.ha.term import Term
from trimtab.learn.actions import NEUTRAL, PROFILES
from trimtab.messages import decode_report
from trimtab.model import Weights
from trimtab.policy import Decision
from trimtab.sources.reported import Reported
from trimtab.traffic import History

__all__ = ["Ensemble"]

_log: Final = logging.getLogger(__name__)

# A step that fits the states takes seconds, on a busy machine tens of them; a leader whose step
# takes longer hangs, and lets its lease go.
HUNG_SECONDS: Final = 60.0

# What must not wait for the next regular save: it was learned or ordered once.
LEARNED: Final = ("decision", "observation", "operator")


class Ensemble:
    """What the policy server has for a controller where [state] has a url.

    `step` and `save` are called by one thread at a time, the rest from any. Raises ConfigError for
    a URL that cannot be. Redis may be away: this one follows until it answers.

    Args:
        config: the configuration.
        reported: where reports come in.
        board: where weights are answered from.
    """

    def __init__(self, config: Config, reported: Reported, board: Board) -> None:
        state, policy = config.state, config.policy
        self._config = config
        self._reported = reported
        self._board = board
        self._live_seconds = policy.time_to_live_seconds
        # Weights must last until the balancer has asked again, and once more.
        self._least_seconds = min(2 * policy.interval_seconds, self._live_seconds / 4)
        self._admin = re.sub(r"[^!-~]", "?", policy.admin_listen)
        self._name = state.name
        self._redis = RedisStore(state, f"{os.urandom(8).hex()} {state.name} {self._admin}")
        self._lease = Lease(
            self._redis, state.lease_seconds, self._live_seconds, lambda: not self._hung
        )
        self._known = {u.name: frozenset(p.address for p in u.peers) for u in config.upstreams}
        self._looking = threading.Lock()
        self._brain: Controller | None = None
        self._term: Claim | None = None
        self._holder: Claim | None = None
        self._looked_at: float | None = None
        self._valid_until = 0.0
        self._seen = (0, 0)  # the latest epoch and generation ever known here
        self._copy: tuple[str, bytes | None] = ("", None)
        self._mail: dict[str, tuple[int, int, bytes]] = {}
        self._mailing = threading.Lock()
        self._learned = 0
        self._damage = ""
        self._failure = ""
        self._step_since: float | None = None
        self._history = History()
        self._lease.tend()  # whoever is alone leads at once
        self.step()
        self._lease.start()

    # The control loop

    def step(self) -> None:
        """Lead or follow for one interval. Raises TrimtabError as a controller's step does, but
        not when Redis is away."""
        self._step_since = boottime()
        try:
            claim = self._lease.claim
            if self._brain is not None and claim != self._term:
                self._step_down("the lease is over")
            if claim is None:
                self._follow()
            elif self._brain is None:
                self._promote(claim)
            else:
                self._lead(self._brain, claim)
        except FencedError as error:
            self._lease.lost()
            self._step_down(str(error))
        except AwayError as error:
            # What is in force stays; without a renewal the lease ends soon.
            self._failing(str(error))
        else:
            self._failing("")
        finally:
            self._step_since = None

    def save(self) -> None:
        """Write what was learned, at the leader. Raises StateError."""
        brain = self._brain
        if brain is None or self._lease.claim != self._term:
            return
        try:
            brain.save()
        except FencedError as error:
            self._lease.lost()
            self._step_down(str(error))

    def close(self) -> None:
        """Give the lease up and the connections."""
        self._lease.stop()
        self._redis.close()

    @property
    def _hung(self) -> bool:
        since = self._step_since
        return since is not None and boottime() - since > HUNG_SECONDS

    def _lead(self, brain: Controller, claim: Claim) -> None:
        self._valid_until = boottime() + self._live_seconds
        self._looked_at = boottime() - self._lease.silent_seconds
        for raw in self._redis.take(claim):
            try:
                report = decode_report(raw, self._known)
                self._reported.put(report.snapshot, report.sequence)
            except (MessageError, SourceError) as error:
                self._damaged(f"a report in Redis was left out: {error}")
        brain.step()
        learned = self._count(brain)
        if learned != self._learned:
            brain.save()
            self._learned = learned

    def _promote(self, claim: Claim) -> None:
        self._look()
        held = self._board.current()
        epoch, lost = self._redis.begin(claim, int(time.time() * 1000), self._seen)
        term = Term(self._redis, claim, epoch, self._copy[1], self._keep)
        try:
            brain = assembly.assemble(
                self._config,
                self._reported,
                _Publishing(self, claim),
                term,
                # After a loss balancers may have a later generation than we: a new one must come.
                in_force=held if held and held.epoch == epoch and not lost else None,
            )
        except (AwayError, FencedError):
            raise
        except TrimtabError:
            self._lease.give_up(back_off=True)
            raise
        if held is not None and self._board.current() is held:
            # Nothing new, and perhaps lost or expired there.
            self._publish(claim, held)
        self._learned = self._count(brain)
        self._brain, self._term, self._holder = brain, claim, claim
        self._valid_until = boottime() + self._live_seconds
        with self._mailing:
            self._mail.clear()

    def _step_down(self, why: str) -> None:
        if self._brain is not None:
            held = self._board.current()
            _log.warning(
                "no longer leading: %s; keeping generation %d for %.1f s",
                why,
                held.generation if held else 0,
                self.remaining(),
            )
        self._brain = self._term = self._holder = None
        self._failure = ""

    def _follow(self) -> None:
        with self._mailing:
            mail, self._mail = self._mail, {}
        try:
            self._look()
            if mail:
                left = self._redis.mail(mail, self._live_seconds)
                self._damaged(f"{left} reports found no room in Redis" if left else "")
        except AwayError:
            # The lease's thread says so, once; what is known is answered until its end.
            with self._mailing:
                self._mail = mail | self._mail

    def _look(self) -> None:
        """Take in what the leader published. Raises AwayError."""
        with self._looking:
            sent = boottime()
            held = self._board.current()
            look = self._redis.look(published.name(held), self._copy[0])
            new = look.lease is not None and look.lease != self._holder
            if new and look.lease is not None and look.lease != self._lease.claim:
                _log.info("following %s (admin %s)", look.lease.name, look.lease.admin)
            self._holder, self._looked_at = look.lease, sent
            if look.state is not None:
                self._copy = (look.state_id, look.state)
            if look.weights is not None:
                try:
                    self._take(published.read(look.weights))
                except StateError as error:
                    self._damaged(str(error))
            if look.weights_id and look.weights_id == published.name(self._board.current()):
                self._valid_until = max(self._valid_until, sent + look.left_seconds)

    def _take(self, weights: Weights) -> None:
        held = self._board.current()
        if held and (weights.epoch, weights.generation) <= (held.epoch, held.generation):
            if self.remaining() > 0:
                return
            # As balancers do: what is over binds nobody.
            self._board.clear()
        self._board.apply(weights)
        self._seen = max(self._seen, (weights.epoch, weights.generation))

    def _publish(self, claim: Claim, weights: Weights) -> None:
        body = published.write(weights)
        self._redis.put_weights(claim, published.name(weights), body, self._live_seconds)
        self._seen = max(self._seen, (weights.epoch, weights.generation))

    def _keep(self, name: str, body: bytes) -> None:
        self._copy = (name, body)

    @staticmethod
    def _count(brain: Controller) -> int:
        counts = brain.events
        return sum(counts[kind] for kind in LEARNED)

    def _failing(self, what: str) -> None:
        """As `_damaged`, of this server's writes at the leader."""
        if bool(what) != bool(self._failure):
            _log.warning("%s", what or "the leader's writes to Redis work again")
        self._failure = what

    def _damaged(self, what: str) -> None:
        """Say it once a change of state."""
        if what and what != self._damage:
            _log.warning("%s", what)
        self._damage = what

    # The gRPC service

    def remaining(self) -> float:
        """Seconds for which the weights on the board may be answered; 0 when they are so few that
        a balancer which has more from another server would be worse off."""
        if self._brain is not None and self._lease.claim is not None:
            return self._live_seconds
        left = min(self._live_seconds, self._valid_until - boottime())
        return left if left >= self._least_seconds else 0.0

    def catch_up(self, epoch: int, generation: int) -> None:
        """Fetch weights if what is here is older than that; never raises."""
        held = self._board.current()
        if held is None or (held.epoch, held.generation) < (epoch, generation):
            try:
                self._look()
            except StateError:
                return

    def relay(self, name: str, start: int, sequence: int, raw: bytes) -> None:
        """Leave a report for the leader with the next step, unless this is the leader."""
        if self._brain is not None and self._lease.claim is not None:
            return
        with self._mailing:
            size = sum(len(r) for _, _, r in self._mail.values()) + len(raw)
            room = len(self._mail) < MOST_REPORTS and size <= MOST_REPORT_BYTES
            if name in self._mail or room:
                self._mail[name] = (start, sequence, raw)

    # Who looks

    def trouble(self) -> str | None:
        """Why this server is of no use to a balancer; None when it is."""
        if self._board.current() is not None and self.remaining() > 0:
            return None
        why = self._lease.away or "no leader has published weights"
        return f"no weights to answer: {why}; balancers use their static weights"

    def described(self) -> str:
        """Role, leader and lag in words."""
        told = self.availability()
        lag = "" if told["lag_seconds"] is None else f", {told['lag_seconds']:.1f} s behind"
        who = f" of {told['leader']}" if told["leader"] else ", nobody leads"
        text = (
            f"leader, token {told['token']}" if told["role"] == "leader" else f"follower{who}{lag}"
        )
        return f"{text}; {told['away']}" if told["away"] else text

    def availability(self) -> dict[str, Any]:
        """Role, who leads, since when this server knows nothing newer; for JSON."""
        claim = self._lease.claim
        leads = self._brain is not None and claim is not None
        holder = claim if leads else self._holder
        now = boottime()
        lag = None if self._looked_at is None else max(0.0, now - self._looked_at)
        return {
            "role": "leader" if leads else "follower",
            "name": self._name,
            "leader": holder.name if holder else None,
            "leader_admin": holder.admin if holder else None,
            "token": holder.token if holder else None,
            "lag_seconds": None if lag is None else round(lag, 3),
            "remaining_seconds": round(self.remaining(), 3),
            "lease_seconds": self._lease.seconds,
            "store": self._redis.shown,
            "away": self._lease.away,
        }

    def status(self) -> dict[str, Any]:
        """As the controller's; a follower shows the weights that it answers."""
        brain = self._brain
        if brain is not None:
            return brain.status()
        return overview.status(self._view(), self._config, time.monotonic()) | {
            "totals": {"upstreams": {}, "ejections": {}}
        }

    def explain(
        self, upstream: str, address: str | None = None, instance: str | None = None
    ) -> dict[str, Any]:
        """Why requests go where they go. Raises ConfigError."""
        brain = self._brain
        if brain is not None:
            return brain.explain(upstream, address, instance)
        return explain(self._view(), upstream, address, instance)

    def history(self) -> dict[str, Any]:
        """The last minutes; nothing at a follower."""
        brain = self._brain
        return brain.history() if brain is not None else self._history.status()

    def _view(self) -> overview.View:
        neutral = PROFILES[NEUTRAL].name
        weights = self._board.current()
        known = weights.upstreams.items() if weights else ()
        return overview.View(
            phase="following",
            observed_seconds=0.0,
            weights=weights,
            estimates=Estimates(),
            deadlines={n: u.deadline_seconds for n, u in known if u.deadline_seconds},
            decision=Decision(profile=neutral, state=None, exploring=False, reason="following"),
            profile=neutral,
            reward=None,
            art_per_1000=None,
            recent=(),
            measured_at=None,
            policy={},
            guard={},
            journal=(),
            events={},
            snapshots=self._reported.read(),
            change=None,
        )

    # The operator

    def _leading(self) -> Controller:
        brain = self._brain
        if brain is not None and self._lease.claim is not None:
            return brain
        holder = self._holder
        raise StateError(
            f"this policy server follows {holder.name}; give the order there: "
            f"--admin {holder.admin}"
            if holder
            else "no policy server leads at present; try again in some seconds"
        )

    def pin(
        self, upstream: str, address: str, weight: float | None, who: str = "", why: str = ""
    ) -> None:
        """Fix W, or lift that, at the leader. Raises ConfigError, StateError at a follower."""
        self._leading().pin(upstream, address, weight, who, why)

    def drain(self, address: str, on: bool = True, who: str = "", why: str = "") -> None:
        """No new requests, or again, at the leader. Raises as `pin`."""
        self._leading().drain(address, on, who, why)

    def shadow(self, on: bool, who: str = "", why: str = "") -> None:
        """Decide only, or enforce, at the leader. Raises StateError at a follower."""
        self._leading().shadow(on, who, why)


class _Publishing:
    """Weights go to Redis and then, as they are there, to the leader's own board."""

    def __init__(self, ensemble: Ensemble, claim: Claim) -> None:
        self._ensemble = ensemble
        self._claim = claim

    def apply(self, weights: Weights) -> None:
        """Put `weights` in force. Raises StateError, and what is in force stays."""
        self._ensemble._publish(self._claim, weights)
        self._ensemble._board.apply(weights)
