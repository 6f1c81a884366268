"""The command line: what people type and what they see. Everything else is done by the other packages."""
