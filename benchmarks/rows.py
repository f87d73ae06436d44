"""Many rows, made by the database itself."""

from datetime import UTC, datetime
from typing import Any

from django.db import connections, models

from tests.databases import Router

__all__ = ["Expression", "choose", "insert", "moment", "text"]

Expression = tuple[str, list[Any]]
"""SQL over the row's number ``n``, and its parameters."""


def _numbers(vendor: str, count: int) -> tuple[str, str]:
    """Return what goes before SELECT and after FROM to get ``n`` from 1 to ``count``."""
    if vendor == "postgresql":
        return "", f"generate_series(1, {count}) AS numbers(n)"
    if vendor == "mysql":
        return "", f"(SELECT seq AS n FROM seq_1_to_{count}) AS numbers"  # noqa: S608
    recursion = f"SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}"  # noqa: S608
    return f"WITH RECURSIVE numbers(n) AS ({recursion}) ", "numbers"


def text(vendor: str) -> str:
    """Return SQL for a text of its own for each row."""
    return "CONCAT('person', n)" if vendor == "mysql" else "'person' || n"


def moment(vendor: str, base: datetime) -> Expression:
    """Return ``base`` plus up to an hour, spread over the rows in no order."""
    seconds = "(CAST(n AS BIGINT) * 7919) %% 3600" if vendor != "mysql" else "(n * 7919) MOD 3600"
    utc = base.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if vendor == "postgresql":
        return f"%s::timestamptz + ({seconds}) * interval '1 second'", [f"{utc}+00"]
    if vendor == "mysql":
        return f"TIMESTAMPADD(SECOND, {seconds}, %s)", [utc]
    return f"datetime(%s, ({seconds}) || ' seconds')", [utc]


def choose(condition: str, then: Expression, otherwise: Expression) -> Expression:
    """Return ``then`` for the rows for which ``condition`` holds."""
    sql = f"CASE WHEN {condition} THEN {then[0]} ELSE {otherwise[0]} END"
    return sql, then[1] + otherwise[1]


def insert(model: type[models.Model], count: int, given: dict[str, Expression]) -> None:
    """Insert ``count`` rows; what is not ``given`` gets the field's default."""
    connection = connections[Router.alias]
    quote = connection.ops.quote_name
    before, after = _numbers(connection.vendor, count)
    columns, selected, parameters = [], [], list[Any]()
    for field in model._meta.concrete_fields:
        value = field.get_db_prep_save(field.get_default(), connection)
        sql, values = given.get(field.name, ("%s", [value]))
        columns.append(quote(str(field.column)))
        selected.append(sql)
        parameters += values
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(model._meta.db_table)} ({', '.join(columns)}) "  # noqa: S608
            f"{before}SELECT {', '.join(selected)} FROM {after}",
            parameters,
        )
        # As autovacuum and its likes leave a table.
        analyze = {"mysql": "ANALYZE TABLE", "postgresql": "VACUUM ANALYZE"}.get(
            connection.vendor, "ANALYZE"
        )
        cursor.execute(f"{analyze} {quote(model._meta.db_table)}")
