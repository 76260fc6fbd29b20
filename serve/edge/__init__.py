"""Between a connection and a route: who asks, what it is called, how much it may, how failures are answered."""
