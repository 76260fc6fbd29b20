"""Bytes from strangers and to them: uploads, what URLs name, webhooks; bounded in size, time, memory and reach."""
