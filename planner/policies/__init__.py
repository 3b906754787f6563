"""Policies: what a scenario chooses. They decide; they do not simulate, count or record."""
