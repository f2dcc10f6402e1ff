"""The command `cft`: its subcommands, what they show, and the exit statuses they end with."""
