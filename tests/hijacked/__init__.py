"""The test site with django-hijack: administrators act as other people for a while."""
