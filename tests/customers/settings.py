"""The test site with a schema for each of its customers, by django-tenants, on PostgreSQL alone."""

import os

from tests import databases
from tests.settings import *  # noqa: F403
from tests.settings import BIPSYNC as _BIPSYNC
from tests.settings import INSTALLED_APPS as _INSTALLED_APPS

DATABASES = {
    "default": {**databases.postgresql(), "ENGINE": "django_tenants.postgresql_backend"},
}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]

TENANT_MODEL = "customers.Customer"
TENANT_DOMAIN_MODEL = "customers.Domain"
# The site's own staff sign in too, so the shared schema has all tables that a customer's has.
TENANT_APPS = [app for app in _INSTALLED_APPS if app != "tests"]
SHARED_APPS = ["django_tenants", "tests.customers", *TENANT_APPS]
INSTALLED_APPS = SHARED_APPS

if "TEST_WITHOUT_HOOK" in os.environ:
    BIPSYNC = _BIPSYNC
else:
    BIPSYNC = {**_BIPSYNC, "PREPARE_CONNECTION": "tests.customers.schemas.use_callers_schema"}
