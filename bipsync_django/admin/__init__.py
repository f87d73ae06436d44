"""The admin: how all connections are, and what can be done about them; no secret within reach.

``tokens`` is the list and the page of one token, ``panel`` what stands above the list, ``wording``
how a row is told, ``actions`` what can be done to rows, ``service`` the site's own account.
"""

from .tokens import BipsyncTokenAdmin

__all__ = ["BipsyncTokenAdmin"]
