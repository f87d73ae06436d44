from django.contrib import admin
from django.contrib.auth.decorators import (
    login_not_required,
    login_required,
    permission_required,
)
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import include, path

from bipsync_django.api import api_session
from bipsync_django.decorators import bipsync_token_required


@login_required
def home(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        return HttpResponse(f"Saved {request.POST['note']}")
    return HttpResponse(f"Signed in as {request.user.get_username()}")


def greeting(request: HttpRequest) -> HttpResponse:
    """A page for everybody, which says who looks."""
    return HttpResponse(f"Hello {request.user.get_username() or 'visitor'}")


async def agreeting(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(f"Hello {user.get_username() or 'visitor'}")


def page(request: HttpRequest) -> HttpResponse:
    """A page of the site's own, with the line for people whose connection has ended."""
    source = (
        '{% load bipsync static %}<!doctype html><html lang="en"><title>A page</title>'
        "<link rel=stylesheet href=\"{% static 'bipsync_django/bipsync.css' %}\">"
        "<body>{% bipsync_attention %}<main><h1>A page</h1></main>"
    )
    return HttpResponse(engines["django"].from_string(source).render({}, request))


@login_not_required
def open_house(request: HttpRequest) -> HttpResponse:
    """A page that is marked as one for everybody, and says who looks."""
    return greeting(request)


@login_required
def note(request: HttpRequest) -> HttpResponse:
    """A page with a form that takes long to fill in."""
    if request.method == "POST":
        return HttpResponse(f"Saved {request.POST['note']}")
    source = (
        '<!doctype html><html lang="en"><title>A note</title><body><main><h1>A note</h1>'
        '<form method="post">{% csrf_token %}<label>Note <textarea name="note"></textarea></label>'
        "<button>Save</button></form></main>"
    )
    return HttpResponse(engines["django"].from_string(source).render({}, request))


@permission_required("auth.add_user")
def reports(request: HttpRequest) -> HttpResponse:
    return HttpResponse("Reports")


@login_not_required
def welcome(request: HttpRequest) -> HttpResponse:
    return HttpResponse("Welcome")


@bipsync_token_required(scopes=["research:read"])
def research(request: HttpRequest) -> HttpResponse:
    with api_session(request.user) as session:
        notes = session.get("/v1/research").json()
    return HttpResponse(f"{len(notes)} research notes")


urlpatterns = [
    path("", home),
    path("greeting/", greeting),
    path("agreeting/", agreeting),
    path("welcome/", welcome),
    path("open-house/", open_house),
    path("page/", page),
    path("note/", note),
    path("reports/", reports),
    path("research/", research),
    path("admin/", admin.site.urls),
    path("bipsync/", include("bipsync_django.urls")),
]
