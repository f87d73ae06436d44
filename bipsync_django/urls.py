"""Include these under a prefix: ``path("bipsync/", include("bipsync_django.urls"))``."""

from django.urls import path

from . import views

app_name = "bipsync"
urlpatterns = [
    path("login/", views.LoginView.as_view(), name="login"),
    path("login/<slug:tenant>/", views.LoginView.as_view(), name="login"),
    path("callback/", views.CallbackView.as_view(), name="callback"),
    path("callback/<slug:tenant>/", views.CallbackView.as_view(), name="callback"),
    path("connect/", views.ConnectView.as_view(), name="connect"),
    path("connect/<slug:tenant>/", views.ConnectView.as_view(), name="connect"),
    path(
        "connect/confirm/<slug:reference>/",
        views.ConfirmConnectionView.as_view(),
        name="confirm_connection",
    ),
    path("connection/", views.ConnectionView.as_view(), name="connection"),
    path("disconnect/<slug:tenant>/", views.DisconnectView.as_view(), name="disconnect"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
]
