"""A fleet event by event: arrivals, routing, tables, and steps that pictures join and leave.

The routing is that of `routing.py`, not a model of it. What is left out: the network, and whatever
happens inside of a step.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from bootpig_rt.serving.fleet_model import ReplicaFigures, Workload
from bootpig_rt.serving.rendezvous import Rendezvous, by_preference_and_load

_ARRIVAL = -1


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came out.

    Attributes:
        pictures: That were counted: those after the warm-up.
        latency_mean_s: Of them, from asking to drawn.
        latency_p95_s: Of 95 of 100.
        hit_ratio: Tables that were there.
        utilisation: Share of the time in which replicas were busy.
        batch: Mean pictures of a step.
    """

    pictures: int
    latency_mean_s: float
    latency_p95_s: float
    hit_ratio: float
    utilisation: float
    batch: float


@dataclass
class _Picture:
    subject: int
    arrived_s: float
    steps_left: int
    is_counted: bool


@dataclass
class _Replica:
    """One engine: who runs, who waits, whose tables it holds."""

    running: list[_Picture] = field(default_factory=list)
    waiting: deque[_Picture] = field(default_factory=deque)
    tables: OrderedDict[int, None] = field(default_factory=OrderedDict)
    is_busy: bool = False
    busy_s: float = 0.0
    num_steps: int = 0
    num_stepped: int = 0

    @property
    def load(self) -> int:
        return len(self.running) + len(self.waiting)


class FleetSimulation:
    """Draws pictures on replicas that take their time from figures.

    Args:
        load: What is asked.
        figures: Of each replica.
        replicas: How many.
        spill_over: As of the router.
        is_sticky: Requests go by subject; otherwise to the quieter of two replicas.
        seed: Of arrivals and subjects.
    """

    def __init__(
        self,
        load: Workload,
        figures: ReplicaFigures,
        replicas: int,
        *,
        spill_over: int = 3,
        is_sticky: bool = True,
        seed: int = 0,
    ) -> None:
        """Every subject's table lies where its requests go first, as far as there is room."""
        self._work, self._figures = load, figures
        self._spill_over, self._is_sticky = spill_over, is_sticky
        self._random = random.Random(seed)
        self._replicas = [_Replica() for _ in range(replicas)]
        self._names = [str(number) for number in range(replicas)]
        self._rendezvous = Rendezvous(self._names)
        self._orders: dict[int, list[str]] = {}
        self._subjects = [self._new_subject() for _ in range(load.subjects)]
        for subject in self._subjects:
            self._keep_table(self._replicas[int(self._order(subject)[0])], subject)
        self._latencies: list[float] = []
        self._hits = self._misses = 0
        self._counted_from_s = 0.0

    def run(self, pictures: int, warm_up: int) -> Simulated:
        """Let pictures arrive until enough have, and draw all of them.

        Args:
            pictures: That are counted.
            warm_up: That arrive before.
        """
        events = [(self._gap_s(), 0, _ARRIVAL)]
        arrived, last_s = 0, 0.0
        while events:
            now_s, _, which = heapq.heappop(events)
            if which == _ARRIVAL:
                arrived, last_s = arrived + 1, now_s
                if arrived == warm_up:
                    self._begin_to_count(now_s)
                which = self._arrive(now_s, is_counted=arrived > warm_up)
                if arrived < pictures + warm_up:
                    heapq.heappush(events, (now_s + self._gap_s(), arrived, _ARRIVAL))
                if self._replicas[which].is_busy:
                    continue
            else:
                self._end_step(which, now_s)
            took_s = self._begin_step(self._replicas[which])
            if took_s:
                heapq.heappush(events, (now_s + took_s, arrived, which))
        return self._result(max(1e-9, last_s - self._counted_from_s))

    def _arrive(self, now_s: float, *, is_counted: bool) -> int:
        place = self._random.randrange(len(self._subjects))
        subject = self._subjects[place]
        which = self._choice(subject)
        picture = _Picture(subject, now_s, self._work.steps, is_counted)
        self._replicas[which].waiting.append(picture)
        if self._random.random() < 1 / self._work.pictures_per_subject:
            self._orders.pop(subject, None)  # its last picture; another subject takes its place
            self._subjects[place] = self._new_subject()
        return which

    def _choice(self, subject: int) -> int:
        if not self._is_sticky:
            count = min(2, len(self._replicas))
            pair = self._random.sample(range(len(self._replicas)), count)
            return min(pair, key=lambda one: self._replicas[one].load)
        loads = {name: one.load for name, one in zip(self._names, self._replicas, strict=True)}
        order = self._order(subject)
        return int(by_preference_and_load(order, loads, spill_over=self._spill_over)[0])

    def _order(self, subject: int) -> list[str]:
        order = self._orders.get(subject)
        if order is None:
            order = self._orders[subject] = self._rendezvous.order(str(subject))
        return order

    def _begin_step(self, replica: _Replica) -> float:
        """Let pictures in, and say how long the step takes; 0 where nobody is there."""
        took_s = 0.0
        while replica.waiting and len(replica.running) < self._figures.max_batch:
            picture = replica.waiting.popleft()
            replica.running.append(picture)
            took_s += self._figures.picture_s  # its text now, its decoder later
            if picture.subject in replica.tables:
                self._hits += 1
            else:
                self._misses += 1
                took_s += self._figures.pass_s
            self._keep_table(replica, picture.subject)
        replica.is_busy = bool(replica.running)
        if not replica.is_busy:
            return 0.0
        took_s += self._figures.step_of(len(replica.running))
        replica.busy_s += took_s
        replica.num_steps += 1
        replica.num_stepped += len(replica.running)
        return took_s

    def _end_step(self, which: int, now_s: float) -> None:
        replica = self._replicas[which]
        for picture in replica.running:
            picture.steps_left -= 1
            if not picture.steps_left and picture.is_counted:
                self._latencies.append(now_s - picture.arrived_s)
        replica.running = [picture for picture in replica.running if picture.steps_left]

    def _keep_table(self, replica: _Replica, subject: int) -> None:
        replica.tables[subject] = None
        replica.tables.move_to_end(subject)
        while len(replica.tables) > self._figures.tables:
            replica.tables.popitem(last=False)

    def _new_subject(self) -> int:
        return self._random.getrandbits(62)

    def _gap_s(self) -> float:
        return self._random.expovariate(self._work.rate_per_s)

    def _begin_to_count(self, now_s: float) -> None:
        self._counted_from_s = now_s
        self._hits = self._misses = 0
        for replica in self._replicas:
            replica.busy_s, replica.num_steps, replica.num_stepped = 0.0, 0, 0

    def _result(self, took_s: float) -> Simulated:
        latencies = sorted(self._latencies)
        steps = sum(one.num_steps for one in self._replicas)
        busy_s = sum(one.busy_s for one in self._replicas)
        return Simulated(
            pictures=len(latencies),
            latency_mean_s=math.fsum(latencies) / max(1, len(latencies)),
            latency_p95_s=latencies[int(0.95 * len(latencies))] if latencies else math.nan,
            hit_ratio=self._hits / max(1, self._hits + self._misses),
            utilisation=min(1.0, busy_s / (took_s * len(self._replicas))),
            batch=sum(one.num_stepped for one in self._replicas) / max(1, steps),
        )
