"""The ledger against the provider's own count: how far apart, and what may be the cause."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Connection, text

ROUNDING = Decimal("0.005")
"""What one charge may differ by: the provider shows 26.496 as 26.50, by a rule it doesn't tell."""


@dataclass(frozen=True)
class Cause:
    """Something that may have moved one count and not the other."""

    name: str
    count: int
    credits: Decimal
    """By how much at most."""
    adds: bool
    """Whether the provider's count is the higher one for it; rounding goes both ways."""


@dataclass(frozen=True)
class Drift:
    """Both counts between the first snapshot of the balance and the latest."""

    since: datetime
    until: datetime
    provider: Decimal
    """By how much `used_credits` grew."""
    ledger: Decimal
    """What was charged in the ledger."""
    causes: tuple[Cause, ...]

    @property
    def credits(self) -> Decimal:
        """Positive: the provider took more than the ledger knows of."""
        return self.provider - self.ledger

    @property
    def unexplained(self) -> Decimal:
        """What no cause accounts for; nought if together they can."""
        rounding = sum((c.credits for c in self.causes if c.name == "rounding"), Decimal(0))
        same_way = sum(
            (
                c.credits
                for c in self.causes
                if c.name != "rounding" and c.adds == (self.credits > 0)
            ),
            Decimal(0),
        )
        return max(Decimal(0), abs(self.credits) - same_way - rounding)

    @property
    def large(self) -> bool:
        """Whether somebody should look: more than a credit and than a hundredth is unexplained."""
        return self.unexplained > max(Decimal(1), self.ledger / 100)

    def explain(self) -> str:
        """The figures and the likely causes, in a line."""
        said = (
            f"the provider took {_plain(self.provider)} credits since"
            f" {self.since.astimezone(UTC):%Y-%m-%d %H:%M}Z, the ledger has {_plain(self.ledger)}"
        )
        if not self.credits:
            return f"{said}: no drift"
        likely = [
            f"{cause.name} ({cause.count}, up to {_plain(cause.credits)})"
            for cause in self.causes
            if cause.name == "rounding" or cause.adds == (self.credits > 0)
        ]
        causes = f"; likely: {', '.join(likely)}" if likely else ""
        left = f"; {_plain(self.unexplained)} unexplained" if self.unexplained else ""
        return f"{said}: a drift of {_plain(self.credits)}{causes}{left}"


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}" if amount else "0"


_COUNTS = text(
    """
    WITH ends AS (
        SELECT (SELECT id FROM balance_snapshots ORDER BY at, id LIMIT 1) AS first,
               (SELECT id FROM balance_snapshots ORDER BY at DESC, id DESC LIMIT 1) AS last
    )
    SELECT f.at AS since, l.at AS until, l.used_credits - f.used_credits AS provider,
           (SELECT coalesce(sum(amount), 0) FROM ledger_entries
            WHERE kind = 'charged' AND at > f.at AND at <= l.at) AS ledger,
           (SELECT count(*) FROM ledger_entries
            WHERE kind = 'charged' AND at > f.at AND at <= l.at) AS charges
    FROM ends JOIN balance_snapshots f ON f.id = ends.first
    JOIN balance_snapshots l ON l.id = ends.last
    WHERE ends.first <> ends.last
    """
)

_CAUSES = text(
    """
    SELECT 'foreign tasks' AS name, true AS adds, count(*) AS n,
           coalesce(sum(credit_cost), 0) AS credits
    FROM stray_tasks WHERE kind IN ('foreign', 'possible') AND status = 'completed'
      AND last_seen_at >= :since AND first_seen_at <= :until
    UNION ALL
    SELECT 'completed, not looked at yet', true, count(*),
           coalesce(sum(greatest(estimated_cost, credit_cost)), 0)
    FROM generations WHERE status IN ('submitting', 'uncertain', 'running')
    UNION ALL
    SELECT 'seen to complete since the latest look', true, count(*), coalesce(sum(amount), 0)
    FROM ledger_entries WHERE kind = 'charged' AND at > :until
    UNION ALL
    SELECT 'second tasks that have not ended', true, count(*), coalesce(sum(credit_cost), 0)
    FROM stray_tasks WHERE kind = 'second'
      AND status NOT IN ('completed', 'failed', 'cancelled', 'expired')
    UNION ALL
    SELECT 'given up while undecided', true, count(*), coalesce(sum(estimated_cost), 0)
    FROM generations WHERE status = 'failed' AND error_code = 'GIVEN_UP' AND credit_cost IS NULL
      AND finished_at > :since
    UNION ALL
    SELECT 'charges that the provider did not name', assumed.adds, count(c.amount),
           coalesce(sum(c.amount), 0)
    FROM (VALUES (true), (false)) assumed (adds)
    LEFT JOIN ledger_entries c ON c.kind = 'charged' AND c.assumed AND c.at > :since
      AND c.at <= :until
    GROUP BY assumed.adds
    UNION ALL
    SELECT 'charged before the first look, seen after it', false, count(*),
           coalesce(sum(c.amount), 0)
    FROM ledger_entries c WHERE c.kind = 'charged' AND c.at > :since AND c.at <= :until
      AND EXISTS (SELECT FROM ledger_entries r WHERE r.generation_id = c.generation_id
                  AND r.kind = 'reserved' AND r.at <= :since)
    """
)


def drift(conn: Connection) -> Drift | None:
    """How far the counts are apart; None before there are two snapshots of the balance."""
    row = conn.execute(_COUNTS).one_or_none()
    if row is None:
        return None
    causes = [
        Cause(c.name, c.n, c.credits, c.adds)
        for c in conn.execute(_CAUSES, {"since": row.since, "until": row.until})
        if c.n
    ]
    if row.charges:
        # Also of amounts that end in half a hundredth.
        causes.append(Cause("rounding", row.charges, row.charges * ROUNDING, adds=True))
    return Drift(row.since, row.until, row.provider, row.ledger, tuple(causes))
