"""The customers of a site that has a schema for each."""

from django_tenants.models import DomainMixin, TenantMixin


class Customer(TenantMixin):  # type: ignore[misc]
    """One customer; ``schema_name`` says where their data is."""


class Domain(DomainMixin):  # type: ignore[misc]
    """A host name of a customer's."""
