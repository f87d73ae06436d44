"""The button, and what the pages are made of."""

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.template import Context, Template
from django.template.loader import render_to_string
from django.test import RequestFactory
from django.utils import translation

import bipsync_django
from bipsync_django.failures import FAILURES
from tests.browser import LOGIN, links

PACKAGE = Path(bipsync_django.__file__).parent
PAGES = sorted(path.name for path in (PACKAGE / "templates" / "bipsync_django").glob("*.html"))


def button(tag: str = "{% bipsync_login_button %}", **context: Any) -> str:
    return Template("{% load bipsync %}" + tag).render(Context(context))


def test_the_button_leads_to_the_sign_in() -> None:
    page = button()
    assert links(page) == [LOGIN]
    assert "Sign in with Bipsync" in page


def test_the_button_takes_a_page_to_go_on_to() -> None:
    page = button("{% bipsync_login_button next_url='/a/?b=c&d=e' %}")
    assert links(page) == [f"{LOGIN}?next=%2Fa%2F%3Fb%3Dc%26d%3De"]


def test_the_button_takes_the_page_from_a_variable() -> None:
    assert links(button("{% bipsync_login_button target %}", target="/x/")) == [
        f"{LOGIN}?next=%2Fx%2F"
    ]


def test_the_button_hands_the_pages_own_next_on() -> None:
    request = RequestFactory().get("/", {"next": "/reports/"})
    assert links(button(request=request)) == [f"{LOGIN}?next=%2Freports%2F"]


def test_a_page_named_in_the_template_wins_over_the_pages_own_next() -> None:
    request = RequestFactory().get("/", {"next": "/reports/"})
    tag = "{% bipsync_login_button next_url='/x/' %}"
    assert links(button(tag, request=request)) == [f"{LOGIN}?next=%2Fx%2F"]
    assert links(button("{% bipsync_login_button next_url='' %}", request=request)) == [LOGIN]


@pytest.mark.parametrize("request_like", [None, "", object(), AnonymousUser()])
def test_the_button_works_without_a_request(request_like: Any) -> None:
    assert links(button(request=request_like)) == [LOGIN]


def test_the_button_cannot_be_made_to_hold_markup() -> None:
    request = RequestFactory().get("/", {"next": '"><script>alert(1)</script>'})
    assert "<script" not in button(request=request)
    assert button(request=request).count('"') == 4


@pytest.mark.parametrize("name", PAGES)
def test_no_template_has_inline_scripts_or_styles_or_loads_from_elsewhere(name: str) -> None:
    source = (PACKAGE / "templates" / "bipsync_django" / name).read_text()
    # A site's Content-Security-Policy may well forbid them.
    assert not re.search(r"<script|<style|style=|\son\w+=|https?://|javascript:", source)
    assert "|safe" not in source


def test_the_style_sheet_loads_nothing_from_elsewhere() -> None:
    css = (PACKAGE / "static" / "bipsync_django" / "bipsync.css").read_text()
    # One for the admin is loaded there alone.
    own = (PACKAGE / "static" / "bipsync_django" / "admin.css").read_text()
    assert not re.search(r"@import|url\(|https?://", own)
    assert not re.search(r"@import|url\(|https?://", css)
    # It is loaded into sites' own pages too.
    rules = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    selectors = [s.strip() for s in re.findall(r"([^{};]+)\{", rules)]
    assert selectors
    assert all(re.match(r"\.bipsync-|a\.bipsync-|@media", s) for s in selectors)


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "templates").rglob("*.html")), ids=lambda path: path.name
)
def test_every_text_can_be_translated(path: Path) -> None:
    text = path.read_text()
    for pattern in (
        r"{% comment %}.*?{% endcomment %}",
        r"{% blocktranslate.*?{% endblocktranslate %}",
        r"{%.*?%}",
        r"{{.*?}}",
        r"<[^>]*>",
        r"&\w+;",
    ):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    assert not re.findall(r"\w{2,}", text)
    # Nor in what is read out, and seen in a field.
    for attribute in re.findall(r'(?:aria-label|title|value|alt)="([^"]*)"', path.read_text()):
        assert not re.search(r"^[A-Z][a-z]+", attribute), attribute


def test_every_failure_says_something() -> None:
    for reason, failure in FAILURES.items():
        assert str(failure.title), reason
        assert str(failure.text).endswith("."), reason
        assert 400 <= failure.status < 600, reason
        assert failure.status != 500, reason


def test_a_page_names_its_language_and_direction() -> None:
    context = {"failure": FAILURES["declined"], "retry_url": LOGIN, "reference": "A-B"}
    page = render_to_string("bipsync_django/failure.html", context)
    assert '<html lang="en-us">' in page
    with translation.override("ar"):
        assert '<html lang="ar" dir="rtl">' in render_to_string(
            "bipsync_django/failure.html", context
        )
    assert page.startswith("<!doctype html>")
