from dnt.cli import entry

entry()
