"""The life of a grant: sign-in, refresh, disconnect. The only writer of token rows.

A refresh token is good once, so two rules carry the rest. Before a refresh token is sent, a
committed lease says that it is being sent, and by whom. After the answer, the new pair is stored
guarded by the generation that was sent and never by the lease: an owner whose lease ran out while
Bipsync was slow still holds the only live pair.

``use`` and ``background`` are the two who want a refresh, ``protocol`` carries one out,
``validation`` looks at what came, ``changes`` is what people do, ``service`` is the account of the
site itself, ``tenants`` gives up all grants of a tenant, ``encryption`` changes keys, and all of
them work on ``rows``.
"""

from .background import TAKEN_FOR, Outcome, refresh_asked, refresh_if_due, take_due
from .changes import disconnect, end_sessions, link, sign_in, unlink
from .encryption import KeySurvey, is_on_old_key, reencrypt, survey_keys
from .service import authorise_service, confirm_service, prune_unconfirmed
from .tenants import (
    RemovedTenant,
    TenantGivenUp,
    give_up_tenant,
    remains_of,
    removed_tenants,
)
from .use import access_token, grant_of, refresh, replace_refused, retry, service_grant_of

__all__ = [
    "TAKEN_FOR",
    "KeySurvey",
    "Outcome",
    "RemovedTenant",
    "TenantGivenUp",
    "access_token",
    "authorise_service",
    "confirm_service",
    "disconnect",
    "end_sessions",
    "give_up_tenant",
    "grant_of",
    "is_on_old_key",
    "link",
    "prune_unconfirmed",
    "reencrypt",
    "refresh",
    "refresh_asked",
    "refresh_if_due",
    "remains_of",
    "removed_tenants",
    "replace_refused",
    "retry",
    "service_grant_of",
    "sign_in",
    "survey_keys",
    "take_due",
    "unlink",
]
