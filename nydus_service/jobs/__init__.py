"""Jobs: their states, journal and queue. The packages api and triggers submit them."""
