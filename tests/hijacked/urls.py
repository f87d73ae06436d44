from django.urls import include, path

from tests import urls

urlpatterns = [*urls.urlpatterns, path("hijack/", include("hijack.urls"))]
