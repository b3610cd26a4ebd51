"""What each preset learns, and TRL beside it."""
