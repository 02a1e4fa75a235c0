"""The cellsam backend: its cards. Everything heavy is imported when a card is used."""
