"""Sign staff in to a Django site with Bipsync, and keep calling Bipsync's API for them."""

__version__ = "0.1.0"
