"""The `penstock` command: up, one subcommand per service, and what operators and callers do with a mesh."""
