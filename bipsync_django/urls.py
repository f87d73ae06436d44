"""Include these under a prefix: ``path("bipsync/", include("bipsync_django.urls"))``."""

from django.urls import path

from . import views

app_name = "bipsync"
urlpatterns = [
    path("login/", views.LoginView.as_view(), name="login"),
    path("callback/", views.CallbackView.as_view(), name="callback"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
]
