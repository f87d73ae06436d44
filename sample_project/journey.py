"""The check: a person's way through the portal, over real HTTP, and their token's after that."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urljoin, urlsplit

import requests

from bipsync_django.testing.browser import ConsentError, decide
from bipsync_django.testing.people import DEFAULT_USERS

from .demonstration import DemoFailed, Demonstration

if TYPE_CHECKING:
    from bipsync_django.models import BipsyncToken

__all__ = ["walk"]

_REFRESH_WITHIN = 70
_TIMEOUT = 20


class _NotAsExpected(Exception):
    """What a step found instead of what it expects."""


def walk(demonstration: Demonstration) -> None:
    """Walk from the landing page to a refreshed token and back out, a printed line for each step.

    Raises ``DemoFailed``, naming the step, or ``Interrupted``.
    """
    with requests.Session() as browser:
        # A proxy from the environment must not come between this machine and itself.
        browser.trust_env = False
        _Journey(demonstration, browser).walk()


class _Journey:
    def __init__(self, demonstration: Demonstration, browser: requests.Session) -> None:
        self._demonstration = demonstration
        self._browser = browser
        self._person = DEFAULT_USERS[0]

    def walk(self) -> None:
        with self._step("everything has started"):
            self._demonstration.prepare()
            self._demonstration.start()
        with self._step("a visitor sees the button"):
            self._expect(self._page("/"), "Sign in with Bipsync")
        with self._step("signing in leads to Bipsync, with a PKCE challenge"):
            authorize_url = self._begin()
        with self._step(f"Bipsync asks for consent; {self._person.name} allows it"):
            callback_url = decide(authorize_url, decision="approve", user_id=self._person.id)
            _expect_in_query(callback_url, "code", "state")
        with self._step("the callback signs her in and leads to the page that she wanted"):
            self._redirect(callback_url, to="/profile/")
        with self._step("her home page greets her by name"):
            self._expect(self._page("/"), f"Good to see you, {self._person.given_name}")
        with self._step("the API says on her behalf who she is"):
            self._see_api_pages()
        with self._step("her tokens are stored encrypted, and the access token works"):
            before = self._token()
            access_token = self._open(before)
            self._expect_api_status(access_token, 200)
        with self._step("the worker refreshes them, about 30 seconds after the sign-in"):
            self._wait_for_refresh(before)
        with self._step("the old access token is dead at Bipsync"):
            self._expect_api_status(access_token, 401)
        with self._step("the API answers her again, and she is still signed in"):
            self._see_api_pages()
        with self._step("she signs out, and her pages are closed"):
            self._sign_out()

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        self._demonstration.raise_if_over()
        try:
            with self._explained():
                yield
        except DemoFailed as error:
            raise DemoFailed(f"FAILED  {what}\n{error}") from error
        print(f"ok  {what:<68}{time.monotonic() - started:5.1f} s", flush=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (_NotAsExpected, requests.RequestException, ConsentError) as error:
            # What ended a process explains more than the request that found it gone.
            self._demonstration.raise_if_over()
            raise DemoFailed(str(error)) from error

    # What a browser does

    def _get(self, url: str) -> requests.Response:
        return self._browser.get(
            urljoin(self._demonstration.url, url), allow_redirects=False, timeout=_TIMEOUT
        )

    def _page(self, path: str) -> str:
        response = self._get(path)
        if response.status_code != 200:
            raise _NotAsExpected(f"{path} answered {response.status_code}, not 200.")
        return response.text

    def _redirect(self, url: str, *, to: str) -> str:
        response = self._get(url)
        location = response.headers.get("Location", "")
        if response.status_code != 302 or not location.startswith(to):
            path = urlsplit(url).path
            heading = re.search(r"<h1>(.*?)</h1>", response.text)
            raise _NotAsExpected(
                f"{path} answered {response.status_code}"
                f" {heading[1] if heading else urlsplit(location).path!r},"
                f" not a redirect to {to}."
            )
        return location

    def _expect(self, page: str, *texts: str) -> None:
        for text in texts:
            if text not in page:
                raise _NotAsExpected(f"The page does not say {text!r}.")

    def _begin(self) -> str:
        authorize = f"{self._demonstration.bipsync_url}/oauth/authorize"
        url = self._redirect("/bipsync/login/?next=/profile/", to=authorize)
        _expect_in_query(url, "client_id", "state", "redirect_uri", "code_challenge")
        if parse_qs(urlsplit(url).query).get("code_challenge_method") != ["S256"]:
            raise _NotAsExpected("The code challenge method is not S256.")
        return url

    def _see_api_pages(self) -> None:
        self._expect(self._page("/profile/"), self._person.name, self._person.email)
        self._expect(self._page("/research/"), "Northwind Traders", "Grace Hopper")

    def _sign_out(self) -> None:
        form = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self._page("/"))
        if form is None:
            raise _NotAsExpected("There is no form to sign out with.")
        answer = self._browser.post(
            f"{self._demonstration.url}/bipsync/logout/",
            data={"csrfmiddlewaretoken": form[1]},
            timeout=_TIMEOUT,
        )
        self._expect(answer.text, "You are signed out")
        self._redirect("/profile/", to="/?next=")

    # What an administrator could see

    def _token(self) -> "BipsyncToken":
        from bipsync_django.models import BipsyncToken

        token = BipsyncToken.objects.filter(subject=self._person.id).first()
        if token is None:
            raise _NotAsExpected("There is no token row.")
        return token

    def _open(self, token: "BipsyncToken") -> str:
        access_token = token.unseal("access_token")
        sealed = token.access_token.ciphertext if token.access_token else ""
        if not access_token or not sealed or access_token in sealed:
            raise _NotAsExpected("The access token is not stored, or not encrypted.")
        return access_token

    def _expect_api_status(self, access_token: str, status: int) -> None:
        answer = requests.get(
            f"{self._demonstration.bipsync_url}/v1/users/me",
            headers={"Authorization": f"Bearer {access_token}"},
            proxies={"http": ""},
            timeout=_TIMEOUT,
        )
        if answer.status_code != status:
            raise _NotAsExpected(f"Bipsync's API answered {answer.status_code}, not {status}.")

    def _wait_for_refresh(self, before: "BipsyncToken") -> None:
        def is_refreshed() -> bool:
            return self._token().generation > before.generation

        if not self._demonstration.wait_until(is_refreshed, seconds=_REFRESH_WITHIN):
            row = self._token()
            raise _NotAsExpected(
                f"After {_REFRESH_WITHIN} seconds the generation is {row.generation} still;"
                f" status {row.status}, last error {row.last_error or 'none'},"
                f" next refresh at {row.next_refresh_at:%H:%M:%S} UTC."
            )


def _expect_in_query(url: str, *names: str) -> None:
    query = parse_qs(urlsplit(url).query)
    missing = [name for name in names if name not in query]
    if missing:
        found = ", ".join(sorted(query)) or "nothing"
        raise _NotAsExpected(f"The URL lacks {', '.join(missing)}; it has {found}.")
