"""The clients' dialects as pure maps between payloads and one request, and a client of our own."""
