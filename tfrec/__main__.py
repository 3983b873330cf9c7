"""`python -m tfrec` is `tfrec`."""

from tfrec.cli import main

if __name__ == "__main__":
    main()
