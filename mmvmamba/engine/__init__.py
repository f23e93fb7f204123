"""Hooks, transforms and optimizer constructors for MMEngine's runner."""
