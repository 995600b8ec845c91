"""What a client hears: subscriptions, listeners, gaps and their healing, logs."""
