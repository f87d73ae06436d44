"""A browser's part of a sign-in over real HTTP, for tests without one."""

from html.parser import HTMLParser
from urllib.parse import urljoin

import requests


class ConsentError(AssertionError):
    """The provider did not show a consent page, or did not send the browser back."""


class _Form(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.hidden: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action = attributes.get("action", "")
        elif tag == "input" and attributes.get("type") == "hidden":
            self.hidden[attributes["name"]] = attributes["value"]


def decide(authorize_url: str, *, decision: str, user_id: str, ca_bundle: str | None = None) -> str:
    """Fill in the consent page at ``authorize_url`` and return where it redirects to.

    The redirect is not followed. An authorization request that the provider refuses with a
    redirect of its own returns that one. ``ca_bundle`` is the path of the certificates to trust.

    Raises:
        ConsentError: there was neither a consent page nor a redirect.
    """
    with requests.Session() as session:
        # A proxy from the environment must not come between a test and its own machine.
        session.trust_env = False
        session.verify = ca_bundle or True
        page = session.get(authorize_url, allow_redirects=False, timeout=30)
        if page.status_code == 200:
            form = _Form()
            form.feed(page.text)
            if form.action is None:
                raise ConsentError(f"No form at {authorize_url.partition('?')[0]}.")
            page = session.post(
                urljoin(page.url, form.action),
                data={**form.hidden, "user": user_id, "decision": decision},
                allow_redirects=False,
                timeout=30,
            )
        if page.status_code != 302:
            raise ConsentError(f"Expected a redirect, got {page.status_code}: {page.text[:500]}")
        return page.headers["Location"]
