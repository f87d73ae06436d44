"""What a site with a schema for each customer adds; docs/installing.md shows the same."""

from typing import Any


def use_callers_schema(connection: Any, caller: Any) -> None:
    """Let ``connection`` see the tables of the customer that ``caller`` works for."""
    connection.set_tenant(caller.tenant, include_public=caller.include_public_schema)
