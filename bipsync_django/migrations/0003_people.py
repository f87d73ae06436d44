import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("bipsync_django", "0002_lifecycle"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="GivenFlag",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("tenant", models.CharField(max_length=63, verbose_name="tenant")),
                (
                    "name",
                    models.CharField(
                        choices=[("is_staff", "staff"), ("is_superuser", "superuser")],
                        max_length=32,
                        verbose_name="flag",
                    ),
                ),
                (
                    "given_at",
                    models.DateTimeField(default=django.utils.timezone.now, verbose_name="given"),
                ),
            ],
            options={
                "verbose_name": "flag given by claims",
                "verbose_name_plural": "flags given by claims",
            },
        ),
        migrations.RemoveField(
            model_name="tenantstate",
            name="keys_cooldown_until",
        ),
        migrations.RemoveField(
            model_name="tenantstate",
            name="keys_fetched_at",
        ),
        migrations.AddField(
            model_name="tenantstate",
            name="keys_asked_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="tenantstate",
            name="keys_asked_by_sign_in_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="tokenevent",
            name="detail",
            field=models.CharField(blank=True, default="", max_length=255, verbose_name="detail"),
        ),
        migrations.AlterField(
            model_name="tokenevent",
            name="name",
            field=models.CharField(
                choices=[
                    ("signed_in", "signed in"),
                    ("connected", "connected by the person"),
                    ("linked", "linked to a user"),
                    ("unlinked", "no longer linked to a user"),
                    ("right_given", "right given"),
                    ("right_taken", "right taken back"),
                    ("refresh_failed", "refresh failed"),
                    ("needs_sign_in", "needs sign-in"),
                    ("disconnected", "disconnected"),
                    ("revived", "works again"),
                    ("discarded", "a late answer was not needed"),
                    ("quarantined", "token held back"),
                    ("sessions_ended", "sessions ended"),
                    ("breaker_opened", "calls held back"),
                    ("breaker_closed", "calls go on"),
                ],
                max_length=32,
                verbose_name="event",
            ),
        ),
        migrations.AddConstraint(
            model_name="bipsynctoken",
            constraint=models.UniqueConstraint(
                fields=("tenant", "user"), name="bipsync_token_person"
            ),
        ),
        migrations.AddField(
            model_name="givenflag",
            name="user",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE,
                related_name="bipsync_flags",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddConstraint(
            model_name="givenflag",
            constraint=models.UniqueConstraint(
                fields=("user", "tenant", "name"), name="bipsync_given_flag"
            ),
        ),
    ]
