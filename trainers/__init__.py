"""The names that users type after ``-tr``."""
