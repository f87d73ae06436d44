"""Who is let in, as whom, and with which rights: the specification, as a table.

Each row is one sign-in. ``there`` are the users of the site before it, ``policy`` the settings,
``claims`` what Bipsync says of the person beside their id and name. The outcome is the user's
name, ``NEW`` for somebody who was created, or the reason of a refusal; then the rights that the
person has afterwards, and whether the password that they had still works.

Databases disagree about which letters are the same, so each row runs on each of them.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User

from bipsync_django import lifecycle
from bipsync_django.backends import Vouched
from bipsync_django.exceptions import SignInRefused
from bipsync_django.models import BipsyncToken, GivenFlag, TokenEvent
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from tests.browser import CALLBACK, LOGIN, Browser

NEW = "(new)"
NORA = "68b993fa85d14160d5030301"
MAIL = "nora@acme.example"


@dataclass(frozen=True)
class There:
    """A user of the site before the sign-in. ``links`` are Bipsync accounts that they have.

    With ``unlinked`` they had these accounts, until an administrator unlinked them.
    """

    username: str
    email: str = ""
    staff: bool = False
    superuser: bool = False
    active: bool = True
    groups: tuple[str, ...] = ()
    permission: bool = False
    links: tuple[tuple[str, str], ...] = ()
    unlinked: bool = False


@dataclass(frozen=True)
class Case:
    """One row. ``email`` is the address that the user has afterwards, where that matters."""

    name: str
    policy: dict[str, Any] = field(default_factory=dict)
    there: tuple[There, ...] = ()
    claims: dict[str, Any] = field(default_factory=dict)
    outcome: str = NEW
    staff: bool = False
    superuser: bool = False
    groups: tuple[str, ...] = ()
    keeps_password: bool = True
    email: str | None = None
    tenant: str = "acme"


MATCH = {"MATCH_USERS_BY": {"TENANT": "acme", "VERIFIED_CLAIM": "email_verified"}}
TRUST = {"MATCH_USERS_BY": {"TENANT": "acme", "TRUST_UNVERIFIED": True}}
ELSEWHERE = {"MATCH_USERS_BY": {"TENANT": "acme", "CLAIM": "work.mail", "TRUST_UNVERIFIED": True}}
VERIFIED = {"email": MAIL, "email_verified": True}
PLAIN = There("nora", MAIL)
KNOWN: dict[str, Any] = {"links": (("acme", NORA),)}

DOMAINS = {"ALLOWED_EMAIL_DOMAINS": ["acme.example", "Acme.Test"]}
STAFF = {"STAFF": {"roles": ["admin", "it"]}}
MAPPED = {**MATCH, "CLAIMS": {"email": "work.mail"}}
BOTH = {**STAFF, "SUPERUSER": {"profile.level": [9]}}
GROUPS = {
    "GROUPS": {
        "teams": {"research": "Analysts", "ops": ["Operations", "Analysts"]},
        "office": {"london": "London"},
    }
}


def by_username(tenant: Any, claims: Any) -> User | None:
    return User.objects.filter(username=claims.claims.get("login")).first()


def vouched_by_username(tenant: Any, claims: Any) -> Vouched | None:
    user = by_username(tenant, claims)
    return None if user is None else Vouched(user)


def not_stored(tenant: Any, claims: Any) -> User:
    return User(username="nn")


def vouch_for_nonsense(tenant: Any, claims: Any) -> Vouched:
    return Vouched("nora")  # type: ignore[arg-type]


def refuse_everybody(tenant: Any, claims: Any) -> None:
    raise SignInRefused("no_account", "The directory does not know them.")


def break_down(tenant: Any, claims: Any) -> None:
    raise KeyError("login")


def wrong(tenant: Any, claims: Any) -> str:
    return "nora"


ASKED = {"USER_RESOLVER": by_username}
VOUCHED = {"USER_RESOLVER": vouched_by_username}

# fmt: off
CASES = [
    # --- nobody is taken over unless it was asked for
    Case("a stranger gets an account without rights"),
    Case("a user of the same address is somebody else", there=(PLAIN,), claims=VERIFIED),
    Case("so is a superuser", there=(There("root", MAIL, superuser=True),), claims=VERIFIED),
    Case("and a user of the same name", there=(There("nora"),)),
    Case("strangers stay out when accounts are not created", {"CREATE_USERS": False},
         outcome="no_account"),
    Case("people who are known come in all the same", {"CREATE_USERS": False}, (There("nora",
         **KNOWN),), outcome="nora"),
    Case("known people keep the rights that they were given here", {}, (There("nora", staff=True,
         superuser=True, groups=("Analysts",), **KNOWN),), outcome="nora", staff=True,
         superuser=True, groups=("Analysts",)),
    Case("who is switched off stays off", {}, (There("nora", active=False, **KNOWN),),
         outcome="inactive"),

    # --- MATCH_USERS_BY
    Case("one plain user with the verified address is joined, without their password", MATCH,
         (PLAIN,), VERIFIED, "nora", keeps_password=False),
    Case("upper and lower case are the same", MATCH, (There("nora", "Nora@ACME.example"),),
         VERIFIED, "nora", keeps_password=False),
    Case("an address that is not verified joins nobody, and hides nobody", MATCH, (PLAIN,),
         {"email": MAIL}, "account_exists"),
    Case("verified is True and nothing like it", MATCH, (PLAIN,), {**VERIFIED,
         "email_verified": "true"}, "account_exists"),
    Case("nor 1", MATCH, (PLAIN,), {**VERIFIED, "email_verified": 1}, "account_exists"),
    Case("trust may be given to every address", TRUST, (PLAIN,), {"email": MAIL}, "nora",
         keeps_password=False),
    Case("another claim may name it", ELSEWHERE, (PLAIN,), {"email": "x@acme.example",
         "work": {"mail": MAIL}}, "nora", keeps_password=False, email=MAIL),
    Case("and then the usual one does not", ELSEWHERE, (PLAIN,), {"email": MAIL}, email=""),
    Case("an account that an administrator unlinked is joined to nobody", MATCH, (There("nora",
         MAIL, **KNOWN, unlinked=True),), VERIFIED, "account_exists"),
    Case("nor to somebody else", MATCH, (There("norah", **KNOWN, unlinked=True), PLAIN), VERIFIED,
         "account_exists"),
    Case("without a match it is a stranger's", MATCH, (There("norah", **KNOWN, unlinked=True),),
         VERIFIED),
    Case("somebody else's unlinked account is no hindrance", MATCH, (There("nora", MAIL,
         links=(("acme", "another"),), unlinked=True),), VERIFIED, "nora", keeps_password=False),
    Case("the other tenant's people match nobody", MATCH, (PLAIN,), VERIFIED, tenant="globex",
         email=""),
    Case("two users with the address are one too many", MATCH, (PLAIN, There("norah",
         "NORA@acme.example")), VERIFIED, "account_exists"),
    Case("staff are never joined", MATCH, (There("nora", MAIL, staff=True),), VERIFIED,
         "account_exists"),
    Case("superusers are never joined", MATCH, (There("nora", MAIL, superuser=True),), VERIFIED,
         "account_exists"),
    Case("nobody in a group is joined", MATCH, (There("nora", MAIL, groups=("Analysts",)),),
         VERIFIED, "account_exists"),
    Case("nobody with a permission is joined", MATCH, (There("nora", MAIL, permission=True),),
         VERIFIED, "account_exists"),
    Case("nobody with another account at this tenant is joined", MATCH, (There("nora", MAIL,
         links=(("acme", "another"),)),), VERIFIED, "account_exists"),
    Case("nor with one at another tenant", MATCH, (There("nora", MAIL, links=(("globex",
         NORA),)),), VERIFIED, "account_exists"),
    Case("a break-glass user is never joined", {**MATCH, "BREAK_GLASS_USERS": ["nora"]},
         (PLAIN,), VERIFIED, "account_exists"),
    Case("nor one whose name is written in another case", {**MATCH, "BREAK_GLASS_USERS":
         ["Nora"]}, (PLAIN,), VERIFIED, "account_exists"),
    Case("who is switched off is not joined and let in", MATCH, (There("nora", MAIL,
         active=False),), VERIFIED, "inactive"),
    Case("another address is another person", MATCH, (There("nora", "nora@other.example"),),
         VERIFIED),
    Case("no address matches nobody without one", MATCH, (There("nora", ""),), {"email": "",
         "email_verified": True}),
    Case("null matches nobody", MATCH, (There("nora", ""),), {"email": None,
         "email_verified": True}),
    Case("a letter that only looks alike matches nobody", MATCH, (There("kim",
         "kim@acme.example"),), {"email": "\u212aim@acme.example", "email_verified": True}),
    Case("nor does one that a user has", MATCH, (There("kim", "\u212aim@acme.example"),),
         {"email": "kim@acme.example", "email_verified": True}),
    Case("nor an accent", MATCH, (There("nora", "n\u00f3ra@acme.example"),), VERIFIED),
    Case("an address that is not ASCII matches nobody, not even itself", MATCH, (There("nora",
         "nora@\u00e4cme.example"),), {"email": "nora@\u00e4cme.example", "email_verified": True}),
    Case("a known person is who they are, whatever their address says", MATCH, (There("norah",
         "x@acme.example", **KNOWN), PLAIN), VERIFIED, "norah"),
    Case("strangers still get an account", MATCH, claims=VERIFIED),
    Case("unless they are not to", {**MATCH, "CREATE_USERS": False}, claims=VERIFIED,
         outcome="no_account"),

    # --- which address a user gets, where people are matched by it
    Case("a verified address is kept", MATCH, claims=VERIFIED, email=MAIL),
    Case("another is not", MATCH, claims={"email": MAIL}, email=""),
    Case("a trusted one is", TRUST, claims={"email": MAIL}, email=MAIL),
    Case("but not from the other tenant", TRUST, claims={"email": MAIL}, tenant="globex", email=""),
    Case("not even a verified one", MATCH, claims=VERIFIED, tenant="globex", email=""),
    Case("nor from another claim than the matched one", MAPPED, claims={**VERIFIED,
         "work": {"mail": "boss@acme.example"}}, email=""),
    Case("nor from a callable", {**MATCH, "CLAIMS": {"email": lambda claims: "b@acme.example"}},
         claims=VERIFIED, email=""),
    Case("a person who comes back gets none either", MAPPED, (There("nora", "old@acme.example",
         **KNOWN),), {**VERIFIED, "work": {"mail": "boss@acme.example"}}, "nora",
         email="old@acme.example"),
    Case("the matched claim fills the field by itself", ELSEWHERE, claims={"email":
         "x@acme.example", "work": {"mail": MAIL}}, email=MAIL),
    Case("the matched claim may be another one", {**ELSEWHERE, "CLAIMS": {"email": "work.mail"}},
         claims={"work": {"mail": MAIL}}, email=MAIL),
    Case("an unverified address is no username either", {**MATCH, "CLAIMS": {"username": "email"}},
         claims={"email": MAIL}),
    Case("a verified one is", {**MATCH, "CLAIMS": {"username": "email"}}, (There(MAIL),), VERIFIED,
         "account_exists"),

    # --- USER_RESOLVER
    Case("a resolver names the user, who loses the password", ASKED, (There("nn"),),
         {"login": "nn"}, "nn", keeps_password=False),
    Case("by its dotted path too", {"USER_RESOLVER": "tests.test_who_comes_in.by_username"},
         (There("nn"),), {"login": "nn"}, "nn", keeps_password=False),
    Case("it is not trusted with staff", ASKED, (There("nn", staff=True),), {"login": "nn"},
         "account_exists"),
    Case("nor with superusers", ASKED, (There("nn", superuser=True),), {"login": "nn"},
         "account_exists"),
    Case("nor with the members of a group", ASKED, (There("nn", groups=("Analysts",)),),
         {"login": "nn"}, "account_exists"),
    Case("nor with anybody who has a permission", ASKED, (There("nn", permission=True),),
         {"login": "nn"}, "account_exists"),
    Case("nor with a break-glass user", {**ASKED, "BREAK_GLASS_USERS": ["nn"]}, (There("nn"),),
         {"login": "nn"}, "account_exists"),
    Case("nor with a user who has another account here", ASKED, (There("nn", links=(("acme",
         "another"),)),), {"login": "nn"}, "account_exists"),
    Case("nor with one who has an account at another tenant", ASKED, (There("nn",
         links=(("globex", "another"),)),), {"login": "nn"}, "account_exists"),
    Case("nor with an account that an administrator unlinked", ASKED, (There("nn", **KNOWN,
         unlinked=True),), {"login": "nn"}, "account_exists"),
    Case("nor with anybody inactive", ASKED, (There("nn", active=False),), {"login": "nn"},
         "inactive"),
    Case("unless it vouches: for administrators", VOUCHED, (There("nn", superuser=True,
         staff=True, groups=("Analysts",)),), {"login": "nn"}, "nn", True, True, ("Analysts",)),
    Case("for an account at another tenant", VOUCHED, (There("nn", links=(("globex",
         "another"),)),), {"login": "nn"}, "nn"),
    Case("for an account that was unlinked", VOUCHED, (There("nn", **KNOWN, unlinked=True),),
         {"login": "nn"}, "nn"),
    Case("for a break-glass user", {**VOUCHED, "BREAK_GLASS_USERS": ["nn"]}, (There("nn"),),
         {"login": "nn"}, "nn"),
    Case("but a user has one account here", VOUCHED, (There("nn", links=(("acme", "another"),)),),
         {"login": "nn"}, "account_exists"),
    Case("and an inactive one has none", VOUCHED, (There("nn", active=False),), {"login": "nn"},
         "inactive"),
    Case("it cannot vouch for what is no user", {"USER_RESOLVER": vouch_for_nonsense}, (PLAIN,),
         outcome="misconfigured"),
    Case("nor name a user who is not stored", {"USER_RESOLVER": not_stored},
         outcome="misconfigured"),
    Case("who it does not know is a stranger", ASKED, (There("nn"),)),
    Case("or is matched", {**ASKED, **MATCH}, (PLAIN,), VERIFIED, "nora", keeps_password=False),
    Case("it may refuse", {"USER_RESOLVER": refuse_everybody}, outcome="no_account"),
    Case("its mistake makes no second account", {"USER_RESOLVER": break_down},
         outcome="misconfigured"),
    Case("nor does its nonsense", {"USER_RESOLVER": wrong}, (PLAIN,), outcome="misconfigured"),
    Case("known people are not asked about", {"USER_RESOLVER": break_down}, (There("nora",
         **KNOWN),), outcome="nora"),

    # --- ALLOWED_EMAIL_DOMAINS
    Case("an address of the domain comes in", DOMAINS, claims={"email": MAIL}),
    Case("in capitals too", DOMAINS, claims={"email": "Nora@ACME.TEST"}),
    Case("another does not", DOMAINS, claims={"email": "nora@globex.example"},
         outcome="email_domain"),
    Case("nor a domain below it", DOMAINS, claims={"email": "nora@evil.acme.example"},
         outcome="email_domain"),
    Case("nor one that ends like it", DOMAINS, claims={"email": "nora@evilacme.example"},
         outcome="email_domain"),
    Case("nor two at once", DOMAINS, claims={"email": "nora@evil.test@acme.example"},
         outcome="email_domain"),
    Case("nor something around it", DOMAINS, claims={"email": "nora@acme.example, x@evil.test"},
         outcome="email_domain"),
    Case("nor a list of them", DOMAINS, claims={"email": [MAIL]}, outcome="email_domain"),
    Case("nor one that is written with a letter like it", DOMAINS, claims={"email":
         "nora@\u017facme.example"}, outcome="email_domain"),
    Case("nor with the sign for kelvin", {"ALLOWED_EMAIL_DOMAINS": ["kim.example"]}, claims={
         "email": "nora@\u212aim.example"}, outcome="email_domain"),
    Case("who has no address stays out", DOMAINS, claims={"email": None}, outcome="no_email"),
    Case("an empty one is none", DOMAINS, claims={"email": ""}, outcome="no_email"),
    Case("known people are asked each time", DOMAINS, (There("nora", **KNOWN),),
         {"email": "nora@globex.example"}, "email_domain"),
    Case("the claim that fills the address is the one that counts", {**DOMAINS,
         "CLAIMS": {"email": "work.mail"}}, claims={"email": "x@evil.test",
         "work": {"mail": MAIL}}),

    Case("so does the one that people are matched by", {**DOMAINS, **ELSEWHERE},
         claims={"email": MAIL, "work": {"mail": "x@evil.test"}}, outcome="email_domain"),

    # --- STAFF and SUPERUSER
    Case("a claim makes staff", STAFF, claims={"roles": ["admin"]}, staff=True),
    Case("one of several does", STAFF, claims={"roles": ["guest", "it"]}, staff=True),
    Case("a text does as well", STAFF, claims={"roles": "it"}, staff=True),
    Case("another value does not", STAFF, claims={"roles": ["administrator"]}),
    Case("nor does part of a text", STAFF, claims={"roles": "admin it"}),
    Case("nor an absent claim", STAFF),
    Case("nor null", STAFF, claims={"roles": None}),
    Case("nor True where 1 is meant", {"STAFF": {"level": [1]}}, claims={"level": True}),
    Case("nor a dict", STAFF, claims={"roles": {"admin": True}}),
    Case("a callable may decide", {"STAFF": lambda claims: claims["age"] > 40},
         claims={"age": 41}, staff=True),
    Case("and must not see the scopes", {"STAFF": lambda claims: "scopes" in claims}),
    Case("its mistake gives nothing", {"STAFF": lambda claims: claims["age"] > 40}),
    Case("its mistake takes nothing", {"STAFF": lambda claims: claims["age"] > 40},
         (There("nora", staff=True, **KNOWN),), outcome="nora", staff=True),
    Case("superusers are made by their own rule alone", BOTH, claims={"profile": {"level": 9}},
         superuser=True),
    Case("and staff by theirs", BOTH, claims={"roles": "it", "profile": {"level": 8}},
         staff=True),
    Case("known people become staff", STAFF, (There("nora", **KNOWN),), {"roles": "it"}, "nora",
         staff=True),
    Case("who was staff before stays staff without the claim", STAFF, (There("nora", staff=True,
         **KNOWN),), outcome="nora", staff=True),
    Case("a break-glass user gets nothing", {**STAFF, "BREAK_GLASS_USERS": ["nora"]},
         (There("nora", **KNOWN),), {"roles": "it"}, "nora"),
    Case("and loses nothing", {**GROUPS, "BREAK_GLASS_USERS": ["nora"]}, (There("nora",
         groups=("Analysts",), **KNOWN),), {"teams": []}, "nora", groups=("Analysts",)),
    Case("nobody is created under a break-glass name", {"CLAIMS": {"username": "login"},
         "BREAK_GLASS_USERS": ["Emergency"]}, claims={"login": "emergency"},
         outcome="account_exists"),
    Case("in capitals neither", {"CLAIMS": {"username": "login"},
         "BREAK_GLASS_USERS": ["emergency"]}, claims={"login": "EMERGENCY"},
         outcome="account_exists"),
    Case("a user who is written like a break-glass user is none", {**STAFF, "BREAK_GLASS_USERS":
         ["Nora"]}, (There("nora", **KNOWN),), {"roles": "it"}, "nora", staff=True),

    # --- GROUPS
    Case("a claim puts people into groups", GROUPS, claims={"teams": ["ops"]},
         groups=("Analysts", "Operations")),
    Case("several claims add up", GROUPS, claims={"teams": "research", "office": "london"},
         groups=("Analysts", "London")),
    Case("values that nothing is said about are nothing", GROUPS, claims={"teams": ["sales"]}),
    Case("an absent claim changes nothing", GROUPS, (There("nora", groups=("Analysts",),
         **KNOWN),), outcome="nora", groups=("Analysts",)),
    Case("neither does null", GROUPS, (There("nora", groups=("Analysts",), **KNOWN),),
         {"teams": None}, "nora", groups=("Analysts",)),
    Case("an empty one removes", GROUPS, (There("nora", groups=("Analysts",), **KNOWN),),
         {"teams": []}, "nora"),
    Case("and so does an empty text", GROUPS, (There("nora", groups=("Analysts",), **KNOWN),),
         {"teams": ""}, "nora"),
    Case("another value removes and adds", GROUPS, (There("nora", groups=("London",
         "Operations"), **KNOWN),), {"teams": ["research"], "office": "paris"}, "nora",
         groups=("Analysts",)),
    Case("groups that are not mapped are left alone", GROUPS, (There("nora", groups=("Editors",
         "Operations"), **KNOWN),), {"teams": []}, "nora", groups=("Editors",)),
    Case("nonsense changes nothing", GROUPS, (There("nora", groups=("Analysts",), **KNOWN),),
         {"teams": {"research": True}}, "nora", groups=("Analysts",)),
    Case("not even in a list", GROUPS, (There("nora", groups=("Analysts",), **KNOWN),),
         {"teams": ["ops", 7]}, "nora", groups=("Analysts",)),
    Case("a group that does not exist is not made up", {"GROUPS": {"teams": {"x": "Nowhere"}}},
         claims={"teams": ["x"]}),
    Case("nor is one found that is written in another case", {"GROUPS": {"teams": {"x":
         "analysts"}}}, claims={"teams": ["x"]}),
    Case("nor with an accent", {"GROUPS": {"teams": {"x": "\u00c1nalysts"}}},
         claims={"teams": ["x"]}),
    Case("who is in a group that is written in another way stays there", {"GROUPS": {"teams": {"x":
         "analysts"}}}, (There("nora", groups=("Analysts",), **KNOWN),), {"teams": []}, "nora",
         groups=("Analysts",)),
    Case("and leaves those that are written as they are", {"GROUPS": {"teams": {"x": "analysts",
         "y": "Operations"}}}, (There("nora", groups=("Analysts", "Operations"), **KNOWN),),
         {"teams": ["x"]}, "nora", groups=("Analysts",)),
    Case("a flag is given whatever becomes of the groups", {**STAFF, "GROUPS": {"teams": {"x":
         "analysts"}}}, claims={"teams": ["x"], "roles": "it"}, staff=True),
    Case("what two claims stand for is kept while one is silent",
         {"GROUPS": {"teams": {"a": "Analysts"}, "office": {"b": "Analysts"}}}, (There("nora",
         groups=("Analysts",), **KNOWN),), {"teams": []}, "nora", groups=("Analysts",)),
]
# fmt: on


def set_up(case: Case) -> None:
    for name in ("Analysts", "Operations", "London", "Editors"):
        Group.objects.create(name=name)
    for there in case.there:
        user = User.objects.create_user(
            there.username,
            there.email,
            "secret",
            is_staff=there.staff,
            is_superuser=there.superuser,
            is_active=there.active,
        )
        user.groups.set(Group.objects.filter(name__in=there.groups))
        if there.permission:
            user.user_permissions.add(Permission.objects.all()[0])
        for tenant, subject in there.links:
            token = BipsyncToken.objects.create(
                tenant=tenant, subject=subject, user=user, status=BipsyncToken.Status.NEEDS_SIGN_IN
            )
            if there.unlinked:
                lifecycle.unlink(token)


def configure(case: Case, settings: Any, bipsync: SimulatedBipsync) -> str:
    """Apply the policy, and return where to begin the sign-in."""
    if case.tenant == "acme":
        settings.BIPSYNC = {**settings.BIPSYNC, **case.policy}
        return LOGIN
    # One client of Bipsync's does for both.
    bipsync.redirect_uris |= {f"https://testserver{CALLBACK}{case.tenant}/"}
    own = {key: value for key, value in settings.BIPSYNC.items() if key != "CLIENT"}
    shared = {"ALLOW_INSECURE_LOOPBACK": own.pop("ALLOW_INSECURE_LOOPBACK"), **case.policy}
    settings.BIPSYNC = {**shared, "TENANTS": {"acme": own, case.tenant: own}}
    return f"{LOGIN}{case.tenant}/"


def reason_of(response: Any) -> str:
    page: str = response.content.decode()
    return page.partition('data-reason="')[2].partition('"')[0]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_who_comes_in(
    case: Case, rolled_back_database: str, bipsync: SimulatedBipsync, settings: Any
) -> None:
    set_up(case)
    login = configure(case, settings, bipsync)
    before = {user.username: user for user in User.objects.all()}
    person = SimulatedUser(NORA, "Nora Noon", "Nora", "Noon", MAIL, extra=case.claims)
    browser = Browser()
    begun = browser.get(login, secure=True)["Location"]
    response = browser.open(bipsync.approve(begun, user=person))
    user = User.objects.filter(pk=browser.user_id() or 0).first()
    if user is None:
        assert reason_of(response) == case.outcome
        assert User.objects.count() == len(before), "nobody was created"
        rows = BipsyncToken.objects.all()
        assert all(row.refresh_token is None for row in rows), "nothing is stored"
        return
    assert (NEW if user.username not in before else user.username) == case.outcome
    assert (user.is_staff, user.is_superuser) == (case.staff, case.superuser)
    assert set(user.groups.values_list("name", flat=True)) == set(case.groups)
    if case.outcome == NEW:
        assert not user.has_usable_password()
        assert not user.user_permissions.exists()
    else:
        assert user.check_password("secret") is case.keeps_password
    assert case.email in {None, user.email}
    others = User.objects.exclude(pk=user.pk)
    for other in others:
        was = before[other.username]
        assert (other.is_staff, other.is_superuser) == (was.is_staff, was.is_superuser)
        assert other.check_password("secret")
    recorded = TokenEvent.objects.filter(name__in=["right_given", "right_taken"])
    assert all(event.token is not None and event.token.user == user for event in recorded)
    given = GivenFlag.objects.filter(user=user).values_list("name", flat=True)
    assert set(given) <= {"is_staff", "is_superuser"}


def test_the_table_names_each_case_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 80
