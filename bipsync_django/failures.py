"""What a person is told when a sign-in ends without them being signed in.

The sentences are for staff members: no vocabulary of OAuth, and never the provider's own text.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

__all__ = ["FAILURES", "Failure"]


@dataclass(frozen=True)
class Failure:
    """One way for a sign-in to end: the HTTP status, a heading and a sentence or two.

    ``needs_administrator`` says that trying again alone will not help.
    """

    status: int
    title: Promise
    text: Promise
    needs_administrator: bool = False


FAILURES: Mapping[str, Failure] = {
    "declined": Failure(
        403,
        _("You did not give permission"),
        _("You chose not to let this site sign you in with Bipsync, so nothing has changed."),
    ),
    "unknown_state": Failure(
        400,
        _("This sign-in was not started here"),
        _(
            "It may have been started in another browser, or too long ago. Start again from "
            "this page."
        ),
    ),
    "expired_state": Failure(
        400,
        _("This sign-in took too long"),
        _("For your safety a sign-in has to be finished within ten minutes."),
    ),
    "replayed_state": Failure(
        400,
        _("This sign-in link was used already"),
        _("Each sign-in works once. If you are not signed in yet, start again."),
    ),
    "incomplete": Failure(
        400,
        _("The sign-in did not come back complete"),
        _("Something was missing on the way back from Bipsync."),
    ),
    "code_refused": Failure(
        400,
        _("Bipsync did not confirm the sign-in"),
        _("This can happen when a page is reloaded half-way through."),
    ),
    "unavailable": Failure(
        503,
        _("Bipsync cannot be reached"),
        _("It is not you. Please wait a minute, then try again."),
    ),
    "storage_unavailable": Failure(
        503,
        _("This site cannot sign you in at the moment"),
        _("It is not you, and not Bipsync. Please wait a minute, then try again."),
    ),
    "misconfigured": Failure(
        503,
        _("Signing in with Bipsync is not set up correctly"),
        _("It is not you. An administrator of this site has to look at it."),
        needs_administrator=True,
    ),
    "token_refused": Failure(
        502,
        _("Bipsync's answer could not be trusted"),
        _("You have not been signed in, to be on the safe side."),
        needs_administrator=True,
    ),
    "not_allowed": Failure(
        403,
        _("You do not have access to this site"),
        _("Bipsync knows you, but this site does not let your account in."),
        needs_administrator=True,
    ),
    "no_account": Failure(
        403,
        _("You do not have an account here yet"),
        _("Bipsync knows you. An administrator of this site has to give you an account first."),
        needs_administrator=True,
    ),
    "account_exists": Failure(
        403,
        _("Your account could not be created"),
        _("Another account here looks like yours. An administrator has to connect the two."),
        needs_administrator=True,
    ),
    "no_email": Failure(
        403,
        _("Your account could not be created"),
        _("Your Bipsync profile shows no e-mail address, and this site needs one."),
        needs_administrator=True,
    ),
    "inactive": Failure(
        403,
        _("Your account is switched off"),
        _("An administrator of this site has switched your account off."),
        needs_administrator=True,
    ),
}
