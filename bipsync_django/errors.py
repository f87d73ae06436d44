"""The short codes of ``BipsyncToken.last_error`` and ``TokenEvent.reason`` in plain words.

``docs/tokens.md`` says more about each.
"""

from collections.abc import Mapping

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

__all__ = ["ADVICE", "WORDS", "advise", "explain"]

WORDS: Mapping[str, Promise] = {
    "access_reset": _("The user's password was made unusable, and all their sessions ended."),
    "answer_lost": _("The answer to an earlier refresh was lost; the person has to sign in again."),
    "busy": _("This site was too busy to refresh; it tries again."),
    "connection_error": _("Bipsync could not be reached."),
    "configuration": _("This site's settings for Bipsync are not complete."),
    "disabled": _("Refreshing is switched off (REFRESH_ENABLED)."),
    "forbidden": _("Bipsync does not accept calls from this server's address (IP allow-list)."),
    "invalid_client": _("Bipsync refused the client id or client secret."),
    "invalid_grant": _("Bipsync says that the permission was withdrawn or has run out."),
    "invalid_request": _("Bipsync refused the request's form; check the application's settings."),
    "invalid_scope": _("Bipsync refused the scopes."),
    "kept_wider": _("The permission that was there allows more, and was kept."),
    "group": _("By a claim (GROUPS)."),
    "inactive": _("The person's account on this site is switched off."),
    "is_staff": _("By a claim (STAFF)."),
    "is_superuser": _("By a claim (SUPERUSER)."),
    "many_dead": _("Many permissions ended in a row; check CLIENT, CLIENT_ID and the URLs."),
    "no_refresh_token": _("Bipsync handed out no means to refresh; the person has to sign in."),
    "other_deployment": _("These permissions are in use by another deployment of this site."),
    "outage": _("Bipsync failed many times in a row; calls are held back for a short while."),
    "other_application": _("The permission was given to another client id than today's."),
    "other_row": _("The database connection shows another customer's rows; nothing was sent."),
    "other_subject": _("Bipsync answered with another person's token; it was thrown away."),
    "rate_limited": _("Bipsync asks to slow down."),
    "recent": _("It was refreshed a moment ago, and needs no other refresh."),
    "secret_renewed": _("The client secret was renewed in its store; the next try uses it."),
    "secret_unreadable": _("The stored token cannot be decrypted; check FIELD_ENCRYPTION_KEY."),
    "server_error": _("Bipsync had an internal error."),
    "timeout": _("Bipsync did not answer in time."),
    "tls_error": _("Bipsync's certificate could not be verified."),
    "token_refused": _("Bipsync's token did not validate and is held back."),
    "too_large": _("Bipsync's answer was too large."),
    "unauthorized_client": _("Bipsync does not allow this application to do that."),
    "unexpected_answer": _("Bipsync's answer was not understood."),
    "unknown_tenant": _("The tenant is not in this site's settings."),
    "unexpected_token_type": _("Bipsync's token is no Bearer token, and was not used."),
    "unsupported_grant_type": _("Bipsync does not allow this application to refresh."),
    "vouched": _("A rule of this site vouched for it; the user's password and sessions stay."),
    "wrong_endpoint": _("There is no token endpoint at TOKEN_URL."),
}

_SIGN_IN = _("Ask the person to sign in with Bipsync once more.")
_WAIT = _("Nothing: it is tried again by itself.")
_APPLICATION = _("Look at the application at Bipsync, and at CLIENT_ID and CLIENT_SECRET here.")

ADVICE: Mapping[str, Promise] = {
    "answer_lost": _SIGN_IN,
    "busy": _WAIT,
    "configuration": _("Run manage.py bipsync_doctor on the server, and mend what it names."),
    "connection_error": _("See whether this server reaches Bipsync: DNS, firewall, proxy."),
    "disabled": _("Switch REFRESH_ENABLED on again."),
    "forbidden": _("Have this server's outgoing address added to the allow-list at Bipsync."),
    "inactive": _("Switch the account on again, if that is right."),
    "invalid_client": _("Correct CLIENT_ID or CLIENT_SECRET. Nobody has to sign in again."),
    "invalid_grant": _SIGN_IN,
    "invalid_request": _APPLICATION,
    "invalid_scope": _("See which scopes the application may use at Bipsync, and correct SCOPES."),
    "many_dead": _("Check CLIENT, CLIENT_ID and the URLs before people sign in again."),
    "no_refresh_token": _("If many have it, ask Bipsync to allow the application to refresh."),
    "other_application": _("Put the old CLIENT_ID back, or ask the person to sign in."),
    "other_deployment": _("Run manage.py bipsync_deployment on the server: it says whose it is."),
    "other_row": _("Set PREPARE_CONNECTION: see A schema for each customer, in the docs."),
    "other_subject": _("Keep the log and tell Bipsync. Ask the person to sign in once more."),
    "outage": _WAIT,
    "rate_limited": _WAIT,
    "secret_renewed": _WAIT,
    "secret_unreadable": _("Put the key that encrypted it back into FIELD_ENCRYPTION_KEY."),
    "server_error": _WAIT,
    "timeout": _WAIT,
    "tls_error": _("Check this server's clock, its CA certificates and CA_BUNDLE."),
    "token_refused": _("Check this server's clock, and AUDIENCE, ISSUER and JWKS_URL."),
    "too_large": _("See what answers at TOKEN_URL: it is not Bipsync."),
    "unauthorized_client": _APPLICATION,
    "unexpected_answer": _("If it lasts, see what answers at TOKEN_URL."),
    "unknown_tenant": _("Run manage.py bipsync_give_up, or put the tenant back into BIPSYNC."),
    "unexpected_token_type": _("Look at the application's settings at Bipsync, or ask Bipsync."),
    "unsupported_grant_type": _APPLICATION,
    "wrong_endpoint": _("Correct CLIENT, API_URL or TOKEN_URL."),
}
"""What an administrator does about it."""


def explain(code: str) -> str:
    """Return ``code`` in plain words; an unknown code is returned as it is."""
    return str(WORDS.get(code, code))


def advise(code: str) -> str:
    """Return what an administrator does about ``code``; nothing for one that asks for nothing."""
    return str(ADVICE.get(code, ""))
