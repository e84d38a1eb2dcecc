"""Is it right? The user's functions in one form, three witnesses and their vote on every entry."""
