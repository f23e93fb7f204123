"""Checks of configs and data sets, before a run trips over them; import its modules by name."""
