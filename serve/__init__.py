"""The front desk: what answers over HTTP on the same resident pins as the batch jobs."""
