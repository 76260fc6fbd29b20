"""`python -m jobs.restage`: the form for `ray job submit`."""

from cluster.interrupts import ending_at_once

if __name__ == "__main__":
    with ending_at_once():
        from jobs.restage.command import main
    main()
