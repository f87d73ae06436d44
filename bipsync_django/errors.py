"""The short codes of ``BipsyncToken.last_error`` and ``TokenEvent.reason`` in plain words."""

from collections.abc import Mapping

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

__all__ = ["WORDS", "explain"]

WORDS: Mapping[str, Promise] = {
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
    "is_staff": _("By a claim (STAFF)."),
    "is_superuser": _("By a claim (SUPERUSER)."),
    "many_dead": _("Many permissions ended in a row; check CLIENT, CLIENT_ID and the URLs."),
    "no_refresh_token": _("Bipsync handed out no means to refresh; the person has to sign in."),
    "other_deployment": _("These permissions are in use by another deployment of this site."),
    "outage": _("Bipsync failed many times in a row; calls are held back for a short while."),
    "other_application": _("The permission was given to another client id than today's."),
    "other_subject": _("Bipsync answered with another person's token; it was thrown away."),
    "rate_limited": _("Bipsync asks to slow down."),
    "secret_renewed": _("The client secret was renewed in its store; the next try uses it."),
    "secret_unreadable": _("The stored token cannot be decrypted; check FIELD_ENCRYPTION_KEY."),
    "server_error": _("Bipsync had an internal error."),
    "timeout": _("Bipsync did not answer in time."),
    "tls_error": _("Bipsync's certificate could not be verified."),
    "token_refused": _("Bipsync's token did not validate and is held back."),
    "too_large": _("Bipsync's answer was too large."),
    "unauthorized_client": _("Bipsync does not allow this application to do that."),
    "unexpected_answer": _("Bipsync's answer was not understood."),
    "unsupported_grant_type": _("Bipsync does not allow this application to refresh."),
    "wrong_endpoint": _("There is no token endpoint at TOKEN_URL."),
}


def explain(code: str) -> str:
    """Return ``code`` in plain words; an unknown code is returned as it is."""
    return str(WORDS.get(code, code))
