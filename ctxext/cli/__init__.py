"""The command line: arguments, commands, method options and the support matrix."""
