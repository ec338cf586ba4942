"""Tree-sitter: languages, features of the text around a cursor, outlines."""
