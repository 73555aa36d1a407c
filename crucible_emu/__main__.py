"""``python -m crucible_emu``: the same as the command ``crucible-emu``."""

from crucible_emu.cli.main import main

if __name__ == "__main__":
    main()
