"""`python -m tumorvqa`."""

from tumorvqa.cli import entry

if __name__ == "__main__":
    entry()
