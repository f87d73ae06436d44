import uuid
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models
from django.db.models.functions import Lower


class Team(models.Model):
    name = models.CharField(max_length=30)

    objects: ClassVar[Any] = models.Manager()

    def __str__(self) -> str:
        return self.name


class Person(AbstractBaseUser):
    """Known by e-mail; no ``username``, no ``is_active`` column, a UUID for a primary key."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)
    name = models.CharField(max_length=20, blank=True)
    badge = models.CharField(max_length=10, blank=True)
    hired = models.DateField(null=True)
    floor = models.IntegerField(null=True)
    team = models.ForeignKey(Team, on_delete=models.SET_NULL, null=True)

    objects: ClassVar[Any] = BaseUserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    class Meta:
        constraints = [
            models.UniqueConstraint(
                Lower("badge"), condition=~models.Q(badge=""), name="person_badge_any_case"
            )
        ]


class Numbered(AbstractBaseUser):
    """Known by a number that it gives itself."""

    number = models.UUIDField(unique=True, default=uuid.uuid4)
    name = models.CharField(max_length=20, blank=True)

    objects: ClassVar[Any] = BaseUserManager()

    USERNAME_FIELD = "number"
