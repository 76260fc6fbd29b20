"""`python -m jobs.restage`: the form for `ray job submit`."""

from jobs.restage.command import main

if __name__ == "__main__":
    main()
