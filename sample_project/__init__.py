"""A small staff portal that signs people in with Bipsync, and the demonstration around it."""

from .celery import app as celery_app

__all__ = ["celery_app"]
