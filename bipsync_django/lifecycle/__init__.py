"""The life of a grant: sign-in, refresh, disconnect. The only writer of token rows.

A refresh token is good once, so two rules carry the rest. Before a refresh token is sent, a
committed lease says that it is being sent, and by whom. After the answer, the new pair is stored
guarded by the generation that was sent and never by the lease: an owner whose lease ran out while
Bipsync was slow still holds the only live pair.

``use`` and ``background`` are the two who want a refresh, ``protocol`` carries one out,
``validation`` looks at what came, ``changes`` is what people do, ``connect`` joins an account to
who is signed in, ``service`` is the account of the site itself, and both let a pair wait
(``waiting``). ``tenants`` gives up all grants of a tenant, ``encryption`` changes keys, and all of
them work on ``rows``.
"""

from .background import TAKEN_FOR, Outcome, refresh_asked, refresh_if_due, take_due
from .changes import (
    discard,
    disconnect,
    end_sessions,
    link,
    sign_in,
    spend_abandoned,
    unlink,
)
from .connect import claims_of, confirm_connection, connection_at, hold_connection, may_be_confirmed
from .encryption import KeySurvey, is_on_old_key, reencrypt, survey_keys
from .rows import Identity
from .service import authorise_service, confirm_service
from .tenants import (
    RemovedTenant,
    TenantGivenUp,
    give_up_tenant,
    remains_of,
    removed_tenants,
)
from .use import access_token, grant_of, refresh, replace_refused, retry, service_grant_of
from .waiting import CONFIRMED_WITHIN, prune_unconfirmed

__all__ = [
    "CONFIRMED_WITHIN",
    "TAKEN_FOR",
    "Identity",
    "KeySurvey",
    "Outcome",
    "RemovedTenant",
    "TenantGivenUp",
    "access_token",
    "authorise_service",
    "claims_of",
    "confirm_connection",
    "confirm_service",
    "connection_at",
    "discard",
    "disconnect",
    "end_sessions",
    "give_up_tenant",
    "grant_of",
    "hold_connection",
    "is_on_old_key",
    "link",
    "may_be_confirmed",
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
    "spend_abandoned",
    "survey_keys",
    "take_due",
    "unlink",
]
