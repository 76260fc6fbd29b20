"""The shows: planning, lanes, ledger, assembly, and one module a job."""
