"""Device memory of the reference tables that running pictures read."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from bootpig_rt.reference.reference_pass import TablePlan


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
