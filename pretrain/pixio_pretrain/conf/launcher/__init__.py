"""Where runs run, if not here."""
