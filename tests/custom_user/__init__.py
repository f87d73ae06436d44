"""A site whose user models are its own. Run by tests/test_users.py in a process of its own."""
