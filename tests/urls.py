from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


@login_required
def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"Signed in as {request.user.get_username()}")


urlpatterns = [
    path("", home),
    path("admin/", admin.site.urls),
    path("bipsync/", include("bipsync_django.urls")),
]
