"""Tables of pictures: found, waited for or made, and what they take of the device's memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from bootpig_rt.backends.base import Backend, PassProgress
from bootpig_rt.engine.batch import Picture
from bootpig_rt.reference.reference_pass import TablePlan, make_table
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.storage.store import Claim, SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer

LOOK_AGAIN_S = 0.02
"""How soon a table that somebody else is making is looked for again."""

_Whose: TypeAlias = tuple[str, ReferenceKey]
"""Tenant and key of a table."""


class Tables:
    """Tables of the pictures of one engine. Touched by the thread that runs it alone.

    Args:
        backend: Makes them.
        tokenizer: Of the pair.
        store: Keeps them.
        tell: Called from any thread when a table that was looked for is there.

    Attributes:
        sought: Tables that are looked for, or the time when to look again.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        store: SubjectStore,
        tell: Callable[[], object],
    ) -> None:
        """Nothing is looked for yet."""
        self._backend, self._tokenizer = backend, tokenizer
        self._store, self._tell = store, tell
        self.sought: dict[_Whose, Future[ReferenceTable | Claim | None] | float] = {}
        self._making: dict[_Whose, Claim] = {}

    def find(self, picture: Picture) -> ReferenceTable | Claim | None:
        """The table of a picture with a subject, the right to make it, or None: look again later.

        A table that is read from disk, or that somebody else is making, keeps nobody waiting here.
        """
        plan, tenant = picture.plan.table, picture.job.tenant
        assert plan is not None
        found: ReferenceTable | Claim | None
        found = self._store.held(plan.key, backend=self._backend, tenant=tenant)
        if found is not None:
            return found
        whose = tenant, plan.key
        lookup = self.sought.get(whose, 0.0)
        if isinstance(lookup, float):
            if time.monotonic() < lookup:
                return None
            lookup = self.sought[whose] = self._store.look_later(
                plan.subject,
                plan.key,
                backend=self._backend,
                tenant=tenant,
                is_resident=plan.is_resident,
            )
            if not lookup.done():
                lookup.add_done_callback(lambda _: self._tell())
        if not lookup.done():
            return None
        del self.sought[whose]
        found = lookup.result()
        if found is None:  # it is being made: below this, where a callback drives the engine?
            found = self._making.get(whose)
        if found is None:
            self.sought[whose] = time.monotonic() + LOOK_AGAIN_S
        return found

    def make(self, picture: Picture, claim: Claim, progress: PassProgress) -> ReferenceTable:
        """Run the pass of a picture's table.

        Args:
            picture: Whose job has waited for it.
            claim: On the table; released in any case.
            progress: Called after each launch; what it raises ends the pass.
        """
        job, plan = picture.job, picture.plan.table
        assert plan is not None
        whose = job.tenant, plan.key
        self._making[whose] = claim
        start = time.perf_counter()
        try:
            table, passes = make_table(
                plan,
                backend=self._backend,
                tokenizer=self._tokenizer,
                rows_per_launch=self._store.options.rows_per_launch,
                progress=progress,
            )
            ms = 1e3 * (time.perf_counter() - start)
            claim.keep(table, self._backend, ms)
        except BaseException:
            claim.release()
            raise
        finally:
            self._making.pop(whose, None)
        job.timings.reference_ms += ms
        job.passes += passes
        return table

    def forget(self, waiting: Iterable[Picture]) -> None:
        """Seek no table that none of these pictures waits for: claims on them are for others."""
        wanted = {(one.job.tenant, one.plan.table.key) for one in waiting if one.plan.table}
        for whose in [whose for whose in self.sought if whose not in wanted]:
            lookup = self.sought[whose]
            if isinstance(lookup, float):
                del self.sought[whose]
            elif lookup.done():
                del self.sought[whose]
                if lookup.exception() is None and isinstance(claim := lookup.result(), Claim):
                    claim.release()

    def fit(self, picture: Picture, running: Collection[Picture], launches: int) -> bool:
        """Whether a picture's table has room beside those of the pictures that run.

        Args:
            picture: Would join at step 0.
            running: Each with the launches of its batch before it joined.
            launches: Of the batch that the picture would join.
        """
        budget = self._store.options.budget_bytes
        if budget is None or picture.plan.table is None:
            return True
        uses = [
            TableUse(one.job.tenant, one.plan.table, one.group, (one.group, joined))
            for one, joined in [*((one, one.joined) for one in running), (picture, launches)]
            if one.plan.table is not None
        ]
        return bytes_held(uses, joins_tables=self._backend.spec.joins_tables) <= budget


@dataclass(frozen=True)
class TableUse:
    """A picture that reads a table.

    Attributes:
        tenant: Whose the table is.
        plan: What the table is.
        launch: Equal for pictures of one launch.
        pace: Equal for pictures of one launch that are at the same step.
    """

    tenant: str
    plan: TablePlan
    launch: Hashable = None
    pace: Hashable = None


def bytes_held(uses: Iterable[TableUse], *, joins_tables: bool) -> int:
    """Bytes of tables on the device: a resident one once, a streamed one once for each pace.

    Args:
        uses: By running pictures.
        joins_tables: The backend reads several tables of a launch from a copy: resident ones count
            once more.
    """
    uses = list(uses)
    held = {
        (use.tenant, use.plan.key, None if use.plan.is_resident else use.pace): use.plan
        for use in uses
    }
    total = sum(plan.device_bytes for plan in held.values())
    if not joins_tables:
        return total
    launches: dict[Hashable, dict[Hashable, TablePlan]] = {}
    for use in uses:
        launches.setdefault(use.launch, {})[use.tenant, use.plan.key] = use.plan
    for plans in launches.values():
        # Of a launch that streams a table, all are read entry by entry.
        if len(plans) > 1 and all(plan.is_resident for plan in plans.values()):
            total += sum(plan.device_bytes for plan in plans.values())
    return total
