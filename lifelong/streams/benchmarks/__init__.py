"""One file per named stream; see benchmark."""
