"""A simulated Bipsync over real HTTP, and pytest fixtures that use it.

``SimulatedBipsync`` is a stand-in for a foreign server and uses nothing else of this package. The
fixtures are in ``bipsync_django.testing.fixtures``, which a site names in ``pytest_plugins``.
"""

from .browser import ConsentError
from .messages import Answer, DropAfter, DropBefore, Html, RecordedRequest, Trickle
from .people import SimulatedUser
from .provider import IssuedPair
from .simulator import SimulatedBipsync
from .tls import Authority

__all__ = [
    "Answer",
    "Authority",
    "ConsentError",
    "DropAfter",
    "DropBefore",
    "Html",
    "IssuedPair",
    "RecordedRequest",
    "SimulatedBipsync",
    "SimulatedUser",
    "Trickle",
]
