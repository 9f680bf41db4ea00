"""`python -m retinaconf` is the command `retinaconf`."""

from retinaconf.cli import main

if __name__ == "__main__":
    main()
