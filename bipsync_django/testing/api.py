"""A little of the tenant's data API: enough to see a token work, or not."""

import json
from typing import Any

from . import graphql
from .messages import Request, Response, json_response
from .people import SimulatedUser
from .provider import Provider
from .store import Pair
from .tokens import ApiRefusedError

RESEARCH: tuple[dict[str, Any], ...] = (
    {
        "id": "68c1a0f3d2417f0c9a5b1e01",
        "title": "Q2 results: pricing holds, volumes soften",
        "company": "Northwind Traders",
        "author": "Ada Lovelace",
        "date": "2026-07-28",
        "rating": "Hold",
    },
    {
        "id": "68c1a0f3d2417f0c9a5b1e02",
        "title": "Site visit: new fab ahead of schedule",
        "company": "Contoso Semiconductor",
        "author": "Grace Hopper",
        "date": "2026-08-14",
        "rating": "Buy",
    },
    {
        "id": "68c1a0f3d2417f0c9a5b1e03",
        "title": "Call with the CFO: refinancing and the dividend",
        "company": "Fabrikam Utilities",
        "author": "Ada Lovelace",
        "date": "2026-09-03",
        "rating": "Reduce",
    },
    {
        "id": "68c1a0f3d2417f0c9a5b1e04",
        "title": "Initiation: a quiet compounder in speciality glass",
        "company": "Glashütte Süd",
        "author": "Zoë Müller-Łukasz",
        "date": "2026-09-22",
        "rating": "Buy",
    },
    {
        "id": "68c1a0f3d2417f0c9a5b1e05",
        "title": "Channel checks: shelf space regained",
        "company": "Northwind Traders",
        "author": "Grace Hopper",
        "date": "2026-10-06",
        "rating": "Buy",
    },
)
PROJECTS: tuple[dict[str, Any], ...] = (
    {"id": "68d20b71d2417f0c9a5b2f01", "name": "European utilities", "stage": "Due diligence"},
    {"id": "68d20b71d2417f0c9a5b2f02", "name": "Semiconductor supply chain", "stage": "Monitoring"},
)

_ROOT_SCOPES = {"users": "users:read", "research": "research:read", "projects": "projects:read"}


def _user(user: SimulatedUser) -> dict[str, Any]:
    return {
        "id": user.id,
        "name": user.name,
        "givenName": user.given_name,
        "familyName": user.family_name,
        "email": user.email,
    }


def _require(pair: Pair, *scopes: str) -> None:
    if not any(scope in pair.scopes for scope in scopes):
        raise ApiRefusedError(f"The access token lacks the `{scopes[0]}` scope")


def _me(provider: Provider, request: Request, pair: Pair) -> Response:
    _require(pair, "users:read", "rest_api:read")
    user = provider.users[pair.user_id]
    return json_response({**_user(user), "scopes": pair.scopes})


def _users(provider: Provider, request: Request, pair: Pair) -> Response:
    _require(pair, "users:read", "rest_api:read")
    return json_response([_user(user) for user in list(provider.users.values())])


def _research(provider: Provider, request: Request, pair: Pair) -> Response:
    _require(pair, "rest_api:read", "research:read")
    return json_response(RESEARCH)


def _graphql(provider: Provider, request: Request, pair: Pair) -> Response:
    try:
        body = json.loads(request.body)
        query, variables = body["query"], body.get("variables") or {}
        if not isinstance(query, str) or not isinstance(variables, dict):
            raise TypeError("query must be a string and variables an object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return json_response({"errors": [{"message": "The body must be {query, variables}."}]}, 400)
    try:
        fields = graphql.parse(query, variables)
        for field in fields:
            if field.name in _ROOT_SCOPES:
                _require(pair, _ROOT_SCOPES[field.name])
        return json_response(
            {"data": {field.key: _resolve_root(provider, field) for field in fields}}
        )
    except graphql.GraphQLError as error:
        return json_response({"errors": [{"message": str(error)}]}, 400)


def _resolve_root(provider: Provider, field: graphql.Field) -> dict[str, Any]:
    if field.name == "users":
        rows = [_user(user) for user in list(provider.users.values())]
    elif field.name in _ROOT_SCOPES:
        rows = list(RESEARCH if field.name == "research" else PROJECTS)
    else:
        raise graphql.GraphQLError(f'Cannot query field "{field.name}" on type "Query".')
    conditions = field.arguments.get("filter") or {}
    for name, condition in conditions.items():
        if not isinstance(condition, dict) or set(condition) != {"equals"}:
            raise graphql.GraphQLError(f'Filter "{name}" is simulated with "equals" only.')
        rows = [row for row in rows if row.get(name) == condition["equals"]]
    first = field.arguments.get("first")
    page = rows[:first] if isinstance(first, int) else rows
    connection = {
        "edges": [{"cursor": row["id"], "node": row} for row in page],
        "pageInfo": {
            "hasNextPage": len(page) < len(rows),
            "endCursor": page[-1]["id"] if page else None,
        },
        "totalCount": len(rows),
    }
    selected: dict[str, Any] = _select(connection, field)
    return selected


def _select(value: Any, field: graphql.Field) -> Any:
    if isinstance(value, list):
        return [_select(item, field) for item in value]
    if not isinstance(value, dict):
        if field.fields:
            raise graphql.GraphQLError(f'Field "{field.name}" must not have a selection.')
        return value
    if not field.fields:
        raise graphql.GraphQLError(f'Field "{field.name}" must have a selection of subfields.')
    selected = {}
    for wanted in field.fields:
        if wanted.name not in value:
            raise graphql.GraphQLError(f'Cannot query field "{wanted.name}" in "{field.name}".')
        selected[wanted.key] = _select(value[wanted.name], wanted)
    return selected


_ROUTES = {
    "/v1/users/me": ("GET", _me),
    "/v1/users": ("GET", _users),
    "/v1/research": ("GET", _research),
    "/v1/graphql": ("POST", _graphql),
}


def is_api_path(path: str) -> bool:
    """Return whether ``path`` belongs to the data API."""
    return path in _ROUTES


def answer(provider: Provider, request: Request) -> Response:
    """Answer a request to the data API; 401 for a bad token and for a missing scope alike."""
    method, view = _ROUTES[request.path]
    if request.method != method:
        return json_response({"error": "method_not_allowed"}, 405, headers={"Allow": method})
    try:
        pair = provider.bearer(request.headers.get("Authorization"))
        return view(provider, request, pair)
    except ApiRefusedError as error:
        return provider.refuse_api(error.hint)
