"""The whole way on built-in phantoms: the commands that a user types, and a page that shows what came of them."""
