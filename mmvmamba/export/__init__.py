"""Export to other runtimes; import its modules by name."""
