"""The portal's URLs."""

from django.contrib import admin
from django.urls import include, path

from . import views

admin.site.site_header = "Acme Capital administration"
admin.site.site_title = "Acme Capital"
admin.site.index_title = "Staff portal"

urlpatterns = [
    path("", views.front, name="front"),
    path("research/", views.research, name="research"),
    path("projects/", views.projects, name="projects"),
    path("profile/", views.profile, name="profile"),
    path("bipsync/", include("bipsync_django.urls")),
    path("admin/", admin.site.urls),
]
