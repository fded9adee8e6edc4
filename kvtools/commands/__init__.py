"""One module a subcommand: `main` declares, opens, calls and writes; EXAMPLES, EXIT_CODES and SEE_ALSO go into help."""
