"""Jobs: their states, journal and queue. What makes them is elsewhere: api/ and triggers/."""
