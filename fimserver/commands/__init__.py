"""Commands of the command line: what each does, and how it is drawn on a terminal."""
