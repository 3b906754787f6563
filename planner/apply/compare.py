"""What a plan promised beside what a host did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from planner.apply.plan import Plan
from planner.apply.work import PartitionReport, Report, report_of
from planner.errors import DataError

__all__ = ["PlanComparison", "compare_plan", "read_report"]


@dataclass(frozen=True, slots=True)
class PlanComparison:
    """One partition: frames that the plan expects to be freed, and that are freed.

    `error` is measured / expected - 1, None where nothing is expected or measured. `is_net` says
    that the expectation is less the kernel's metadata, which the module does not have.
    `explanations` are the reasons, with pages, why a page was not merged.
    """

    name: str
    expected_pages: int | None
    is_net: bool
    measured_pages: int | None
    explanations: dict[str, int]

    @property
    def error(self) -> float | None:
        """By which share more was freed than expected."""
        if self.expected_pages is None or self.measured_pages is None:
            return None
        if self.expected_pages == 0:
            return 0.0 if self.measured_pages == 0 else None
        return self.measured_pages / self.expected_pages - 1

    def is_within(self, limit: float) -> bool:
        """Whether the difference is at most `limit`, a share; not where nothing can be said."""
        if self.expected_pages == 0:
            return self.measured_pages == 0
        return self.error is not None and abs(self.error) <= limit


def read_report(path: Path) -> Report:
    """Read what `planner apply --json` wrote; DataError."""
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise DataError("it is not a report of `planner apply`",
                            instead="write one with --json")
        return report_of(document)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path),
                        instead="give a file that `planner apply --json` wrote") from error
    except (ValueError, RecursionError) as error:
        raise DataError("it is no JSON document", where=str(path),
                        instead="give a file that `planner apply --json` wrote") from error
    except DataError as error:
        raise DataError(error.what, where=str(path), instead=error.instead) from error


def compare_plan(plan: Plan, report: Report) -> list[PlanComparison]:
    """One row per partition of the plan, in its order.

    DataError when the report is of another plan, or of an undo. A partition that lacks members
    here, or that failed, has no expectation.
    """
    if report.plan_digest != plan.digest:
        raise DataError("the report is of another plan",
                        instead="give the plan that was applied, as it was")
    if report.action != "apply":
        raise DataError("the report is of an undo", instead="give one of `planner apply PLAN`")
    by_name = {part.name: part for part in report.partitions}
    return [_compare(by_name[each.name], len(each.members))
            for each in plan.partitions if each.name in by_name]


def _compare(part: PartitionReport, n_members: int) -> PlanComparison:
    is_whole = len(part.members) == n_members and part.error is None
    return PlanComparison(part.name, part.expected_pages if is_whole else None, part.is_net,
                          part.pages_sharing, part.refused)
