"""CPU and queries of a sign-in, beside a bare hand-written OAuth sign-in on the same stack.

    python -m benchmarks.sign_in [people]

Both run in this process, in turns, with Django's test client as the browser, against a simulated
Bipsync in a process of its own. Counted is the CPU time of this process (all threads) within the
two requests of a sign-in: the one that leads to Bipsync and the callback.
"""

import base64
import hashlib
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlencode, urlsplit

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
os.environ["TEST_DATABASE"] = "default"
os.environ["TEST_DATABASE_NAME"] = os.path.join(tempfile.mkdtemp(prefix="bipsync-benchmark-"), "db")

import django

django.setup()

import jwt
import requests
from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, models
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import include, path

from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from bipsync_django.testing.browser import decide

PEOPLE = 1000
CALLBACKS = [f"https://testserver/{where}/callback/" for where in ("bipsync", "bare")]


# --- the bare sign-in: what a careful tutorial would write, tokens in plaintext and never refreshed


class BareToken(models.Model):
    user = models.OneToOneField(User, on_delete=models.CASCADE)
    access_token = models.TextField()
    refresh_token = models.TextField()
    expires_at = models.FloatField()

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return str(self.user)


_keys: jwt.PyJWKClient | None = None


def bare_login(request: HttpRequest) -> HttpResponse:
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(32)
    request.session["bare"] = {"verifier": verifier, "state": state}
    digest = hashlib.sha256(verifier.encode()).digest()
    query = {
        "response_type": "code",
        "client_id": settings.BIPSYNC["CLIENT_ID"],
        "redirect_uri": request.build_absolute_uri("/bare/callback/"),
        "scope": " ".join(settings.BIPSYNC["SCOPES"]),
        "state": state,
        "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    return HttpResponseRedirect(f"{settings.BIPSYNC['AUTHORIZE_URL']}?{urlencode(query)}")


def bare_callback(request: HttpRequest) -> HttpResponse:
    global _keys
    begun = request.session.pop("bare")
    if not secrets.compare_digest(request.GET["state"], begun["state"]):
        return HttpResponseBadRequest()
    answer = requests.post(
        settings.BIPSYNC["TOKEN_URL"],
        data={
            "grant_type": "authorization_code",
            "code": request.GET["code"],
            "code_verifier": begun["verifier"],
            "redirect_uri": request.build_absolute_uri("/bare/callback/"),
            "client_id": settings.BIPSYNC["CLIENT_ID"],
            "client_secret": settings.BIPSYNC["CLIENT_SECRET"],
        },
        timeout=10,
    )
    answer.raise_for_status()
    pair = answer.json()
    _keys = _keys or jwt.PyJWKClient(settings.BIPSYNC["JWKS_URL"])
    claims = jwt.decode(
        pair["access_token"],
        _keys.get_signing_key_from_jwt(pair["access_token"]),
        algorithms=["RS256"],
        audience=settings.BIPSYNC["CLIENT_ID"],
        leeway=30,
    )
    user, _ = User.objects.update_or_create(
        username=claims["sub"],
        defaults={
            "first_name": claims["given_name"],
            "last_name": claims["family_name"],
            "email": claims["email"],
        },
    )
    BareToken._default_manager.update_or_create(
        user=user,
        defaults={
            "access_token": pair["access_token"],
            "refresh_token": pair["refresh_token"],
            "expires_at": time.time() + pair["expires_in"],
        },
    )
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponseRedirect("/")


urlpatterns = [
    path("bare/login/", bare_login),
    path("bare/callback/", bare_callback),
    path("bipsync/", include("bipsync_django.urls")),
]


# --- measuring


def serve(pipe: Connection) -> None:
    people = [
        SimulatedUser(f"{n:024x}", f"Person {n}", "Person", str(n), f"person{n}@example.org")
        for n in range(PEOPLE)
    ]
    with SimulatedBipsync(users=people, redirect_uris=CALLBACKS) as bipsync:
        pipe.send(bipsync.settings)
        pipe.recv()


def sign_in(where: str, person: int) -> float:
    """Sign a person in and return the CPU seconds that it took."""
    client = Client()
    started = time.process_time()
    leaving = client.get(f"/{where}/login/", secure=True)
    spent = time.process_time() - started
    callback = urlsplit(decide(leaving["Location"], decision="approve", user_id=f"{person:024x}"))
    started = time.process_time()
    back = client.get(f"{callback.path}?{callback.query}", secure=True)
    spent += time.process_time() - started
    if (back.status_code, back["Location"]) != (302, "/"):
        raise SystemExit(f"{where}: the sign-in failed with status {back.status_code}")
    return spent


def queries_of(where: str, person: int) -> list[str]:
    with CaptureQueriesContext(connection) as queries:
        sign_in(where, person)
    return [query["sql"] for query in queries.captured_queries]


def measure(rounds: int) -> None:
    sides = ("bare", "bipsync")
    for where in sides:
        sign_in(where, PEOPLE - 1)
    print(f"{'sign-in':12} {'bare':>18} {'bipsync-django':>18} {'CPU ratio':>10}")
    for kind, people in (("new", range(rounds)), ("returning", range(rounds))):
        spent: dict[str, list[float]] = {where: [] for where in sides}
        queries = {where: len(queries_of(where, people[0])) for where in sides}
        for person in people[1:]:
            for where in sides if person % 2 else reversed(sides):
                spent[where].append(sign_in(where, person))
        cpu = {where: statistics.median(spent[where]) * 1000 for where in sides}
        cells = "".join(f"{cpu[w]:8.2f} ms, {queries[w]:2} sql" for w in sides)
        print(f"{kind:12} {cells} {cpu['bipsync'] / cpu['bare']:10.2f}")
    print(f"CPU: median of {rounds - 1} sign-ins each, in turns; sql: statements, BEGIN included")


def main(run: Callable[[int], Any] = measure) -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    context = get_context("fork")
    pipe, remote = context.Pipe()
    provider = context.Process(target=serve, args=(remote,), daemon=True)
    provider.start()
    settings.BIPSYNC = {**settings.BIPSYNC, **pipe.recv()}
    settings.ROOT_URLCONF = __name__
    try:
        call_command("migrate", verbosity=0)
        with connection.schema_editor() as editor:
            editor.create_model(BareToken)
        run(rounds)
    finally:
        pipe.send("stop")
        provider.join(10)


if __name__ == "__main__":
    main()
